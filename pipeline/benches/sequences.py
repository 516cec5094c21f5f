#!/usr/bin/env python3
"""Compares `pipeline build-sequences` with the same job written in Polars and in DuckDB.

    pip install polars duckdb pyarrow numpy
    python3 pipeline/benches/sequences.py --root DIR --config FILE --pipeline PATH [--rounds 3]

Each runs as a process of its own, in turn, on the same two cores with two threads: from the Parquet files of
`events` and `items`, read once before, to Parquet files with the columns of `sequences`. Prints the medians of
wall time, CPU time and peak resident memory, and whether all answers are equal, list by list. Exits with 1
where they are not or one failed.

The settings are fixed: all actions, session_gap 30m, batch_gap 1s, delta_tau 15m, max_len 200, ties in file
order, leave-one-out, no SFT share. `--set` passes further settings (such as sequences.shards) to ours.

In the peers' favour: they neither read `event_id` nor drop duplicates, keep everything in memory, do not group
users into shards, commit to no table, count nothing, write no column statistics, and give no item an index. Where
a log holds duplicates across commits, the answers differ for that reason. ROOT/sequences is deleted before
each of our runs. The name of the directory that the program lies in is printed: it says which profile built it.

There are two peers of each system. "Polars" and "DuckDB" are written in expressions and in SQL alone, from reading
to writing. "Polars + numpy" and "DuckDB + numpy" read, encode and write with the system, and share a middle part
in numpy, on integers. This module holds it; `Events.parts` is the entry.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

SESSION_GAP = 30 * 60 * 1000
BATCH_GAP = 1000
MARGIN = 15 * 60 * 1000
MAX_LEN = 200
HALF = MAX_LEN // 2
THREADS = 2
# Users are cut in parts of about so many events: two at a time, arrays that stay near the caches.
PART_EVENTS = 1_000_000
# Long histories are searched so many at a time.
CUT_USERS = 2048
LISTS = ["item_index", "ts", "session", "request", "visible_len", "role"]
TITLES = {"ours": "ours", "polars-plain": "Polars", "duckdb-plain": "DuckDB",
          "polars": "Polars + numpy", "duckdb": "DuckDB + numpy"}
PLAIN = ["polars-plain", "duckdb-plain"]
SETTINGS = ["sequences.actions=[]", 'sequences.session_gap="30m"', 'sequences.batch_gap="1s"',
            'sequences.delta_tau="15m"', "sequences.max_len=200", 'sequences.ties="file-order"',
            'sequences.split="leave-one-out"', "sequences.sft_share=0.0"]


def snapshot(root, table):
    """The files of the table's newest version, replayed from its log."""
    directory = pathlib.Path(root, table)
    files = {}
    log = sorted(path for path in directory.glob("_delta_log/*.json") if path.stem.isdigit())
    if not log or int(log[0].stem) != 0:
        sys.exit(f"the log of {directory} does not begin at version 0; this script reads no checkpoints")
    for entry in log:
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                files[action["add"]["path"]] = True
            elif "remove" in action:
                files.pop(action["remove"]["path"], None)
    return sorted(str(directory / urllib.parse.unquote(path)) for path in files)


# What the peers with numpy share.


