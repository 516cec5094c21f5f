#!/usr/bin/env python3
"""Builds `sequences` with Polars alone, in expressions; `sequences.py` runs and describes it.

The streaming engine reads, encodes texts as categories and joins the items. What follows is sorted once, by
one integer of user and time. From there on no expression needs to group: what begins with a user, a session or
a batch is a flag, summed. The visible prefix is an as-of join, and lists are the aggregation of a sorted column.
"""

import os

os.environ["POLARS_MAX_THREADS"] = "2"

import polars as pl

from sequences import BATCH_GAP, HALF, MARGIN, MAX_LEN, SESSION_GAP, peer_arguments

# Rows are gathered and written so many positions at a time.
PART_POSITIONS = 4_000_000


def read(events, items):
    """The events by user, time, source and position; the texts of the users; and how keys hold the time."""
    users = pl.Categorical(pl.Categories("user"))
    catalogue = pl.scan_parquet(items).select("item_id", "item_index")
    frame = (
        pl.scan_parquet(events)
        .select(
            pl.col("user_id").cast(users),
            "item_id",
            pl.col("ts").to_physical(),
            (pl.col("request_id").hash() | 1).alias("request"),
            pl.col("request_id").is_null().alias("unlogged"),
            pl.col("source").cast(pl.Categorical(pl.Categories("source"))),
            pl.col("position").cast(pl.UInt32),
        )
        .join(catalogue, on="item_id", how="inner", maintain_order="none")
        .select(
            "user_id", "item_index", "ts",
            pl.when("unlogged").then(0).otherwise("request").cast(pl.UInt64).alias("request"),
            "source", "position",
        )
        .collect(engine="streaming")
    )
    first_ts, last_ts, last_user = frame.select(
        pl.col("ts").min().alias("first"), pl.col("ts").max().alias("last"),
        pl.col("user_id").to_physical().max().alias("user"),
    ).row(0)
    first_ts -= MARGIN + 1
    scale = 1 << (last_ts - first_ts).bit_length()
    assert int(last_user) * scale < 1 << 62
    distinct = frame["user_id"].unique()
    names = pl.DataFrame({"user": distinct.to_physical().cast(pl.Int32), "user_id": distinct.cast(pl.String)})
    key = pl.col("user_id").to_physical().cast(pl.Int64) * scale + (pl.col("ts") - first_ts)
    frame = frame.select("item_index", "request", "source", "position", key=key).sort("key")
    tied = pl.col("key") == pl.col("key").shift()
    tied = frame.select(tied.fill_null(False) | tied.shift(-1).fill_null(False)).to_series()
    if tied.any():
        among = frame.filter(tied).sort("key", pl.col("source").cast(pl.String), "position")
        frame = frame.filter(~tied).merge_sorted(among, key="key")
    return frame.select("key", "item_index", "request"), names, first_ts, scale


