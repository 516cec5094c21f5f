#!/usr/bin/env python3
"""Builds `sequences` with DuckDB; `sequences.py` runs and describes it.

DuckDB reads, joins and encodes (texts to integers). From there numpy (`sequences.py`); pyarrow writes, which
is faster than COPY and keeps milliseconds as they are.
"""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sequences import THREADS, Events, arrow_table, peer_arguments


def main():
    events, items, out = peer_arguments(__doc__)
    db = duckdb.connect()
    db.execute(f"SET threads = {THREADS}; SET memory_limit = '8GB'; SET TimeZone = 'UTC';"
               "SET preserve_insertion_order = false")
    db.execute(f"""
        CREATE TABLE users AS SELECT user_id, (row_number() OVER () - 1)::UINTEGER AS number
            FROM (SELECT DISTINCT user_id FROM read_parquet({events}));
        CREATE TABLE sources AS SELECT source, (row_number() OVER (ORDER BY source) - 1)::UINTEGER AS number
            FROM (SELECT DISTINCT source FROM read_parquet({events}));
    """)
    columns = db.sql(f"""
        SELECT u.number AS user_number, epoch_ms(ts) AS ts, item_index,
               CASE WHEN request_id IS NULL THEN 0::UBIGINT ELSE hash(request_id) | 1 END AS request,
               s.number AS source, position
        FROM read_parquet({events}) JOIN read_parquet({items}) USING (item_id)
            JOIN users u USING (user_id) JOIN sources s USING (source)
    """).to_arrow_table()
    arrays = {}
    while columns.num_columns:
        name = columns.column_names[0]
        arrays[name] = columns.column(0).to_numpy()
        columns = columns.remove_column(0)
    number, names = db.sql("SELECT number, user_id FROM users").to_arrow_table().columns
    # Without insertion order, not even ORDER BY says in which order the rows of a result arrive.
    names = names.take(pa.array(np.argsort(number.to_numpy()))).combine_chunks()
    sources = np.arange(db.execute("SELECT count(*) FROM sources").fetchone()[0])
    all_events = Events(arrays["user_number"], arrays["ts"], arrays["item_index"], arrays["request"],
                        arrays["source"], arrays["position"], sources)
    del arrays

    def write(part, user, lists, offsets, target_from):
        table = arrow_table(names.take(pa.array(user)), lists, offsets, target_from)
        pq.write_table(table, out / f"{part}.parquet", compression="zstd", compression_level=1,
                       use_dictionary=["session.list.element", "role.list.element"], write_statistics=False,
                       column_encoding={f"{name}.list.element": "DELTA_BINARY_PACKED"
                                        for name in ["ts", "request", "visible_len"]})

    all_events.parts(write)


if __name__ == "__main__":
    main()
