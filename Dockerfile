FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build

# First the dependencies, which change less often than the sources.
COPY Cargo.toml Cargo.lock ./
COPY profile/build profile/service.profdata profile/
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
    && profile/build

# A static program, which needs no other files than the certificates below. It resolves host names with DNS and
# /etc/hosts: glibc has both built in since version 2.34.
COPY src src
COPY templates templates
RUN touch src/lib.rs src/main.rs \
    && profile/build \
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
