# perch, and the lab's sample services (`perch backend`), in one image of a C library and one program.
#   docker build -t perch:0.1.0 .       (or podman, buildah)

FROM docker.io/library/rust:1.95-slim-bookworm AS build
# aws-lc, the TLS provider, is C.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin perch \
    && objcopy --strip-debug target/release/perch /perch

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /perch /usr/local/bin/perch
# nonroot, by number: Kubernetes checks runAsNonRoot against it.
USER 65532:65532
EXPOSE 8443 9900
ENTRYPOINT ["/usr/local/bin/perch"]
CMD ["serve", "--config", "/etc/perch/perch.yaml"]
