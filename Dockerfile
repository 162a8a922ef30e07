FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build

# First the dependencies, which change less often than the sources. `.cargo` says how release builds are optimized.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked

# A static program, which needs no other files. It resolves host names with DNS and /etc/hosts: glibc has both built
# in since version 2.34. Packed relocations save 0.2 MB. benches/compare/builds.rs reads this `cargo rustc` from here.
COPY src src
COPY templates templates
RUN touch src/lib.rs src/main.rs \
    && cargo rustc --release --locked --bin cloud-run-sessions -- \
        -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
    && cp target/release/cloud-run-sessions /

FROM scratch
LABEL org.opencontainers.image.title="cloud-run-sessions" \
      org.opencontainers.image.description="Sessions on serverless containers: exact view counts in Redis" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /cloud-run-sessions /
# A user that owns nothing and can write nowhere.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/cloud-run-sessions"]
