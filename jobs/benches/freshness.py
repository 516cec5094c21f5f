#!/usr/bin/env python3
"""Measures how long after an event happened a model is served that has learned from it.

    pip install pyarrow
    cargo build --release
    tests/kafka/broker.sh start
    tests/kafka/broker.sh topic fresh --partitions 8
    python3 jobs/benches/freshness.py --brokers localhost:9092 --topic fresh --rate 500 --seconds 600

First a simulated month is ingested and `climber daily` publishes a model. Then `pipeline simulate --now` sends events at an even
rate (their `ts` is the time of sending), `pipeline consume` commits them, and `climber refresh` follows. For each publication, this
program takes the time since `ts` of every event that its base was the first to learn of. The first --margin seconds and what
nobody had learned at the end are left out; the latter is counted. Give it a topic without messages.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SETTINGS = ["sequences.split=none", "sequences.guard_share=0.05", "sequences.shards=2", "pretrain.epochs=6",
            "pretrain.patience=2", "pretrain.schedule=constant", "pretrain.learning_rate=1e-3", "evaluate.baselines=false",
            "kafka.batch_interval=5s", "gate.min_targets=20"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=int, default=500, help="messages a second")
    parser.add_argument("--seconds", type=int, default=600, help="how long they come")
    parser.add_argument("--margin", type=float, default=60)
    parser.add_argument("--history", type=int, default=300_000, help="events of the month before")
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--items", type=int, default=3_000)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a directory that is not there yet")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all programs")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"))
    args = parser.parse_args()

    args.out.mkdir(parents=True)
    root, log = args.out / "root", args.out / "log"
    size = ["--users", args.users, "--items", args.items]
    live = [f"kafka.brokers={args.brokers}", f"kafka.topic={args.topic}", f"kafka.group=fresh-{time.time_ns()}"]
    settings = [part for setting in [*SETTINGS, *live, *args.set] for part in ("--set", setting)]

    def line(program, *words, configured=True):
        more = ["--config", log / "simulated.toml", "--root", root, *settings] if configured else []
        return [str(part) for part in [args.programs / program, *words, *more]]

    def start(name, command):
        return subprocess.Popen(command, stderr=open(args.out / f"{name}.log", "w"))

    subprocess.run(line("pipeline", "simulate", "--events", args.history, *size, "--out", log, configured=False), check=True,
                   stderr=subprocess.DEVNULL)
    started = time.time()
    with open(args.out / "daily.log", "w") as said:
        subprocess.run(line("climber", "daily", "--date", "2026-01-31"), check=True, stderr=said)
    print(f"climber daily: {time.time() - started:.0f} s", flush=True)

    published = root / "models" / "published.json"
    seen = [json.loads(published.read_text())]
    running = [start("consume", line("pipeline", "consume")), start("refresh", line("climber", "refresh"))]
    time.sleep(15)
    started = time.time()
    producer = start("simulate", line("pipeline", "simulate", "--events", args.rate * args.seconds, *size, "--topic", args.topic,
                                      "--brokers", args.brokers, "--out", args.out / "live", "--rate", args.rate, "--now",
                                      configured=False))
    running.append(producer)
    times, ended = [], None
    try:
        while ended is None or time.time() < ended + args.margin:
            if ended is None and producer.poll() is not None:
                ended = time.time()
            for process in running[:2]:
                if process.poll() is not None:
                    raise SystemExit(f"{process.args[1]} has ended; its log is in {args.out}")
            newest = json.loads(published.read_text())
            if newest["number"] != seen[-1]["number"]:
                seen.append(newest)
                times.append(time.time())
                print(f"{times[-1] - started:6.0f} s: publication {newest['number']}, events up to version "
                      f"{newest['learned_events']}", flush=True)
            time.sleep(0.1)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()

    ages, sent = [], 0
    entries = root / "events" / "_delta_log"
    versions = sorted(int(path.stem) for path in entries.glob("*.json"))
    for version in versions:
        if version <= seen[0]["learned_events"]:
            continue
        served = next((at for at, publication in zip(times, seen[1:]) if publication["learned_events"] >= version), None)
        for action in map(json.loads, (entries / f"{version:020}.json").read_text().splitlines()):
            if "add" not in action or not action["add"]["dataChange"]:
                continue
            ts = pq.read_table(root / "events" / action["add"]["path"], columns=["ts"])["ts"].cast(pa.int64())
            ts = ts.filter(pc.greater_equal(ts, int(1e3 * (started + args.margin))))
            sent += len(ts)
            if served is not None:
                ages.append(pc.divide(pc.subtract(1e3 * served, ts), 1e3))
    ages = pa.chunked_array([chunk for array in ages for chunk in array.chunks], pa.float64())
    p50, p95 = pc.quantile(ages, q=[0.5, 0.95]).to_pylist()
    refreshes = [json.loads(entry) for entry in (root / "jobs" / "refresh" / "history.jsonl").read_text().splitlines() if entry]
    took = sorted(refresh["seconds"] for refresh in refreshes)
    print(f"{len(ages)} events at {args.rate}/s, {len(seen) - 1} publications: learned and served after p50 {p50:.1f} s, p95 "
          f"{p95:.1f} s, at most {pc.max(ages).as_py():.1f} s; {sent - len(ages)} not yet learned at the end; a refresh took "
          f"{took[len(took) // 2]:.1f} s (median), {took[-1]:.1f} s (longest); "
          f"{sum(refresh['outcome'] == 'refused' for refresh in refreshes)} refused")


if __name__ == "__main__":
    main()
