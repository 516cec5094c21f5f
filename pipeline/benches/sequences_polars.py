#!/usr/bin/env python3
"""Builds `sequences` with Polars; `sequences.py` runs and describes it.

Polars reads and encodes (its streaming engine, texts to integers on the way), finds the visible prefix by
an as-of join of sorted keys, and writes. Between, numpy (`sequences.py`).
"""

import os

os.environ["POLARS_MAX_THREADS"] = "2"

import numpy as np
import polars as pl

from sequences import Events, arrow_table, peer_arguments


def horizon(keys, bounds):
    """How many keys lie before each bound: both are sorted, and a merge is faster than a search."""
    left = pl.LazyFrame({"key": bounds})
    right = pl.LazyFrame({"key": keys, "before": np.arange(1, len(keys) + 1, dtype=np.int32)})
    joined = left.join_asof(right, on="key", allow_exact_matches=False, check_sortedness=False)
    return joined.select(pl.col("before").fill_null(0)).collect().to_series().to_numpy()


def texts(categorical):
    """The texts of a column, at the places of their codes."""
    distinct = categorical.unique()
    at = pl.DataFrame({"code": distinct.to_physical(), "text": distinct.cast(pl.String)})
    codes = pl.DataFrame({"code": pl.arange(at["code"].max() + 1, dtype=pl.UInt32, eager=True)})
    return codes.join(at, on="code", how="left", maintain_order="left")["text"]


def main():
    events, items, out = peer_arguments(__doc__)
    users = pl.Categorical(pl.Categories("user"))
    sources = pl.Categorical(pl.Categories("source"))
    item_ids = pl.Categorical(pl.Categories("item"))
    catalogue = pl.read_parquet(items, columns=["item_id", "item_index"])
    # Kept until the events are read: the codes of a category live as long as some column of it.
    coded = catalogue["item_id"].cast(item_ids)
    codes = coded.to_physical().to_numpy()
    index = np.zeros(int(codes.max(initial=0)) + 1, np.uint32)
    index[codes] = catalogue["item_index"].to_numpy()

    frame = (
        pl.scan_parquet(events)
        .select(
            pl.col("user_id").cast(users),
            pl.col("item_id").cast(item_ids).to_physical(),
            pl.col("ts").to_physical(),
            pl.when(pl.col("request_id").is_null()).then(0).otherwise(pl.col("request_id").hash() | 1)
            .cast(pl.UInt64).alias("request"),
            pl.col("source").cast(sources),
            "position",
        )
        .collect(engine="streaming")
    )
    names = texts(frame["user_id"])
    source_rank = texts(frame["source"]).rank("ordinal").to_numpy()
    columns = {name: frame[name].to_physical().to_numpy() for name in frame.columns}
    all_events = Events(columns["user_id"], columns["ts"], index[columns["item_id"]], columns["request"],
                        columns["source"], columns["position"], source_rank, horizon)
    del frame, columns, coded, codes, catalogue

    def write(part, user, lists, offsets, target_from):
        table = arrow_table(names.gather(user).to_arrow(), lists, offsets, target_from)
        pl.from_arrow(table).write_parquet(out / f"{part}.parquet", compression="zstd", compression_level=1,
                                         statistics=False)

    all_events.parts(write)


if __name__ == "__main__":
    main()
