#!/usr/bin/env python3
"""Trains NIP, MIP and TAMIP side by side and says which predicts better as served, at t+1 … t+10 (the paper's Figure 3).

    cargo build --release
    target/release/pipeline ingest --config config/movielens.toml
    python3 trainer/benches/ablation.py --config config/movielens.toml --root runs/movielens --out runs/ablation

ROOT holds `events` and `items` of one log; they are only read. OUT becomes a root of its own: one `sequences` table, the
models, and the results, ablation.json and ablation.svg. The arms differ in nothing but:

  nip         one branch, no mask: next-item prediction
  mip         K branches, no mask: multi-item prediction
  tamip       K branches, each target predicted from what was visible Δτ before it (mask "gather")
  tamip-row   K branches, the mask inside attention (mask "row"), which leaks; not run unless named in --arms
  masked-nip  one branch, mask "gather": what the mask does alone; not run unless named in --arms

All learn from the rows of one table, select their epoch by HR@10 as served, and are asked for each user's last ten events:
first for every one of them, then with one prediction before the first (the horizon curve). As served means that no model
is shown what happened in the last Δτ before the event, nor what came by its own request, whatever it was trained with. A
model without a mask reads the last visible row, as if the next event came right after it.

For every seed and arm, models/ARM-K-SEED is trained, evaluated and compared: each arm with the first, and TAMIP with MIP,
with the 95 % intervals of the paired bootstrap over users. The same command continues where it was interrupted and
repeats nothing that is done; another --set or --max-len trains again what it concerns.

A longer log or more epochs: `pipeline simulate --out DIR --events 1000000`, and `--set pretrain.epochs=5`. Rows must be
wide enough that what Δτ hides leaves something to see: the table's numbers are printed, and --max-len widens the rows.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

# Branches (None stands for K) and mask.
ARMS = {"nip": (1, "none"), "mip": (None, "none"), "tamip": (None, "gather"), "tamip-row": (None, "row"),
        "masked-nip": (1, "gather")}
LABELS = {"nip": "NIP", "mip": "MIP", "tamip": "TAMIP", "tamip-row": "TAMIP (row)", "masked-nip": "NIP + mask"}
# The horizon curve needs the last ten events of every user.
SETTINGS = ["sequences.split=last-n", "sequences.last_n=10", "pretrain.select_by=hr-as-served"]


class Programs:
    """Runs the programs, or only says how."""

    def __init__(self, args):
        self.dry_run = args.dry_run
        self.environment = dict(os.environ)
        if args.threads:
            self.environment["RAYON_NUM_THREADS"] = str(args.threads)

    def run(self, program, command, arguments, settings):
        """Runs one command with --json: its answer and its wall seconds; its messages go on to stderr."""
        line = [program, command, *arguments, "--json"]
        for setting in settings:
            line += ["--set", setting]
        print("$", shlex.join(line), flush=True)
        if self.dry_run:
            return None, 0.0
        started = time.monotonic()
        process = subprocess.Popen(line, stdout=subprocess.PIPE, env=self.environment)
        try:
            answer = process.stdout.read()
            process.wait()
        except KeyboardInterrupt:
            # The program was told too, and writes its checkpoint.
            process.wait()
            sys.exit("interrupted; the same command continues here")
        if process.returncode != 0:
            sys.exit(f"{pathlib.Path(program).name} {command} failed (exit {process.returncode}); what it said stands "
                     "above, and the same command continues here")
        return json.loads(answer), time.monotonic() - started


def prepare(root, out):
    """Makes OUT a root with the events and items of ROOT."""
    if out == root:
        sys.exit("--out must be another directory than --root: it gets a `sequences` table of its own")
    for table in ["events", "items"]:
        if not (root / table / "_delta_log").is_dir():
            sys.exit(f"{root} has no table `{table}`; `pipeline ingest` makes it")
    out.mkdir(parents=True, exist_ok=True)
    link = out / "events"
    if not link.is_symlink() and not link.exists():
        link.symlink_to(root / "events")
    elif link.resolve() != root / "events":
        sys.exit(f"{link} is not the events of {root}; name another --out")
    # `build-sequences` gives new items an index, so that the table is copied. A copy that was not finished is none.
    if not (out / "items").is_dir():
        shutil.rmtree(out / "items.copying", ignore_errors=True)
        shutil.copytree(root / "items", out / "items.copying")
        (out / "items.copying").rename(out / "items")
    for version in sorted((root / "items" / "_delta_log").glob("*.json")):
        copy = out / "items" / "_delta_log" / version.name
        if not copy.is_file() or copy.read_bytes() != version.read_bytes():
            sys.exit(f"{out / 'items'} is a copy of other items than {root / 'items'} has now; name another --out")


def describe(built):
    """What decides whether the table is wide enough, in one line."""
    counts = built.get("counts")
    if counts is None:
        return f"sequences: unchanged at version {built['version']}"
    targets = counts["targets"]
    return (f"sequences: {counts['rows']} rows of {counts['users']} users; {targets['pretrain']} training targets, "
            f"{targets['validation']} of validation, {targets['test']} of the test; nothing visible before "
            f"{counts['nothing_visible']} of {counts['owned']}; {counts['rows_leave_out']} rows leave events out, "
            f"{counts['rows_short_context']} have a short context; delta_tau {built['delta_tau']}")


def interval(d):
    verdict = "above" if d["low"] > 0 else "below" if d["high"] < 0 else "no difference is shown"
    return f"{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]  {verdict}"


def summary(comparisons):
    """As served, seen items filtered: each pair's differences, as lines."""
    lines = []
    for comparison in comparisons:
        def headline(entry):
            return entry["protocol"] == "as-served" and entry["filter_seen"]
        results = [r for r in comparison["results"] if headline(r)]
        curves = {c["label"]: c for c in comparison["horizon"] if headline(c)}
        for result in results[1:]:
            pair = f"{result['label']} − {results[0]['label']}"
            lines.append(f"  {pair:<22} HR@10 of every event      {interval(result['difference']['hr_10'])}")
            curve = curves.get(result["label"])
            if curve:
                d = curve["difference"]
                for name, value in [("t+1", d["hr_10"][0]), ("t+10", d["hr_10"][-1]), ("mean", d["mean_hr_10"])]:
                    lines.append(f"  {'':<22} horizon curve, {name:<10} {interval(value)}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", required=True, help="configuration of the log and of all that the arms share")
    parser.add_argument("--root", required=True, help="directory of the tables events and items; only read")
    parser.add_argument("--out", required=True, help="directory for the sequences, the models and the results")
    parser.add_argument("--pipeline", default="target/release/pipeline", help="the program (default: %(default)s)")
    parser.add_argument("--trainer", default="target/release/trainer", help="the program (default: %(default)s)")
    parser.add_argument("--arms", default="nip,mip,tamip", help=f"of {','.join(ARMS)}; the first is what the others\n"
                        "are compared with (default: %(default)s)")
    parser.add_argument("--branches", type=int, default=2, metavar="K", help="branches of MIP and TAMIP (default: 2)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="train each arm with the seeds 1 … N (default: 3)")
    parser.add_argument("--max-len", type=int, metavar="N", help="longest row (default: the configuration's)")
    parser.add_argument("--delta-tau", metavar="TIME", help="Δτ, such as 15m (default: the configuration's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all arms; may be repeated")
    parser.add_argument("--threads", type=int, help="threads of the programs (default: all cores)")
    parser.add_argument("--plot", metavar="FILE.svg", help="default: OUT/ablation.svg")
    parser.add_argument("--json", metavar="FILE", help="default: OUT/ablation.json")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    args = parser.parse_args()
    arms = args.arms.split(",")
    if not set(arms) <= set(ARMS) or len(set(arms)) < len(arms):
        parser.error(f"--arms takes {', '.join(ARMS)}, each once")
    if args.seeds < 1 or args.branches < 2:
        parser.error("--seeds must be at least 1, --branches at least 2")
    root, out = pathlib.Path(args.root).resolve(), pathlib.Path(args.out).resolve()
    for program in [args.pipeline, args.trainer]:
        if not args.dry_run and shutil.which(program) is None:
            sys.exit(f"{program} is not there; `cargo build --release` makes it, or name it with --pipeline, --trainer")

    settings = [*SETTINGS]
    if args.max_len:
        settings.append(f"sequences.max_len={args.max_len}")
    if args.delta_tau:
        settings.append(f"sequences.delta_tau={args.delta_tau}")
    settings += args.set
    programs, common = Programs(args), ["--config", args.config, "--root", str(out)]
    if not args.dry_run:
        prepare(root, out)
    built, _ = programs.run(args.pipeline, "build-sequences", common, settings)
    if built:
        print(describe(built), flush=True)

    # One seed after the other: what is done first can be compared first.
    names, runs = {arm: [] for arm in arms}, {}
    for seed in range(1, args.seeds + 1):
        for arm in arms:
            branches, mask = ARMS[arm]
            branches = branches or args.branches
            name = f"{arm}-k{branches}-s{seed}"
            names[arm].append(name)
            ours = [*settings, f"seed={seed}", f"model.branches={branches}", f"model.mask={mask}"]
            trained, seconds = programs.run(args.trainer, "pretrain", [*common, "--name", name], ours)
            # Training anew replaces the model with its evaluation.
            if not (out / "models" / name / "evaluation-test.json").is_file():
                programs.run(args.trainer, "evaluate", [*common, "--model", name], ours)
            if trained:
                best = trained["best"] or {}
                runs[name] = {"arm": arm, "seed": seed, "branches": branches, "mask": mask, "status": trained["status"],
                              "epoch": best.get("epoch"), "validation_hr_10": best.get("value"),
                              "steps": trained["steps"],
                              "wall_s": seconds if trained["status"] == "trained" else None}
                print(f"{name}: {trained['status']}, epoch {best.get('epoch')}, validation {best.get('value', 0):.4f}, "
                      f"{seconds:.0f} s", flush=True)

    def compare(chosen, more):
        groups = [f"{LABELS[arm]}={','.join(names[arm])}" for arm in chosen]
        return programs.run(args.trainer, "compare", [*common, *groups, *more], settings)[0]

    plot = pathlib.Path(args.plot) if args.plot else out / "ablation.svg"
    comparisons = [compare(arms, ["--plot", str(plot)])]
    if "mip" in arms[1:] and "tamip" in arms:
        comparisons.append(compare(["mip", "tamip"], []))
    if args.dry_run:
        return
    answer = pathlib.Path(args.json) if args.json else out / "ablation.json"
    about = {"config": args.config, "arms": arms, "branches": args.branches, "seeds": args.seeds, "settings": settings}
    text = json.dumps({"about": about, "sequences": built, "runs": runs, "comparisons": comparisons}, indent=2)
    answer.write_text(text + "\n")
    seeds = "1 seed" if args.seeds == 1 else f"means of {args.seeds} seeds"
    print(f"\nas served, seen items filtered, {seeds}; [95 % interval of the paired bootstrap over users]")
    print("\n".join(summary(comparisons)))
    print(f"written: {answer}, {plot}")


if __name__ == "__main__":
    main()
