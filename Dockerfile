# The image of `jobs/schedules/kubernetes`: docker build -t registry.example.com/climber-pilot:0.1.0 .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# TLS for Kafka needs nothing more than this: add `--features pipeline/tls`.
RUN cargo build --release --locked --bin climber --bin pipeline --bin trainer

FROM debian:bookworm-slim
# For schema registries, and brokers with TLS: no client is made without roots to trust.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin climber-pilot \
    && mkdir -p /var/lib/climber-pilot /scratch \
    && chown 10001:10001 /var/lib/climber-pilot /scratch
COPY --from=build /src/target/release/climber /src/target/release/pipeline /src/target/release/trainer /usr/local/bin/
COPY --from=build /src/LICENSE /usr/share/doc/climber-pilot/
# On a disk: what does not fit into memory goes there.
ENV TMPDIR=/scratch
USER 10001:10001
WORKDIR /var/lib/climber-pilot
CMD ["climber", "--help"]