def history(frame, first_ts, scale):
    """All lists of the histories, one after another; positions count over all of them."""
    frame = frame.lazy().with_columns(
        at=pl.int_range(pl.len(), dtype=pl.Int32),
        user=(pl.col("key") // scale).cast(pl.Int32),
        gap=pl.col("key").diff().fill_null(0),
        logged=pl.col("request") != 0,
    ).with_columns(
        new=(pl.col("user") != pl.col("user").shift()).fill_null(True),
    ).with_columns(
        changes=pl.col("new") | (pl.col("request") != pl.col("request").shift()).fill_null(True),
    ).with_columns(
        # The items of a request mostly stand together: its first one is among where a stretch begins.
        stretch=pl.col("changes").cum_sum().cast(pl.Int32) - 1,
    ).collect()
    heads = frame.lazy().filter("changes").select("user", "request", "logged", "at")
    heads = heads.with_columns(
        first=pl.when("logged").then(pl.col("at").min().over("user", "request")).otherwise("at"),
    ).collect()
    bounds = frame.lazy().select(bound=pl.col("key") - MARGIN)
    before = frame.lazy().select("key", before=pl.col("at") + 1)
    before = bounds.join_asof(before, left_on="bound", right_on="key", allow_exact_matches=False,
                              check_sortedness=False).select(pl.col("before").fill_null(0)).collect()
    first = heads["first"]
    last = pl.col("new").shift(-1).fill_null(True)
    return frame.lazy().with_columns(before=before["before"]).with_columns(
        first=pl.when("logged").then(pl.lit(first).gather("stretch")).otherwise("at"),
        begin=pl.when("new").then("at").forward_fill(),
        last=last,
    ).with_columns(
        begins=pl.when("logged").then(pl.col("first") == pl.col("at"))
        .otherwise(pl.col("changes") | (pl.col("gap") > BATCH_GAP)),
        sessions=(pl.col("new") | (pl.col("gap") > SESSION_GAP)).cum_sum(),
    ).with_columns(
        batches=pl.col("begins").cum_sum(),
    ).select(
        "item_index",
        (pl.col("key") % scale + first_ts).cast(pl.Datetime("ms", "UTC")).alias("ts"),
        (pl.col("sessions") - pl.col("sessions").gather("begin")).cast(pl.UInt32).alias("session"),
        (pl.col("batches").gather("first") - pl.col("batches").gather("begin")).cast(pl.UInt32).alias("request"),
        pl.min_horizontal("before", "first").alias("visible"),
        pl.when(pl.col("last") & (pl.col("at") - pl.col("begin") >= 2)).then(3)
        .when(~pl.col("last") & pl.col("last").shift(-1) & (pl.col("at") - pl.col("begin") >= 1)).then(2)
        .otherwise(0).cast(pl.UInt8).alias("role"),
        "user", "new", "at",
    ).collect()


def cut(long, visible):
    """Cuts histories [begin, end) of more than MAX_LEN into rows: two stretches of context, the older of them
    mostly empty, and the row's own. In rounds, from the newest end of all histories at once."""
    # A position that sees less than `end - HALF` keeps a row that ends there from owning it without a hole.
    at = pl.int_range(pl.len(), dtype=pl.Int32)
    blocks = visible.to_frame("v").select(until=pl.max_horizontal(pl.col("v") + HALF + 1, at + 1), at=at)
    if not blocks["until"].is_sorted():
        blocks = blocks.sort("until").with_columns(pl.col("at").cum_max())
    columns = ["begin", "end", "own", "since", "until", "older", "older_end"]
    rows = [pl.DataFrame(schema=dict.fromkeys(columns, pl.Int32))]
    must = 2
    while len(long):
        found = blocks["until"].search_sorted(long["end"], side="right").cast(pl.Int64) - 1
        # Where nothing before blocks, -1 is as good as any position before the history.
        block = pl.select(pl.when(found < 0).then(-1).otherwise(blocks["at"].gather(found.clip(0)))).to_series()
        long = long.with_columns(own=pl.max_horizontal(pl.lit(block) + 1, pl.col("end") - HALF))
        fair = pl.col("end") - pl.col("own") >= MAX_LEN // 4
        whole = long.filter(fair)
        rows.append(whole)
        rest = long.filter(~fair)
        owned = [whole]
        if len(rest):
            rest = holed(rest.drop("own"), visible, must)
            rows.append(rest)
            owned.append(rest.select("begin", "end", "own"))
        # What is left of a history may fit into one row.
        left = pl.concat(owned).filter(pl.col("own") > pl.col("begin")).select("begin", end="own")
        fits = pl.col("end") - pl.col("begin") <= MAX_LEN
        begin = pl.col("begin")
        rows.append(left.filter(fits).select("begin", "end", own=begin, since=begin, until=begin,
                                             older=begin, older_end=begin))
        long = left.filter(~fits)
        must = 1
    rows = pl.concat(rows, how="diagonal")
    # The rows without a hole: the oldest position that some owned one is to see.
    least = visible.reverse().cum_min().reverse()
    whole = rows.filter(pl.col("since").is_null()).select("begin", "end", "own")
    whole = whole.with_columns(v=pl.lit(visible).gather("own"), least=pl.lit(least).gather("own"))
    clear = whole.filter(pl.col("v") == pl.col("least"))
    unclear = whole.filter(pl.col("v") != pl.col("least"))
    if len(unclear):
        lowest = (
            unclear.lazy().select("own", at=pl.int_ranges("own", "end", dtype=pl.Int32)).explode("at")
            .group_by("own").agg(v=pl.lit(visible).gather("at").min()).collect()
        )
        unclear = unclear.drop("v").join(lowest, on="own").select(clear.columns)
    since = pl.min_horizontal(pl.max_horizontal(pl.col("v") - HALF, "begin"), "own")
    whole = pl.concat([clear, unclear]).select("begin", "end", "own", since=since, until="own",
                                               older=since, older_end=since)
    return pl.concat([whole.select(columns), rows.filter(pl.col("since").is_not_null()).select(columns)])


def holed(rows, visible, must):
    """The rows that would own too little: with a hole, and as a last resort what the held-out positions need."""
    begin, end = pl.col("begin"), pl.col("end")
    searched = (
        rows.lazy().with_columns(at=pl.int_ranges(end - 1, end - MAX_LEN - 1, -1, dtype=pl.Int32)).explode("at")
        .with_columns(v=pl.lit(visible).gather("at"))
        .with_columns(
            start=pl.max_horizontal(pl.col("v").cum_min().over("end") - HALF, "begin"),
            until=pl.min_horizontal(pl.col("v").cum_max().over("end"), "at"),
        )
        .with_columns(since=pl.min_horizontal("start", "until"))
        .filter(pl.col("until") - pl.col("since") + end - pl.col("at") <= MAX_LEN)
        .group_by("begin", "end")
        .agg(own=pl.col("at").min(), since=pl.col("since").sort_by("at").first(),
             until=pl.col("until").sort_by("at").first())
        .collect()
    )
    fine = searched.filter(end - pl.col("own") >= must).with_columns(older="since", older_end="since")
    rest = rows.join(fine, on="end", how="anti")
    if len(rest) == 0:
        return fine
    own = end - must
    seen = [pl.lit(visible).gather(end - 1 - back) for back in range(must)]
    rest = rest.with_columns(own=own, newer=pl.max_horizontal(seen), older=pl.min_horizontal(seen))
    rest = rest.with_columns(
        older=pl.max_horizontal(pl.col("older") - HALF, begin), high=pl.min_horizontal("older", "own"),
        since=pl.max_horizontal(pl.col("newer") - HALF, begin), until=pl.min_horizontal("newer", "own"),
    ).with_columns(high=pl.max_horizontal("high", "older"), until=pl.max_horizontal("until", "since"))
    rest = rest.with_columns(older_end=pl.min_horizontal("high", "since")).with_columns(
        surplus=pl.max_horizontal(pl.col("older_end") - pl.col("older") + pl.col("until") - pl.col("since")
                                  + must - MAX_LEN, 0),
    ).with_columns(dropped=pl.min_horizontal("surplus", pl.col("older_end") - pl.col("older")))
    rest = rest.with_columns(older=pl.col("older") + pl.col("dropped"),
                             since=pl.col("since") + pl.col("surplus") - pl.col("dropped"))
    return pl.concat([fine, rest.select(fine.columns)])


def main():
    events, items, out = peer_arguments(__doc__)
    frame, names, first_ts, scale = read(events, items)
    frame = history(frame, first_ts, scale)
    histories = frame.lazy().filter("new").select("user", begin="at").with_columns(
        end=pl.col("begin").shift(-1).fill_null(len(frame)),
    ).collect()
    visible = frame["visible"]
    rows = cut(histories.select("begin", "end").filter(pl.col("end") - pl.col("begin") > MAX_LEN), visible)
    frame = frame.select("item_index", "ts", "session", "request", "visible", "role")
    short = histories.lazy().filter(pl.col("end") - pl.col("begin") <= MAX_LEN).select(
        "user", "end", own="begin", since="begin", until="begin", older="begin", older_end="begin")
    rows = rows.lazy().join(histories.lazy().select("begin", "user"), on="begin").select(short.collect_schema().names())
    rows = pl.concat([short, rows]).join(names.lazy(), on="user").drop("user").sort("own").with_columns(
        length=pl.col("older_end") - pl.col("older") + pl.col("until") - pl.col("since")
        + pl.col("end") - pl.col("own"),
    ).with_columns(part=(pl.col("length").cast(pl.Int64).cum_sum() // PART_POSITIONS)).collect()
    for number, part in enumerate(rows.partition_by("part", maintain_order=True, include_key=False)):
        write(part, frame, out / f"{number}.parquet")


def write(rows, frame, path):
    rows = rows.with_row_index("row")
    # A row without a hole is one range of positions, and what is visible of it a prefix of that.
    straight = (pl.col("older") == pl.col("older_end")) & (pl.col("until") == pl.col("own"))
    places = rows.lazy().filter(straight).select(
        "row", "since", "own", at=pl.int_ranges("since", "end", dtype=pl.Int32),
    ).explode("at")
    places = places.select("row", "at", context=pl.col("at") < pl.col("own"),
                           seen=pl.lit(frame["visible"]).gather("at") - pl.col("since"))
    hole = rows.filter(~straight)
    if len(hole):
        segments = [("older", "older_end"), ("since", "until"), ("own", "end")]
        ranges = [pl.int_ranges(start, end, dtype=pl.Int32) for start, end in segments]
        visible = pl.lit(frame["visible"]).gather("at")
        seen = [(visible - pl.col(start)).clip(0, pl.col(end) - pl.col(start)) for start, end in segments]
        holed = hole.lazy().with_columns(at=pl.concat_list(ranges)).explode("at")
        holed = holed.select("row", "at", context=pl.col("at") < pl.col("own"), seen=seen[0] + seen[1] + seen[2])
        places = places.merge_sorted(holed, key="row")
    places = places.collect()
    lists = frame.lazy().select(pl.exclude("visible").gather(places["at"])).with_columns(
        row=places["row"].set_sorted(),
        visible_len=places["seen"].clip(0).cast(pl.UInt32),
        role=pl.when(places["context"]).then(4).otherwise("role").cast(pl.UInt8),
    ).group_by("row", maintain_order=True).agg(pl.all()).collect()
    lists.select(
        rows["user_id"], "item_index", "ts", "session", "request", "visible_len", "role",
        (rows["length"] - rows["end"] + rows["own"]).cast(pl.UInt32).alias("target_from"),
    ).write_parquet(path, compression="zstd", compression_level=1, statistics=False)


if __name__ == "__main__":
    main()