class Events:
    """All events as numpy columns, in any order.

    `user` numbers the users, `request` is 0 where none was logged and otherwise a hash (two requests of one
    user are told apart by 63 bits), `source_rank` says how the values of `source` order as text.
    """

    def __init__(self, user, ts, item, request, source, position, source_rank, horizon=None):
        import numpy as np

        self.user, self.ts, self.item, self.request = user, ts, item, request
        self.source, self.position, self.source_rank = source, position, source_rank
        self.first_ts = int(ts.min()) - MARGIN - 1
        self.ts_bits = (int(ts.max()) - self.first_ts).bit_length()
        if int(user.max()).bit_length() + self.ts_bits > 63:
            sys.exit("users and times do not fit into one 64-bit key")
        # How many of the sorted keys lie before each of the sorted bounds.
        self.horizon = horizon or (lambda keys, bounds: np.searchsorted(keys, bounds))

    def parts(self, write):
        """Calls `write(part, user, lists, offsets, target_from)` for each part of the users, two at a time."""
        from concurrent.futures import ThreadPoolExecutor

        parts = THREADS
        while parts * PART_EVENTS < len(self.user):
            parts *= 2
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda part: write(part, *self.part(part, parts)), range(parts)))

    def part(self, part, parts):
        """The rows of the users whose number is `part`, modulo a power of two: values of lists, and offsets."""
        import numpy as np

        chosen = np.flatnonzero((self.user & (parts - 1)) == part)
        if len(chosen) == 0:
            empty = np.zeros(0, np.uint32)
            return empty, {name: empty for name in LISTS}, np.zeros(1, np.int32), empty
        order, key = self.sorted(chosen)
        del chosen
        n = len(key)
        user = (key >> self.ts_bits).astype(np.int32)
        new_user = np.empty(n, bool)
        new_user[0] = True
        np.not_equal(user[1:], user[:-1], out=new_user[1:])
        begin = np.flatnonzero(new_user).astype(np.int32)
        end = np.append(begin[1:], np.int32(n))
        own_begin = np.repeat(begin, end - begin)
        gap = np.empty(n, np.int64)
        gap[0] = 0
        np.subtract(key[1:], key[:-1], out=gap[1:])

        session = np.cumsum(new_user | (gap > SESSION_GAP), dtype=np.int32)
        session -= session[own_begin]
        request, first = batches(self.request[order], user, new_user, gap)
        request -= request[own_begin]
        del gap, new_user, own_begin
        # Positions in the part: the keys of all users before lie before the bound too.
        visible = self.horizon(key, key - MARGIN).astype(np.int32)
        np.minimum(visible, first, out=visible)
        del first
        ts = (key & ((1 << self.ts_bits) - 1)) + self.first_ts
        del key
        role = np.zeros(n, np.uint8)
        held_out = end[end - begin >= 3]
        role[held_out - 1] = 3
        role[held_out - 2] = 2

        own, segments = cut(begin, end, visible)
        lengths = segments[:, :, 1] - segments[:, :, 0]
        row_lengths = lengths.sum(axis=1)
        offsets = np.zeros(len(own) + 1, np.int32)
        np.cumsum(row_lengths, out=offsets[1:])
        target_from = row_lengths - lengths[:, 2]

        flat = lengths.ravel()
        starts = segments[:, :, 0].ravel() - (np.cumsum(flat) - flat)
        taken = np.repeat(starts.astype(np.int32), flat)
        taken += np.arange(len(taken), dtype=np.int32)
        # In a row without a hole what is visible is one stretch; the others are put right after.
        row_visible = visible[taken]
        row_visible -= np.repeat(segments[:, :, 0].min(axis=1, where=lengths > 0, initial=n), row_lengths)
        np.maximum(row_visible, 0, out=row_visible)
        spans = segments[:, :, 1].max(axis=1) - segments[:, :, 0].min(axis=1, where=lengths > 0, initial=n)
        holed = np.flatnonzero(spans > row_lengths)
        if len(holed):
            places = np.repeat(offsets[holed] - (np.cumsum(row_lengths[holed]) - row_lengths[holed]),
                               row_lengths[holed])
            places += np.arange(len(places), dtype=np.int32)
            bound = visible[taken[places]]
            seen = np.zeros(len(places), np.int32)
            for segment in range(3):
                start = np.repeat(segments[holed, segment, 0], row_lengths[holed])
                length = np.repeat(lengths[holed, segment], row_lengths[holed])
                seen += np.clip(bound - start, 0, length)
            row_visible[places] = seen
        row_role = role[taken]
        row_role[taken < np.repeat(own, row_lengths)] = 4
        lists = {"item_index": self.item[order[taken]], "ts": ts[taken],
                 "session": session[taken].view(np.uint32), "request": request[taken].view(np.uint32),
                 "visible_len": row_visible.view(np.uint32), "role": row_role}
        return user[own], lists, offsets, target_from.astype(np.uint32)

    def sorted(self, chosen):
        """The chosen events by user, time, source and position, and their keys of user and time."""
        import numpy as np

        key = self.user[chosen].astype(np.int64)
        key <<= self.ts_bits
        key += self.ts[chosen]
        key -= self.first_ts
        order = np.argsort(key)
        key = key[order]
        order = chosen[order]
        # Equal times of one user are few: only those need the rest of the order.
        equal = key[1:] == key[:-1]
        if equal.any():
            tied = np.zeros(len(key), bool)
            tied[1:] = equal
            tied[:-1] |= equal
            tied = np.flatnonzero(tied)
            events = order[tied]
            source = self.source_rank[self.source[events]]
            order[tied] = events[np.lexsort((self.position[events], source, key[tied]))]
        return order, key


