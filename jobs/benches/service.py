#!/usr/bin/env python3
"""Runs a service day by day with `climber daily`, and beside it trains a model from scratch on the log up to each day.

    cargo build --release
    python3 jobs/benches/service.py simulated --out runs/service --days 60 --compare 30
    python3 jobs/benches/service.py movielens --out runs/slices --slices 20 \\
        --ratings tests/data/movielens-latest-small/ratings.csv --movies tests/data/movielens-latest-small/movies.csv

`simulated` is a log by `pipeline simulate` (users who return, tastes that drift, items released every day), whose catalogue of
a day holds what was released by then. `movielens` is a file of ratings cut by time into slices of equal size, each taken for a
day; most of each slice is new users.

Each of the last days is predicted twice before it is learned: by the model that `climber daily` had published, and by one trained
from scratch on all days before, with the same settings, both stopped on validation. The answers (ranks of every new event, as
served, seen items filtered) are compared pair by pair, with the 95 % interval of the bootstrap over users; so is the time of
training: the step `train` of `climber daily`, which is a refresh or, when it is due, a full training, and `trainer pretrain`.

OUT/service is the root, OUT/ranks the answers, OUT/service.json the results; the same command goes on where it was interrupted.
Needs Python with pyarrow.
"""

import argparse
import datetime
import json
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pyarrow.parquet as parquet

FIRST = datetime.date(2026, 1, 1)
SETTINGS = {
    "simulated": ["sequences.split=none", "sequences.guard_share=0.1", "sequences.shards=2", "pretrain.epochs=12",
                  "pretrain.patience=2", "pretrain.schedule=constant", "pretrain.learning_rate=1e-3",
                  "evaluate.baselines=false", "gate.min_targets=20"],
    "movielens": ["sequences.split=none", "sequences.guard_share=0.1", "sequences.shards=2", "pretrain.epochs=20",
                  "pretrain.patience=3", "pretrain.validate_every=1", "pretrain.schedule=constant",
                  "pretrain.learning_rate=1e-3", "evaluate.baselines=false", "refresh.batch_size=32", "gate.min_targets=20"],
}


def dates(days):
    return [(FIRST + datetime.timedelta(days=day)).isoformat() for day in range(days)]


def simulated(args, out):
    """The log of a simulated service, and the catalogue of each day."""
    log = out / "log"
    line = [args.bin / "pipeline", "simulate", "--events", args.events, "--users", args.users, "--items", args.items,
            "--days", args.days, "--start", FIRST.isoformat(), "--out", log]
    if not (log / "items.jsonl").exists():
        subprocess.run([str(part) for part in line], check=True, capture_output=True)
    items = [(json.loads(line)["release_ts"], line) for line in (log / "items.jsonl").read_text().splitlines()]
    (log / "items").mkdir(exist_ok=True)
    for date in dates(args.days):
        end = datetime.datetime.fromisoformat(date).replace(tzinfo=datetime.UTC) + datetime.timedelta(days=1)
        known = [line for release, line in items if release < end.timestamp() * 1000]
        (log / "items" / f"{date}.jsonl").write_text("\n".join(known) + "\n")
    config = (log / "simulated.toml").read_text()
    config = config.replace('"events/*.jsonl"', '"events/{date}.jsonl"').replace('"items.jsonl"', '"items/{date}.jsonl"')
    (log / "service.toml").write_text(config)
    return {json.loads(line)["item_id"]: release for release, line in items}


