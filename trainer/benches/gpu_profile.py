#!/usr/bin/env python3
"""Time by kernel, and how near each comes to the card's limits, from what ncu wrote of one step.

    python3 trainer/benches/gpu_profile.py gpu-profile.csv

Prints a table to stderr and one JSON object: for each kernel, by the time that all its launches took, their number, microseconds,
share of the step, and the share of the memory's and of the multiprocessors' peak throughput, means weighted by time.
"""

import collections
import csv
import json
import sys

TIME = "gpu__time_duration.sum"
MEMORY = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
MULTIPROCESSORS = "sm__throughput.avg.pct_of_peak_sustained_elapsed"
# ncu chooses the unit by the size.
MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}


def launches(lines):
    """{launch: (kernel, {metric: value})}"""
    # What the program printed comes before the table.
    rows = list(csv.reader(line for line in lines if line.startswith('"')))
    if not rows:
        sys.exit(f"{sys.argv[1]}: ncu measured nothing; its messages say why")
    header = rows[0]
    column = {name: header.index(name) for name in ("ID", "Kernel Name", "Metric Name", "Metric Unit", "Metric Value")}
    found = {}
    for row in rows[1:]:
        kernel, metrics = found.setdefault(row[column["ID"]], (row[column["Kernel Name"]], {}))
        try:
            value = float(row[column["Metric Value"]].replace(",", ""))
        except ValueError:
            value = 0.0  # n/a
        if row[column["Metric Name"]] == TIME:
            value *= MICROSECONDS[row[column["Metric Unit"]]]
        metrics[row[column["Metric Name"]]] = value
    return found.values()


def main():
    with open(sys.argv[1]) as lines:
        found = launches(lines)
    kernels = collections.defaultdict(lambda: {"launches": 0, "us": 0.0, "memory": 0.0, "multiprocessors": 0.0})
    for name, metrics in found:
        kernel = kernels[name]
        kernel["launches"] += 1
        kernel["us"] += metrics[TIME]
        kernel["memory"] += metrics[TIME] * metrics[MEMORY] / 100
        kernel["multiprocessors"] += metrics[TIME] * metrics[MULTIPROCESSORS] / 100
    total = sum(kernel["us"] for kernel in kernels.values())
    rows = []
    for name, kernel in sorted(kernels.items(), key=lambda item: -item[1]["us"]):
        time = max(kernel["us"], 1e-9)
        rows.append({
            "kernel": name, "launches": kernel["launches"], "us": kernel["us"], "share": kernel["us"] / total,
            "memory": kernel["memory"] / time, "multiprocessors": kernel["multiprocessors"] / time,
        })
    print(f"{'kernel':60} {'n':>4} {'us':>9} {'share':>6} {'memory':>7} {'SMs':>5}", file=sys.stderr)
    for row in rows:
        print(f"{row['kernel'].split('(')[0][:60]:60} {row['launches']:>4} {row['us']:>9.1f} {row['share']:>6.1%} "
              f"{row['memory']:>7.0%} {row['multiprocessors']:>5.0%}", file=sys.stderr)
    print(json.dumps({"step_us": total, "kernels": rows}, indent=1))


if __name__ == "__main__":
    main()