def batches(request, user, new_user, gap):
    """For sorted events: the batches begun up to each one's own, and the first event of its logged request
    (of any other event: itself)."""
    import numpy as np

    n = len(request)
    logged = request != 0
    changes = np.empty(n, bool)
    changes[0] = True
    np.not_equal(request[1:], request[:-1], out=changes[1:])
    changes |= new_user
    first = np.arange(n, dtype=np.int32)
    # The items of a request mostly stand together: it is enough to look at where a stretch begins.
    heads = np.flatnonzero(changes & logged).astype(np.int32)
    begins = ~logged
    begins[1:] &= changes[1:] | logged[:-1] | (gap[1:] > BATCH_GAP)
    if len(heads):
        mixed = request[heads] ^ (user[heads].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        order = np.argsort(mixed)
        mixed = mixed[order]
        group = np.flatnonzero(np.append(True, mixed[1:] != mixed[:-1]))
        firsts = np.minimum.reduceat(heads[order], group)
        head_first = np.empty(len(heads), np.int32)
        head_first[order] = np.repeat(firsts, np.diff(np.append(group, len(heads))))
        stretch = np.cumsum(changes & logged, dtype=np.int32)
        np.copyto(first, head_first[stretch - 1], where=logged)
        begins[firsts] = True
    begun = np.cumsum(begins, dtype=np.int32)
    return begun[first], first


def cut(begin, end, visible):
    """Cuts histories [begin, end) into rows of at most MAX_LEN, in order.

    Gives where each row's own positions begin, and three segments of positions: two of context, the older of
    them mostly empty, and the row's own. In rounds, from the newest end of all long histories at once.
    """
    import numpy as np

    short = end - begin <= MAX_LEN
    rows = [np.stack([begin[short]] * 5 + [end[short]], axis=1)]
    long_begin, long_end = begin[~short], end[~short]
    # Histories of about one length end in about the same round.
    by_length = np.argsort(long_begin - long_end, kind="stable")
    for at in range(0, len(by_length), CUT_USERS):
        block = by_length[at:at + CUT_USERS]
        rows.extend(cut_block(long_begin[block], long_end[block], visible))
    rows = np.concatenate(rows)
    rows = rows[np.argsort(rows[:, 4])]
    return rows[:, 4].copy(), rows.reshape(-1, 3, 2)


def cut_block(begin, end, visible):
    import numpy as np

    back = np.arange(1, MAX_LEN + 1, dtype=np.int32)[:, None]
    length = back
    newest = True
    while len(begin):
        # The candidates of all histories: line k owns k + 1 positions.
        a = end - back
        v = visible[a]
        start = v - HALF
        np.minimum.accumulate(start, axis=0, out=start)
        np.maximum(start, begin, out=start)
        context_end = np.maximum.accumulate(v, axis=0, out=v)
        np.minimum(context_end, a, out=context_end)
        # Owning one position more never needs less, so what fits is counted.
        whole = np.count_nonzero(end - np.minimum(start, a) <= MAX_LEN, axis=0)
        holed = np.count_nonzero(context_end - np.minimum(start, context_end) + length <= MAX_LEN, axis=0)
        must = 2 if newest else 1
        take_whole = whole >= MAX_LEN // 4
        take_holed = ~take_whole & (holed >= must)
        owned = np.where(take_whole, whole, np.where(take_holed, holed, must)).astype(np.int32)
        each = np.arange(len(begin))
        own = end - owned
        until = np.where(take_whole, own, context_end[owned - 1, each])
        since = np.minimum(start[owned - 1, each], until)
        older = np.stack([since, since], axis=1)
        rest = np.flatnonzero(~take_whole & ~take_holed)
        if len(rest):
            # The held-out positions stand on both sides of a burst: what each needs, newest first.
            first, last = end[rest] - 2, begin[rest]
            sees = np.sort(np.stack([visible[first], visible[first + 1]]), axis=0)
            low = np.maximum(sees - HALF, last)
            high = np.maximum(np.minimum(sees, first), low)
            low_end = np.minimum(high[0], low[1])
            surplus = np.maximum(low_end - low[0] + high[1] - low[1] + 2 - MAX_LEN, 0)
            dropped = np.minimum(surplus, low_end - low[0])
            older[rest] = np.stack([low[0] + dropped, low_end], axis=1)
            since[rest], until[rest] = low[1] + surplus - dropped, high[1]
        yield np.column_stack([older, since, until, own, end]).astype(np.int32)
        # What is left of a history may fit into one row.
        left = own - begin
        last = (left > 0) & (left <= MAX_LEN)
        if last.any():
            yield np.stack([begin[last]] * 5 + [own[last]], axis=1)
        more = left > MAX_LEN
        begin, end = begin[more], own[more]
        newest = False


def arrow_table(user_id, lists, offsets, target_from):
    """One part's rows as a table of Arrow; `user_id` is an array of Arrow, the rest are numpy's."""
    import pyarrow as pa

    columns = {"user_id": user_id}
    for name in LISTS:
        values = pa.array(lists[name])
        if name == "ts":
            values = values.view(pa.timestamp("ms", "UTC"))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values)
    columns["target_from"] = pa.array(target_from)
    return pa.table(columns)