def movielens(args, out):
    """The ratings by time, in slices; the catalogue is the same every day."""
    log = out / "log"
    (log / "events").mkdir(parents=True, exist_ok=True)
    header, *rows = args.ratings.read_text().splitlines()
    rows.sort(key=lambda row: int(row.rsplit(",", 1)[1]))
    for day, date in enumerate(dates(args.slices)):
        part = rows[len(rows) * day // args.slices:len(rows) * (day + 1) // args.slices]
        (log / "events" / f"{date}.csv").write_text("\n".join([header, *part]) + "\n")
    shutil.copy(args.movies, log / "movies.csv")
    config = (pathlib.Path(__file__).parents[2] / "config" / "movielens.toml").read_text()
    for old, new in (("../tests/data/movielens-latest-small/ratings.csv", "events/{date}.csv"),
                     ("../tests/data/movielens-latest-small/movies.csv", "movies.csv")):
        config = config.replace(old, new)
    (log / "service.toml").write_text(config)
    return {}


class Service:
    def __init__(self, args, out):
        self.args, self.out, self.root = args, out, out / "service"
        self.settings = SETTINGS[args.log] + args.set
        (out / "ranks").mkdir(parents=True, exist_ok=True)

    def run(self, program, command, *arguments, codes=(0,)):
        line = [self.args.bin / program, command, *arguments, "--config", self.out / "log" / "service.toml", "--root", self.root,
                "--json", *[part for setting in self.settings for part in ("--set", setting)]]
        started = time.monotonic()
        done = subprocess.run([str(part) for part in line], capture_output=True, text=True)
        if done.returncode not in codes:
            sys.exit(f"{' '.join(map(str, line))}\n{done.stderr[-4000:]}")
        return json.loads(done.stdout), time.monotonic() - started

    def ranks(self, model, name):
        """Keeps the ranks of what was new, which the next evaluation of the model would replace."""
        kept = self.out / "ranks" / f"{name}.parquet"
        shutil.copy(self.root / "models" / model / "ranks-prequential.parquet", kept)
        return kept

    def indexes(self):
        """Item → index, from the newest version of `items`."""
        live = {}
        for entry in sorted((self.root / "items" / "_delta_log").glob("*.json")):
            for action in map(json.loads, entry.read_text().splitlines()):
                if "add" in action:
                    live[action["add"]["path"]] = None
                if "remove" in action:
                    live.pop(action["remove"]["path"], None)
        found = {}
        for path in live:
            table = parquet.read_table(self.root / "items" / path, columns=["item_id", "item_index"])
            found.update(zip(table["item_id"].to_pylist(), table["item_index"].to_pylist()))
        return found


def answers(path):
    """(user, item, time, rank as served among unseen items) of every new event that took part."""
    table = parquet.read_table(path, columns=["user_id", "item_id", "ts", "as_served_unseen_rank"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names))
    return [(user, item, ts.timestamp() * 1000, rank) for user, item, ts, rank in rows if rank is not None]


def hit(rank, k):
    return 0 < rank <= k


def interval(pairs, resamples=2000, seed=1):
    """Mean of daily means is not what is bootstrapped: users with their events of all days are. `pairs`: (user, day, a, b)."""
    days = sorted({day for _, day, _, _ in pairs})
    place = {day: i for i, day in enumerate(days)}
    users = {}
    for user, day, a, b in pairs:
        counts = users.setdefault(user, [[0, 0, 0] for _ in days])[place[day]]
        counts[0] += 1
        counts[1] += a
        counts[2] += b
    sparse = [[(day, *count) for day, count in enumerate(counts) if count[0]] for counts in users.values()]

    def means(drawn):
        sums = [[0, 0, 0] for _ in days]
        for counts in drawn:
            for day, n, a, b in counts:
                sums[day][0] += n
                sums[day][1] += a
                sums[day][2] += b
        rates = [(a / n, b / n) for n, a, b in sums if n]
        return sum(a for a, _ in rates) / len(rates), sum(b for _, b in rates) / len(rates)

    generator = random.Random(seed)
    mean = means(sparse)
    drawn = (means(generator.choices(sparse, k=len(sparse))) for _ in range(resamples))
    ratios = sorted(a / b if b else float("inf") for a, b in drawn)
    low, high = ratios[int(resamples * 0.025)], ratios[int(resamples * 0.975)]
    return {"refreshed": mean[0], "scratch": mean[1], "ratio": mean[0] / mean[1] if mean[1] else None, "low": low, "high": high}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", choices=SETTINGS)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--compare", type=int, default=30, help="the last days that are compared with training from scratch")
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--items", type=int, default=3_600)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--ratings", type=pathlib.Path)
    parser.add_argument("--movies", type=pathlib.Path)
    parser.add_argument("--set", action="append", default=[], help="a setting of the configuration, as of the programs")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    releases = (simulated if args.log == "simulated" else movielens)(args, out)
    if args.log == "movielens":
        args.days = args.slices
    service = Service(args, out)
    compared = dates(args.days)[-args.compare:]
    state_path = out / "days.json"
    days = json.loads(state_path.read_text()) if state_path.exists() else {}
    before = None
    for date in dates(args.days):
        if date in days:
            before = date
            continue
        published = service.root / "models" / "published.json"
        served = json.loads(published.read_text())["served"] if published.exists() else None
        record, seconds = service.run("climber", "daily", "--date", date, codes=(0, 4))
        day = {"seconds": seconds, "train_seconds": record["train"]["seconds"], "kind": record["plan"]["training"]["kind"],
               "published": record["publish"]["number"], "version": record["sequences"]["events_version"]}
        indexes = service.indexes()
        known = out / "indexes.json"
        old = json.loads(known.read_text()) if known.exists() else {}
        day["items"], day["moved"] = len(indexes), sum(indexes.get(item) != index for item, index in old.items())
        known.write_text(json.dumps(indexes))
        if date in compared and before is not None and f"scratch-{before}" in days[before].get("models", []):
            # What came on this day, whether or not the model of the day before was published.
            service.run("pipeline", "build-sequences", "--since", str(days[before]["version"]))
            for arm, model in (("refreshed", served), ("scratch", f"scratch-{before}")):
                service.run("trainer", "evaluate", "--model", model, "--split", "prequential")
                found = answers(service.ranks(model, f"{arm}-{date}"))
                day[arm], day["targets"] = sum(hit(rank, 10) for *_, rank in found) / max(1, len(found)), len(found)
            shutil.rmtree(service.root / "models" / f"scratch-{before}")
        following = (datetime.date.fromisoformat(date) + datetime.timedelta(days=1)).isoformat()
        if following in compared:
            _, day["scratch_seconds"] = service.run("trainer", "pretrain", "--name", f"scratch-{date}")
            day["models"] = [f"scratch-{date}"]
        days[date] = day
        state_path.write_text(json.dumps(days, indent=1))
        shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in day.items() if key != "models"}
        print(date, json.dumps(shown), flush=True)
        before = date

    pairs, young = [], []
    for date in compared:
        paths = [out / "ranks" / f"{arm}-{date}.parquet" for arm in ("refreshed", "scratch")]
        if not all(path.exists() for path in paths):
            continue
        refreshed, scratch = map(answers, paths)
        assert [row[:3] for row in refreshed] == [row[:3] for row in scratch], f"{date}: other events"
        for (user, item, ts, ours), (*_, theirs) in zip(refreshed, scratch):
            pairs.append((user, date, hit(ours, 10), hit(theirs, 10)))
            if item in releases and ts - releases[item] < 7 * 86_400_000:
                young.append((user, date, hit(ours, 10), hit(theirs, 10), ts - releases[item] < 2 * 86_400_000))
    answered = [days[date] for date in compared]
    trained = [days[date] for date in dates(args.days)[-args.compare - 1:-1] if "scratch_seconds" in days[date]]
    result = {
        "quality": interval(pairs) if pairs else None,
        "items_younger_than_7_days": interval([row[:4] for row in young]) if young else None,
        "of_them_younger_than_2_days": interval([row[:4] for row in young if row[4]]) if any(r[4] for r in young) else None,
        "train_seconds": sum(day["train_seconds"] for day in trained),
        "scratch_seconds": sum(day["scratch_seconds"] for day in trained),
        "refused": sum(day["published"] is None for day in days.values()),
        "indexes_moved": sum(day["moved"] for day in days.values()),
        "items": [day["items"] for day in days.values()],
        "series": [[date, day.get("refreshed"), day.get("scratch")] for date, day in zip(compared, answered)],
    }
    result["time"] = result["train_seconds"] / max(1e-9, result["scratch_seconds"])
    (out / "service.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


main()
