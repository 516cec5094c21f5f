#!/usr/bin/env python3
"""How fast `pipeline ingest` reads a log, and in how much memory.

    python3 pipeline/benches/ingest.py --pipeline target/release/pipeline [--rows 3000000] [--memory 256MiB] ...

Writes one log of `--rows` events as CSV and JSON Lines into `--directory` (kept, and used again by the next
run), and reads each into an empty root; then the Parquet shards of the first root into another one. Prints for
each format the median of `--repeats` runs: seconds of wall time, rows and megabytes (of the input as stored) a
second, processor seconds (which other work on the
machine changes less), and the largest peak of resident memory. Give `--pipeline` twice to compare two builds:
they take turns on the same files, and the ratio of rows a second is printed. Input comes from the file cache
once the first run has read it.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import time

FIELDS = ["event_id", "user_id", "item_id", "ts", "request_id", "request_ts", "action", "value"]
FIRST_MS = 1_760_000_000_000
DAY_MS = 86_400_000
ACTIONS = ["play", "click", "like", "skip"]


def events(rows, days):
    """Events in the order of their time, item popularity falling with the index."""
    draw = random.Random(1).random
    for n in range(rows):
        ts = FIRST_MS + n * days * DAY_MS // rows
        user = f"u{int(draw() * 200_000)}"
        item = f"item{int(draw() * draw() * 50_000)}"
        yield [
            f"e{n:012}", user, item, ts, f"r{ts // 60_000:x}-{user}", ts - int(draw() * 5_000),
            ACTIONS[int(draw() * 4)], round(draw() * 300, 1),
        ]


def write_logs(directory, rows, days):
    """The same events as CSV and JSON Lines; files of an earlier run are used again."""
    paths = {kind: directory / f"log-{rows}-{days}.{kind}" for kind in ("csv", "jsonl")}
    if not all(path.exists() for path in paths.values()):
        parts = {kind: path.with_suffix(path.suffix + ".part") for kind, path in paths.items()}
        with open(parts["csv"], "w") as csv, open(parts["jsonl"], "w") as jsonl:
            csv.write(",".join(FIELDS) + "\n")
            for row in events(rows, days):
                csv.write(",".join(map(str, row)) + "\n")
                jsonl.write(json.dumps(dict(zip(FIELDS, row))) + "\n")
        for kind, path in paths.items():
            parts[kind].rename(path)
    return paths


def ingest(program, paths, root, options, rows):
    """One run into an empty root: wall seconds, processor seconds, peak resident bytes."""
    shutil.rmtree(root, ignore_errors=True)
    command = [program, "ingest", "--root", root, "--json", *options, "--events", *map(str, paths)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}")
    accepted = json.loads(output)["events"]["accepted"]
    if accepted != rows:
        sys.exit(f"{accepted} events were accepted, not {rows}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pipeline", action="append", required=True, help="the program; may be given twice")
    parser.add_argument("--directory", default="target/bench-ingest", type=pathlib.Path)
    parser.add_argument("--rows", default=3_000_000, type=int)
    parser.add_argument("--days", default=30, type=int)
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("--memory", help="passed on to the last program given")
    parser.add_argument("--formats", default="csv,jsonl,parquet")
    args = parser.parse_args()

    args.directory.mkdir(parents=True, exist_ok=True)
    directory = args.directory.resolve()
    for program in args.pipeline:
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        print(program, version.stdout.strip())
    print(f"{args.rows:,} events over {args.days} days, {os.cpu_count()} cores, median of {args.repeats}")
    paths = {kind: [path] for kind, path in write_logs(directory, args.rows, args.days).items()}

    programs = list(enumerate(args.pipeline, 1))

    def options(number):
        return ["--memory", args.memory] if args.memory and number == len(programs) else []

    if "parquet" in args.formats.split(","):
        shards = directory / "shards"
        ingest(args.pipeline[-1], paths["csv"], shards, [], args.rows)
        paths["parquet"] = sorted(shards.glob("events/*/*.parquet"))

    header = f"{'format':8} {'program':>8} {'s':>7} {'rows/s':>11} {'MB/s':>7} {'CPU s':>6} {'peak MB':>8}"
    print(header)
    for kind in args.formats.split(","):
        megabytes = sum(path.stat().st_size for path in paths[kind]) / 1e6
        runs = {number: [] for number, _ in programs}
        for _ in range(args.repeats):
            for number, program in programs:
                run = ingest(program, paths[kind], directory / "root", options(number), args.rows)
                runs[number].append(run)
        medians = []
        for number, _ in programs:
            seconds, cpu = (statistics.median(run[i] for run in runs[number]) for i in (0, 1))
            peak = max(run[2] for run in runs[number]) / 1e6
            medians.append(seconds)
            print(
                f"{kind:8} {number:>8} {seconds:7.2f} {args.rows / seconds:11,.0f} {megabytes / seconds:7.1f} "
                f"{cpu:6.2f} {peak:8.0f}"
            )
        if len(medians) == 2:
            print(f"{kind:8} {'ratio':>8} {medians[0] / medians[1]:7.2f}")
    shutil.rmtree(directory / "root", ignore_errors=True)
    shutil.rmtree(directory / "shards", ignore_errors=True)


if __name__ == "__main__":
    main()