def peer_arguments(doc):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True, help="directory of the tables")
    parser.add_argument("--out", required=True, help="directory for the answer; created, and emptied")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return snapshot(args.root, "events"), snapshot(args.root, "items"), out


# The runner.


def answer(paths, column):
    """One column of a table's files, as one array of Arrow."""
    import pyarrow.parquet as pq
    import pyarrow as pa

    chunks = [chunk for path in paths for chunk in pq.ParquetFile(path).read(columns=[column]).column(0).chunks]
    return pa.concat_arrays(chunks)


class Answer:
    """The rows of one answer, in an order that does not depend on its files: by user, and by the times of the
    newest and the oldest position; among equal times as in the files."""

    def __init__(self, paths):
        import numpy as np

        self.paths = paths
        users = answer(paths, "user_id").dictionary_encode()
        names = users.dictionary.to_numpy(zero_copy_only=False).astype(str)
        rank = np.empty(len(names), np.int64)
        rank[np.argsort(names)] = np.arange(len(names))
        ts = answer(paths, "ts")
        offsets, values = lists(ts)
        self.order = np.lexsort((values[offsets[:-1]], values[offsets[1:] - 1], rank[users.indices.to_numpy()]))
        self.users = names[users.indices.to_numpy()][self.order]
        self.lengths = np.diff(offsets)[self.order]

    def column(self, name):
        """The type and the values of a column in the order of the rows."""
        import numpy as np
        import pyarrow as pa

        column = answer(self.paths, name)
        if name == "target_from":
            return column.type, column.to_numpy()[self.order]
        kind = column.type.value_type
        if pa.types.is_timestamp(kind):
            # DuckDB's only type with a time zone has microseconds: without one, UTC is meant.
            kind = pa.timestamp(kind.unit, kind.tz or "UTC")
        offsets, values = lists(column)
        starts = offsets[:-1][self.order] - (np.cumsum(self.lengths) - self.lengths)
        taken = np.repeat(starts, self.lengths) + np.arange(self.lengths.sum())
        return kind, values[taken]

    def disagreement(self, other):
        """What first differs from another answer, or None."""
        import numpy as np

        if len(self.users) != len(other.users):
            return f"{len(other.users)} rows instead of {len(self.users)}"
        for what in ["users", "lengths"]:
            wrong = np.flatnonzero(getattr(self, what) != getattr(other, what))
            if len(wrong):
                return f"{what}: {len(wrong)} rows, first near user {self.users[wrong[0]]}"
        ends = np.cumsum(self.lengths)
        for name in LISTS + ["target_from"]:
            (kind, values), (other_kind, other_values) = self.column(name), other.column(name)
            if kind != other_kind:
                return f"{name}: of type {other_kind} instead of {kind}"
            wrong = np.flatnonzero(values != other_values)
            if len(wrong):
                row = wrong[0] if name == "target_from" else np.searchsorted(ends, wrong[0], side="right")
                return (f"{name}: {len(wrong)} of {len(values)} values, first of user {self.users[row]}:"
                        f" {other_values[wrong[0]]} instead of {values[wrong[0]]}")
        return None


