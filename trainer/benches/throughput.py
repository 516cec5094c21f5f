#!/usr/bin/env python3
"""Compares the throughput of `trainer pretrain` with that of the same model in PyTorch.

    pip install torch pyarrow numpy
    cargo build --release
    python3 trainer/benches/throughput.py --root DIR --config config/amazon.toml --trainer target/release/trainer

DIR holds the tables of, say, Amazon Beauty (rows of at most 50 events); they are only read: models go to a scratch
directory. Ours and `pytorch_sasrec.py`, with padded and with length-bucketed batches, run in turn, each as a process of
its own with the same number of threads on the same cores. The model is SASRec with d = 64, three layers, two heads, and
item ids as the only features; batches are 256 rows. All learn the same targets, with the softmax over the whole catalogue
and with 512 uniform negatives. Prints medians and ratios for each loss; exits with 1 where a run failed or the numbers of
targets differ.

Two rates, both in targets a second:

  process    what the user waits for, from the start of the process to its end: reading, training, one validation by full
             ranking; importing torch and padding are theirs, writing checkpoints is ours.
  reported   ours: `targets` and `seconds` of `trainer pretrain --json`, everything but the start of the process;
             theirs: the training loop alone. So this one is in PyTorch's favour, less so with more --epochs.

`--set` passes further settings to ours, the last one wins: `--set model.architecture=hstu` measures another
architecture against the same SASRec.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

TITLES = {"ours": "ours", "padded": "PyTorch, padded", "bucketed": "PyTorch, bucketed"}
TABLES = ["events", "items", "sequences"]
D, LAYERS, HEADS, BATCH, NEGATIVES = 64, 3, 2, 256, 512
# What both sides have to agree on, and what only ours has, turned off.
SETTINGS = ["model.architecture=sasrec", "model.branches=1", "model.mask=none", "model.attributes=[]",
            f"model.d={D}", f"model.layers={LAYERS}", f"model.heads={HEADS}", "model.feed_forward=4",
            "model.dropout=0.2", "model.min_count=1", "model.score_temperature=0",
            f"pretrain.batch_size={BATCH}", "pretrain.learning_rate=5e-4", "pretrain.weight_decay=1e-6",
            "pretrain.clip_norm=5.0", "pretrain.warmup_steps=0", "pretrain.schedule=constant",
            "pretrain.label_smoothing=0.0", "pretrain.user_balance=0.0", "pretrain.loss_without_history=true",
            "pretrain.in_batch_negatives=false",
            f"pretrain.uniform_negatives={NEGATIVES}", "pretrain.checkpoint_steps=0",
            "pretrain.select_by=hr-standard"]


def measured(command, environment):
    """Runs a command to its end: wall and CPU seconds, peak resident MiB, its JSON, and its error where it failed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        # Kilobytes on Linux, bytes on macOS.
        peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        run = {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": peak}
        if process.returncode != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
            return run | {"failed": f"{how}: {lines[-1] if lines else 'said nothing'}"}
        out.seek(0)
        return run | {"answer": json.load(out)}


def rates(run, epochs):
    """The numbers of a run that are compared."""
    answer = run["answer"]
    return {"process_targets_per_s": answer["targets"] / run["wall_s"],
            "targets_per_s": answer["targets"] / answer["seconds"],
            "epoch_s": answer["seconds"] / epochs, "wall_s": run["wall_s"], "cpu_s": run["cpu_s"],
            "peak_mib": run["peak_mib"]}


def cpu_model():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def report(loss, names, runs, args):
    """Prints one loss's medians and ratios; gives them, and what is wrong."""
    wrong, medians = [], {}
    print(f"\n{loss} softmax, medians of {args.rounds}, epochs a run: {args.epochs}"
          f"\n{'':20}{'targets/s':>11}{'of process':>12}{'s/epoch':>9}{'wall s':>8}{'CPU s':>8}{'peak MiB':>10}")
    for name in names:
        failed = [run["failed"] for run in runs[name] if "failed" in run]
        if failed:
            wrong.append(f"{TITLES[name]} failed in {len(failed)} of {args.rounds} rounds: {failed[0]}")
            print(f"{TITLES[name]:20}FAILED: {failed[0]}")
            continue
        each = [rates(run, args.epochs) for run in runs[name]]
        m = medians[name] = {key: statistics.median(one[key] for one in each) for key in each[0]}
        print(f"{TITLES[name]:20}{m['targets_per_s']:11.0f}{m['process_targets_per_s']:12.0f}{m['epoch_s']:9.2f}"
              f"{m['wall_s']:8.2f}{m['cpu_s']:8.2f}{m['peak_mib']:10.0f}")
    ratios = {}
    for name in medians:
        if name != "ours" and "ours" in medians:
            ours, theirs = medians["ours"], medians[name]
            ratios[name] = {key: ours[key] / theirs[key]
                            for key in ["targets_per_s", "process_targets_per_s", "peak_mib"]}
            print(f"ours / {TITLES[name]}: targets/s {ratios[name]['targets_per_s']:.2f}, of process "
                  f"{ratios[name]['process_targets_per_s']:.2f}, memory {ratios[name]['peak_mib']:.2f}")
    targets = {name: {run["answer"]["targets"] for run in runs[name]} for name in medians}
    if len(set().union(*targets.values())) > 1:
        wrong.append(f"the programs learned different numbers of targets: {targets}")
        print(wrong[-1])
    # A check that both learn the same: one seed each, so they differ a little.
    for name in medians:
        answer = runs[name][0]["answer"]
        best = answer.get("best") or {}
        value = answer.get("validation_hr_10", best.get("value"))
        if value is not None:
            print(f"validation HR@10, {TITLES[name]}: {value:.4f}")
    return {"medians": medians, "ratios": ratios}, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True, help="directory of the tables; only read")
    parser.add_argument("--config", required=True, help="configuration for ours")
    parser.add_argument("--trainer", required=True, help="the program, as it is released")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch (default: this one)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-len", type=int, default=50, help="longest row of the tables (default: %(default)s)")
    parser.add_argument("--losses", default="full,sampled", help="which to run, of: %(default)s")
    parser.add_argument("--only", default=",".join(TITLES), help="which to run, of: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for ours; may be repeated")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="where ours writes its models")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    names, losses = args.only.split(","), args.losses.split(",")
    if not set(names) <= set(TITLES) or not set(losses) <= {"full", "sampled"}:
        parser.error(f"--only takes {', '.join(TITLES)}; --losses takes full, sampled")
    if min(args.rounds, args.epochs, args.threads) < 1:
        parser.error("--rounds, --epochs and --threads must be at least 1")
    root = pathlib.Path(args.root).resolve()
    missing = [table for table in TABLES if not (root / table).is_dir()]
    if missing:
        sys.exit(f"{root} has no table {missing[0]}; `pipeline ingest` and `pipeline build-sequences` make it")

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.threads])
    version = subprocess.run([args.trainer, "--version"], capture_output=True, text=True, check=True)
    about = {"trainer": version.stdout.strip(), "profile": pathlib.Path(args.trainer).resolve().parent.name,
             "python": platform.python_version(), "cpu": cpu_model(), "cores": os.cpu_count(),
             "threads": args.threads, "rounds": args.rounds, "epochs": args.epochs, "settings": " ".join(args.set)}
    if {"padded", "bucketed"} & set(names):
        torch = subprocess.run([args.python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
        if torch.returncode != 0:
            sys.exit(f"{args.python} cannot import torch; `pip install torch`, or name another interpreter with --python")
        about["torch"] = torch.stdout.strip()
    for key, value in about.items():
        print(f"{key:18} {value}")

    environment = os.environ | {"RAYON_NUM_THREADS": str(args.threads), "OMP_NUM_THREADS": str(args.threads)}
    peer = [args.python, str(pathlib.Path(__file__).with_name("pytorch_sasrec.py")), "--root", str(root),
            "--epochs", str(args.epochs), "--threads", str(args.threads), "--max-len", str(args.max_len),
            "--batch-size", str(BATCH), "--d", str(D), "--layers", str(LAYERS), "--heads", str(HEADS),
            "--negatives", str(NEGATIVES)]
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="throughput-") as scratch:
        # The same tables under a root of our own.
        for table in TABLES:
            pathlib.Path(scratch, table).symlink_to(root / table)
        ours = [args.trainer, "pretrain", "--config", args.config, "--root", scratch, "--name", "throughput",
                "--fresh", "--json"]
        for setting in [*SETTINGS, f"pretrain.epochs={args.epochs}", f"pretrain.validate_every={args.epochs}", *args.set]:
            ours += ["--set", setting]
        # Nobody pays for the first read of the disk.
        for path in [*root.glob("items/*.parquet"), *root.glob("sequences/*.parquet")]:
            path.read_bytes()
        results, runs, wrong = {}, {}, []
        for loss in losses:
            commands = {"ours": [*ours, "--set", f"pretrain.loss={loss}"],
                        "padded": [*peer, "--loss", loss, "--batches", "padded"],
                        "bucketed": [*peer, "--loss", loss, "--batches", "bucketed"]}
            runs[loss] = {name: [] for name in names}
            for turn in range(args.rounds):
                for name in names[turn % len(names):] + names[:turn % len(names)]:
                    run = measured(commands[name], environment)
                    runs[loss][name].append(run)
                    print(f"  {loss}, round {turn + 1} {TITLES[name]:18} " + (
                        f"FAILED, {run['failed']}" if "failed" in run else
                        f"{run['answer']['targets'] / run['answer']['seconds']:8.0f} targets/s "
                        f"{run['wall_s']:8.2f} s {run['peak_mib']:8.0f} MiB"), flush=True)
            results[loss], problems = report(loss, names, runs[loss], args)
            wrong += problems
    if args.json:
        text = json.dumps({"about": about, "results": results, "runs": runs, "wrong": wrong}, indent=2)
        pathlib.Path(args.json).write_text(text + "\n")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
