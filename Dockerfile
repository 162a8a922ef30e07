FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# A static program, which needs no files beside it. It resolves host names too, by DNS and /etc/hosts:
# since 2.34, glibc has both built in. With packed relocations it is 0.2 MB smaller.
ENV RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs"

# The dependencies alone first, which change less often than the sources. A target must be named, or
# the flags would be the compiler's plug-ins' too.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --target host-tuple

COPY src src
COPY templates templates
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    touch src/lib.rs src/main.rs \
    && cargo build --release --locked --target host-tuple \
    && cp target/*/release/cloud-run-sessions /

FROM scratch
LABEL org.opencontainers.image.title="cloud-run-sessions" \
      org.opencontainers.image.description="Sessions on serverless containers: exact view counts in Redis" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /cloud-run-sessions /
# Nobody's: it may own nothing and write nowhere.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/cloud-run-sessions"]