def lists(column):
    """Offsets and values of an array of lists as numpy's, times as numbers."""
    import pyarrow as pa

    values = column.flatten()
    if pa.types.is_timestamp(values.type):
        values = values.view(pa.int64())
    offsets = column.offsets.to_numpy()
    return (offsets - offsets[0]).astype("int64"), values.to_numpy()


def measured(command, environment):
    """Runs a command to its end: wall and CPU seconds, peak resident MiB, and its error where it failed."""
    with tempfile.TemporaryFile() as said:
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        result = {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}
        if process.returncode != 0:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
            result["failed"] = f"{how}: {lines[-1] if lines else 'said nothing'}"
        return result


def cpu_model():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True, help="directory of the tables")
    parser.add_argument("--config", required=True, help="configuration for ours")
    parser.add_argument("--pipeline", required=True, help="the program, as it is released")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="1GiB", help="budget for ours")
    parser.add_argument("--only", default=",".join(TITLES), help="which to run, of: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for ours; may be repeated")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="where the peers write")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    names = args.only.split(",")
    if not set(names) <= set(TITLES) or args.rounds < 1:
        parser.error(f"--only takes {', '.join(TITLES)}; --rounds at least 1")

    here = pathlib.Path(__file__).parent
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    version = subprocess.run([args.pipeline, "--version"], capture_output=True, text=True, check=True)
    about = {"pipeline": version.stdout.strip(), "python": platform.python_version(), "cpu": cpu_model(),
             "cores": os.cpu_count(), "threads": THREADS, "memory": args.memory, "rounds": args.rounds,
             "profile": pathlib.Path(args.pipeline).resolve().parent.name}
    about |= {name: importlib.metadata.version(name) for name in ["polars", "duckdb", "pyarrow", "numpy"]}
    for key, value in about.items():
        print(f"{key:18} {value}")

    ours = [args.pipeline, "build-sequences", "--config", args.config, "--root", args.root,
            "--threads", str(THREADS), "--memory", args.memory]
    for setting in SETTINGS + args.set:
        ours += ["--set", setting]
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="sequences-") as scratch:
        out = {name: pathlib.Path(scratch, name) for name in TITLES if name != "ours"}
        commands = {name: [sys.executable, str(here / f"sequences_{name.replace('-', '_')}.py"), "--root", args.root,
                           "--out", str(out[name])] for name in out} | {"ours": ours}
        environment = os.environ | {"POLARS_MAX_THREADS": str(THREADS), "TMPDIR": args.scratch}
        # Nobody pays for the first read of the disk.
        for path in snapshot(args.root, "events") + snapshot(args.root, "items"):
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass
        runs = {name: [] for name in names}
        for turn in range(args.rounds):
            for name in names[turn % len(names):] + names[:turn % len(names)]:
                if name == "ours":
                    shutil.rmtree(pathlib.Path(args.root, "sequences"), ignore_errors=True)
                run = measured(commands[name], environment)
                runs[name].append(run)
                print(f"  round {turn + 1} {TITLES[name]:15} " + (f"FAILED, {run['failed']}" if "failed" in run else
                      f"{run['wall_s']:8.2f} s {run['cpu_s']:8.2f} s CPU {run['peak_mib']:8.0f} MiB"), flush=True)
        good = [name for name in names if not any("failed" in run for run in runs[name])]
        failed = [name for name in names if name not in good]
        result = report(args, names, good, runs)
        differences = compare(args.root, good, out)
    result |= {"about": about, "runs": runs, "failed": failed, "differences": differences}
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(result, indent=2) + "\n")
    if failed or any(differences.values()):
        sys.exit(1)


