#!/usr/bin/env python3
"""Measures one consumer into committed shards beside a bare loop of librdkafka that throws its messages away.

    cargo build --release -p pipeline --bins --example bare_consumer
    tests/kafka/broker.sh start
    tests/kafka/broker.sh topic bench --partitions 8
    target/release/pipeline simulate --out /tmp/simulated --events 2000000 --topic bench --brokers localhost:9092
    python3 pipeline/benches/consume.py --brokers localhost:9092 --topic bench

Both read the topic from its beginning to its end, in turn, each in a process of its own, consume into a new root each time.
Printed: messages and bytes a second (wall time of the whole processes; of the bare one's loop alone beside it), the ratio of
each pair, consume's CPU seconds by stage and its peak resident memory.

  poll          the thread that polls, copies messages into chunks and answers the group
  rdk:*         librdkafka's own threads: fetching, decompressing
  assemble      JSON to columns
  pipeline      shards and commits
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TICKS = 100  # of /proc, a second


def stages(pid):
    """CPU seconds by the name of the thread, so far."""
    seconds = {}
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*"):
        try:
            name = (task / "comm").read_text().strip()
            fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = "rdk:*" if name.startswith("rdk:") else name
        seconds[name] = seconds.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


def peak(pid):
    """Peak resident memory in MiB, so far."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)


def consume(args, root):
    line = [str(args.programs / "pipeline"), "consume", "--once", "--json", "--root", str(root)]
    settings = [f"kafka.brokers={args.brokers}", f"kafka.topic={args.topic}", f"kafka.group=bench-{time.time_ns()}"]
    for setting in [*settings, *args.set]:
        line += ["--set", setting]
    started = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    cpu, memory = {}, 0.0
    while process.poll() is None:
        for name, seconds in stages(process.pid).items():
            cpu[name] = max(seconds, cpu.get(name, 0.0))
        memory = max(memory, peak(process.pid))
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit("pipeline consume failed; run it by hand to see why: " + " ".join(line))
    report = json.loads(process.stdout.read())
    return time.monotonic() - started, report, cpu, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default="localhost:9092")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for consume")
    parser.add_argument("--programs", type=pathlib.Path, default=pathlib.Path("target/release"))
    args = parser.parse_args()

    ratios, rates = [], []
    for turn in range(args.rounds):
        started = time.monotonic()
        bare = json.loads(subprocess.check_output(
            [str(args.programs / "examples" / "bare_consumer"), args.brokers, args.topic]))
        bare_seconds = time.monotonic() - started
        directory = pathlib.Path(tempfile.mkdtemp(prefix="consume-"))
        try:
            seconds, report, cpu, memory = consume(args, directory)
            stored = sum(file.stat().st_size for file in directory.rglob("*.parquet"))
        finally:
            shutil.rmtree(directory)
        if report["messages"] != bare["messages"]:
            sys.exit(f"consume read {report['messages']} messages and the bare loop {bare['messages']}")
        rate, bare_rate = report["messages"] / seconds, bare["messages"] / bare_seconds
        ratios.append(rate / bare_rate)
        rates.append(rate)
        size = bare["bytes"] / bare["messages"]
        print(f"{turn + 1}: bare {bare_rate:,.0f}/s {bare_rate * size / 1e6:.0f} MB/s (its loop "
              f"{bare['messages'] / bare['seconds']:,.0f}/s); consume {rate:,.0f}/s "
              f"{rate * size / 1e6:.0f} MB/s, {rate / bare_rate:.0%}; {report['commits']} commits, "
              f"{stored / report['messages']:.1f} bytes a message stored; peak {memory:.0f} MiB")
        print("   CPU seconds: " + ", ".join(f"{name} {s:.2f}" for name, s in sorted(cpu.items(), key=lambda c: -c[1])))
    print(f"median: {statistics.median(rates):,.0f} messages/s, {statistics.median(ratios):.0%} of the bare loop")


if __name__ == "__main__":
    main()
