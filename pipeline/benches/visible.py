#!/usr/bin/env python3
"""Measures how long after an event happened a reader of the table sees it.

    pip install pyarrow
    cargo build --release -p pipeline
    tests/kafka/broker.sh start
    tests/kafka/broker.sh topic live --partitions 8
    python3 pipeline/benches/visible.py --brokers localhost:9092 --topic live --rate 500 --set kafka.batch_interval=1s

`pipeline simulate --now` sends events at an even rate, and their `ts` is the time of sending; `pipeline consume` commits them.
This program waits for each commit in the log of `events`, reads the shards that it added, and takes for each row the time
since its `ts`: from produced to readable, the producer's own batching included. The first and the last --margin seconds of the
log are left out. Give it a topic without messages.
"""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def commits(log, version):
    """Versions from `version` on as they appear, each with the time it was seen; None where there is none yet."""
    while True:
        path = log / f"{version:020}.json"
        if path.exists():
            yield time.time(), [json.loads(line) for line in path.read_text().splitlines()]
            version += 1
        else:
            yield None


def wait_for(condition, process, seconds=60):
    until = time.time() + seconds
    while not condition():
        if process.poll() is not None or time.time() > until:
            raise SystemExit("pipeline consume did not start; run it by hand to see why")
        time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=int, required=True, help="messages a second")
    parser.add_argument("--seconds", type=int, default=120, help="how long they come")
    parser.add_argument("--margin", type=float, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for consume")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"))
    args = parser.parse_args()

    directory = pathlib.Path(tempfile.mkdtemp(prefix="visible-"))
    program = str(args.programs / "pipeline")
    settings = [f"kafka.brokers={args.brokers}", f"kafka.topic={args.topic}", f"kafka.group=visible-{time.time_ns()}"]
    line = [program, "consume", "--root", str(directory / "root")]
    for setting in [*settings, *args.set]:
        line += ["--set", setting]
    log = directory / "root" / "events" / "_delta_log"
    consumer = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    try:
        # The first commit says where reading of each partition began.
        wait_for(lambda: (log / f"{0:020}.json").exists(), consumer)
        events = args.rate * args.seconds
        started = time.time()
        producer = subprocess.Popen(
            [program, "simulate", "--events", str(events), "--topic", args.topic, "--brokers", args.brokers, "--out",
             str(directory / "simulated"), "--rate", str(args.rate), "--now"], stderr=subprocess.DEVNULL)
        ages, made, ended = [], 0, None
        for commit in commits(log, 1):
            if commit is None:
                if ended is None and producer.poll() is not None:
                    ended = time.time()
                if ended is not None and time.time() > ended + args.margin:
                    break
                time.sleep(0.005)
                continue
            seen, actions = commit
            made += 1
            for action in actions:
                if "add" in action:
                    ts = pq.read_table(log.parent / action["add"]["path"], columns=["ts"])["ts"].cast(pa.int64())
                    ages.append((seen, ts))
        ticks = sum(map(int, pathlib.Path(f"/proc/{consumer.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
        consumer.send_signal(signal.SIGTERM)
        consumer.wait()
    finally:
        consumer.kill()
        shutil.rmtree(directory)
    low, high = 1e3 * (started + args.margin), 1e3 * (ended - args.margin)
    seconds = []
    for seen, ts in ages:
        kept = ts.filter(pc.and_(pc.greater_equal(ts, int(low)), pc.less(ts, int(high))))
        seconds.append(pc.divide(pc.subtract(1e3 * seen, kept), 1e3))
    seconds = pa.chunked_array([chunk for array in seconds for chunk in array.chunks], pa.float64())
    p50, p99 = pc.quantile(seconds, q=[0.5, 0.99]).to_pylist()
    print(f"{len(seconds)} events at {args.rate}/s, {made} commits: visible after p50 {p50:.2f} s, p99 {p99:.2f} s, at most "
          f"{pc.max(seconds).as_py():.2f} s; consume used {ticks / 100 / (ended - started):.0%} of a core")


if __name__ == "__main__":
    main()
