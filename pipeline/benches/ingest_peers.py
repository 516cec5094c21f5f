#!/usr/bin/env python3
"""`pipeline ingest` beside DuckDB and Polars, in turn, on the same log of the simulator.

    python3 pipeline/benches/ingest_peers.py --pipeline target/release/pipeline --log DIR [--format parquet] ...

`--log` is the output of `pipeline simulate --out DIR` (its bad and repeated records included). Each side reads all
files, keeps one event of each `event_id`, keeps the rejected rows apart, and writes zstd Parquet by date. The peers do
less: they write neither where a row came from nor an index of items, and keep any of the equal rows, not the first.

Prints for each side the median of `--repeats` runs: seconds, processor seconds, the peak of resident memory, and
`pipeline`'s ratio to each peer. The events are compared once, row by row. Lines of text that a peer cannot read at all
(torn JSON, text that is not UTF-8) are skipped by DuckDB, and stop Polars on JSON Lines: `--sides pipeline,duckdb`.
Needs the Python packages duckdb and polars.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# The rules of `[events]` in the simulator's configuration, in SQL.
LENGTH = "strlen(user_id) + strlen(item_id) + strlen(action) + coalesce(strlen(request_id), 0) + strlen(event_id)"
IS_EVENT = f"""coalesce(user_id <> '' AND item_id <> '' AND action <> '' AND ts IS NOT NULL
    AND ts >= TIMESTAMPTZ '1971-01-01 00:00:00+00' AND ts < TIMESTAMPTZ '2100-01-01 00:00:00+00'
    AND (value IS NULL OR isfinite(value)) AND {LENGTH} <= 4096, false)"""
COLUMNS = "event_id, user_id, item_id, ts, request_id, request_ts, action, value"
TYPES = {"event_id": "VARCHAR", "user_id": "VARCHAR", "item_id": "VARCHAR", "ts": "BIGINT", "request_id": "VARCHAR",
         "request_ts": "BIGINT", "action": "VARCHAR", "value": "VARCHAR"}


def files(log, kind):
    found = sorted(str(path) for path in (log / "events").iterdir() if path.name.endswith("." + kind))
    if not found:
        sys.exit(f"no {kind} files in {log / 'events'}")
    return found


def duckdb_ingest(log, kind, out, memory):
    import duckdb

    db = duckdb.connect()
    db.sql("SET TimeZone = 'UTC'; SET threads = 2; SET preserve_insertion_order = false")
    db.sql(f"SET temp_directory = '{out}.tmp'")
    if memory:
        db.sql(f"SET memory_limit = '{memory}'")
    paths = files(log, kind)
    if kind == "parquet":
        source = f"read_parquet({paths})"
    else:
        # Epoch milliseconds and numbers come as text where a bad record may stand; each cast fails to NULL.
        wide = {name: "VARCHAR" for name in TYPES}
        reader = (
            f"read_csv({paths}, header = true, columns = {wide}, null_padding = true, strict_mode = false, ignore_errors = true)"
            if kind.startswith("csv")
            else f"read_json({paths}, format = 'newline_delimited', columns = {wide}, ignore_errors = true)"
        )
        source = f"""(SELECT event_id, user_id, item_id, make_timestamptz(TRY_CAST(ts AS BIGINT) * 1000) AS ts, request_id,
            make_timestamptz(TRY_CAST(request_ts AS BIGINT) * 1000) AS request_ts, action,
            CASE WHEN value IS NULL OR value = '' THEN NULL ELSE coalesce(TRY_CAST(value AS DOUBLE), 'inf') END AS value
            FROM {reader})"""
    db.sql(
        f"""COPY (SELECT DISTINCT ON (event_id) {COLUMNS}, CAST(ts AS DATE) AS event_date FROM {source} WHERE {IS_EVENT})
        TO '{out}/events' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (event_date))"""
    )
    db.sql(f"COPY (SELECT * FROM {source} WHERE NOT {IS_EVENT}) TO '{out}/rejected.parquet' (COMPRESSION zstd)")


def polars_ingest(log, kind, out, _memory):
    import polars as pl

    paths = files(log, kind)
    text = {name: pl.String for name in TYPES}
    if kind == "parquet":
        rows = pl.scan_parquet(paths)
    elif kind.startswith("csv"):
        rows = pl.scan_csv(paths, schema=text, truncate_ragged_lines=True, ignore_errors=True)
    else:
        rows = pl.scan_ndjson(paths, schema=text, ignore_errors=True)
    if kind != "parquet":
        instant = lambda name: pl.from_epoch(pl.col(name).cast(pl.Int64, strict=False), "ms").dt.replace_time_zone("UTC")
        value = pl.col("value").replace("", None)
        rows = rows.with_columns(
            instant("ts"), instant("request_ts"),
            pl.when(value.is_null()).then(None)
            .otherwise(value.cast(pl.Float64, strict=False).fill_null(float("inf"))).alias("value"),
        )
    size = lambda name: pl.col(name).str.len_bytes().fill_null(0)
    time = lambda year: pl.datetime(year, 1, 1, time_zone="UTC")
    is_event = (
        (size("user_id") > 0) & (size("item_id") > 0) & (size("action") > 0) & pl.col("ts").is_not_null()
        & (pl.col("ts") >= time(1971)) & (pl.col("ts") < time(2100))
        & (pl.col("value").is_null() | pl.col("value").is_finite())
        & (sum(size(name) for name in ["user_id", "item_id", "action", "request_id", "event_id"]) <= 4096)
    ).fill_null(False)
    accepted = (
        rows.filter(is_event).unique(subset=["event_id"], keep="any")
        .with_columns(pl.col("ts").dt.date().alias("event_date"))
    )
    os.makedirs(f"{out}/events")
    pl.collect_all([
        accepted.sink_parquet(
            pl.PartitionBy(f"{out}/events", key="event_date", include_key=False), compression="zstd", lazy=True, mkdir=True
        ),
        rows.filter(~is_event).sink_parquet(f"{out}/rejected.parquet", compression="zstd", lazy=True),
    ], engine="streaming")


def run(command):
    """Seconds, processor seconds and peak bytes of a process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if os.waitstatus_to_exitcode(status) != 0:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed: {said.read().decode()}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def answers(side, out):
    """The number of events, a sum of hashes of their rows, and the number of rejected rows."""
    import duckdb

    db = duckdb.connect()
    db.sql("SET TimeZone = 'UTC'")
    rejected = f"{out}/dead_letters/*.parquet" if side.startswith("pipeline") else f"{out}/rejected.parquet"
    row = f"""hash(event_id, user_id, item_id, epoch_ms(ts), request_id, epoch_ms(request_ts), action,
        CAST(value AS DOUBLE), CAST(event_date AS VARCHAR))"""
    counted = db.sql(
        f"SELECT count(*), sum({row}::HUGEINT) FROM read_parquet('{out}/events/*/*.parquet', hive_partitioning = true)"
    ).fetchall()[0]
    return *counted, db.sql(f"SELECT count(*) FROM read_parquet('{rejected}')").fetchall()[0][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pipeline", action="append", help="the program; given twice, both builds take turns")
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--format", default="parquet", help="the files' ending: parquet, csv, csv.gz, jsonl, jsonl.gz")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/bench-ingest"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", help="of all sides; by default each one's own choice")
    parser.add_argument("--sides", default="pipeline,duckdb,polars")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    log, out = args.log.resolve(), args.out.resolve()
    if args.side:
        return {"duckdb": duckdb_ingest, "polars": polars_ingest}[args.side](log, args.format, out, args.memory)

    import duckdb
    import polars

    print(f"DuckDB {duckdb.__version__}, Polars {polars.__version__}, {os.cpu_count()} cores; {args.format}, "
          f"{sum(os.path.getsize(path) for path in files(log, args.format)) / 1e6:,.0f} MB")
    sides = {}
    for side in args.sides.split(","):
        if side != "pipeline":
            memory = ["--memory", args.memory] if args.memory else []
            sides[side] = [sys.executable, __file__, "--log", str(log), "--format", args.format, "--out", str(out / side),
                           "--side", side, *memory]
            continue
        for number, program in enumerate(args.pipeline or sys.exit("--pipeline is missing"), 1):
            name = "pipeline" if number == 1 else f"pipeline {number}"
            memory = ["--memory", args.memory] if args.memory else []
            sides[name] = [program, "ingest", "--config", str(log / "simulated.toml"), "--root", str(out / name), "--json",
                           *memory, "--events", *files(log, args.format)]
    runs, found = {side: [] for side in sides}, {}
    for repeat in range(args.repeats):
        for side, command in sides.items():
            shutil.rmtree(out / side, ignore_errors=True)
            (out / side).mkdir(parents=True)
            runs[side].append(run(command))
            if repeat == 0:
                found[side] = answers(side, out / side)
            shutil.rmtree(out / side)
    print(f"{'side':12} {'s':>7} {'CPU s':>7} {'peak MB':>8} {'s / ours':>9}   events, rejected")
    ours = statistics.median(run[0] for run in runs[next(iter(runs))])
    for side in sides:
        seconds, cpu, peak = (statistics.median(run[n] for run in runs[side]) for n in range(3))
        print(f"{side:12} {seconds:7.2f} {cpu:7.2f} {peak / 1e6:8.0f} {seconds / ours:9.2f}   "
              f"{found[side][0]:,}, {found[side][2]:,}")
    events = {answer[:2] for answer in found.values()}
    print("the events are equal" if len(events) == 1 else f"THE EVENTS DIFFER: {found}")


if __name__ == "__main__":
    main()
