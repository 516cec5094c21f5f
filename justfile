# The habits of this project. `just --list` shows them.

# The main job on the shipped MovieLens log: tables, model, results.
demo:
    cargo run -p jobs -- daily --config config/movielens.toml

# All tests.
test:
    cargo test --workspace

# What has to pass before a change lands.
ci:
    .ci/run

# Tests of one crate whose names contain FILTER.
unit CRATE FILTER='':
    cargo test -p {{CRATE}} --lib {{FILTER}}

# Formatting and lints.
lint:
    cargo fmt
    cargo clippy --workspace --all-targets -- -D warnings

# Licences, sources and duplicate versions of the dependencies.
deny:
    cargo deny --locked check bans licenses sources

# Any bytes to one reader, on all cores: csv, jsonl, json, avro, avro_schema, protobuf, tfrecord, configuration, run_json.
fuzz TARGET SECONDS='60':
    cargo +nightly fuzz run {{TARGET}} -- -max_total_time={{SECONDS}}

# A thousand kills and a thousand damages.
faults:
    CLIMBER_PILOT_KILLS=1000 CLIMBER_PILOT_DAMAGES=1000 cargo test --workspace --test it random_faults -- --nocapture

# Optimised programs for real data.
release:
    cargo build --release