def report(args, names, good, runs):
    import pyarrow.parquet as pq

    events = sum(pq.read_metadata(path).num_rows for path in snapshot(args.root, "events"))
    print(f"\n{events} events, medians of {args.rounds}; "
          "the peers read no event_id, drop no duplicates, and write no shards"
          f"\n{'':15}{'wall s':>9}{'CPU s':>9}{'peak MiB':>10}{'events/s':>12}")
    medians = {}
    for name in names:
        if name not in good:
            count = sum("failed" in run for run in runs[name])
            print(f"{TITLES[name]:15}FAILED in {count} of {args.rounds} rounds: "
                  f"{next(run['failed'] for run in runs[name] if 'failed' in run)}")
            continue
        middle = {key: statistics.median(run[key] for run in runs[name]) for key in ["wall_s", "cpu_s", "peak_mib"]}
        medians[name] = middle | {"events_per_s": events / middle["wall_s"]}
        print(f"{TITLES[name]:15}{middle['wall_s']:9.2f}{middle['cpu_s']:9.2f}{middle['peak_mib']:10.0f}"
              f"{events / middle['wall_s']:12.0f}")
    ratios = {}
    peers = [name for name in good if name != "ours"]
    if "ours" in good and peers:
        plain = [name for name in peers if name in PLAIN]
        for key, what, among in [("wall_plain", "the faster of expressions and SQL alone", plain),
                                 ("wall", "the fastest of all", peers)]:
            if among:
                faster = min(among, key=lambda name: medians[name]["wall_s"])
                ratios[key] = medians[faster]["wall_s"] / medians["ours"]["wall_s"]
                print(f"wall: {TITLES[faster]} / ours = {ratios[key]:.2f} ({what})")
        for name in peers:
            ratios[f"memory_{name}"] = medians["ours"]["peak_mib"] / medians[name]["peak_mib"]
            print(f"memory: ours / {TITLES[name]} = {ratios[f'memory_{name}']:.2f}")
    return {"events": events, "medians": medians, "ratios": ratios}


def compare(root, good, out):
    """Compares the last answers with the first of them, exactly; says so, and gives what differs."""
    paths = {name: snapshot(root, "sequences") if name == "ours" else sorted(map(str, out[name].glob("*.parquet")))
             for name in good}
    if len(good) < 2:
        print("answers: nothing to compare")
        return {}
    first = Answer(paths[good[0]])
    differences = {}
    for name in good[1:]:
        differences[name] = first.disagreement(Answer(paths[name]))
        print(f"answers: {TITLES[name]} and {TITLES[good[0]]} " +
              (f"DISAGREE: {differences[name]}" if differences[name] else
               f"are equal, {len(first.users)} rows of {first.lengths.sum()} positions"))
    return differences


if __name__ == "__main__":
    main()
