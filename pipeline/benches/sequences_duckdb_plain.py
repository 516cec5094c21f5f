#!/usr/bin/env python3
"""Builds `sequences` with DuckDB alone, in SQL; `sequences.py` runs and describes it.

The events are sorted once, by one integer of user and time. Over a sorted table, windows without partitions
stream, and need no further sort: what begins with a user, a session or a batch is a flag, summed. The visible
prefix is counted in one sort of times and bounds together, and lists are aggregated per user and sliced per row.
"""

import duckdb

from sequences import BATCH_GAP, HALF, MARGIN, MAX_LEN, SESSION_GAP, THREADS, peer_arguments


def read(db, events, items):
    """`event`: by user, time, source and position."""
    first, last = db.execute(f"SELECT epoch_ms(min(ts)), epoch_ms(max(ts)) FROM read_parquet({events})").fetchone()
    first -= MARGIN + 1
    bits = (last - first).bit_length()
    db.execute(f"""
        CREATE TABLE users AS SELECT user_id, (row_number() OVER () - 1)::INTEGER AS u
            FROM (SELECT DISTINCT user_id FROM read_parquet({events}));
        CREATE TABLE sources AS SELECT source, (row_number() OVER (ORDER BY source) - 1)::BIGINT AS number
            FROM (SELECT DISTINCT source FROM read_parquet({events}));
    """)
    assert db.execute("SELECT count(*) FROM users").fetchone()[0] << bits < 1 << 62
    db.execute(f"""
        CREATE TABLE event AS
            SELECT (u::BIGINT << {bits}) + (epoch_ms(ts) - {first}) AS key, item_index,
                   CASE WHEN request_id IS NULL THEN 0::UBIGINT ELSE hash(request_id) | 1 END AS request
            FROM read_parquet({events}) JOIN read_parquet({items}) USING (item_id)
                JOIN users USING (user_id) JOIN sources USING (source)
            ORDER BY key, number << 40 | position;
    """)
    return first, bits


def histories(db, first, bits):
    """`history`: one row for each user, with the lists of the whole history."""
    db.execute(f"""
        -- How many events lie before each bound: both in one sort. Sorted bounds are in the order of the events.
        CREATE TABLE visible AS
            SELECT before FROM (
                SELECT key & 1 = 0 AS is_bound,
                       sum(key & 1) OVER (ROWS UNBOUNDED PRECEDING)::INTEGER AS before
                FROM (SELECT key FROM (SELECT key * 2 + 1 AS key FROM event
                      UNION ALL SELECT (key - {MARGIN}) * 2 FROM event) ORDER BY key)
            ) WHERE is_bound;
        -- A piece is a stretch of one request, or a run without one. Batches begin where pieces do.
        CREATE TABLE flagged AS
            SELECT key, item_index, before, pos::INTEGER AS pos, (key >> {bits})::INTEGER AS u,
                   request, new, piece_begins,
                   sum((new OR gap > {SESSION_GAP})::INTEGER) OVER (ROWS UNBOUNDED PRECEDING)::INTEGER AS session,
                   sum(piece_begins::INTEGER) OVER (ROWS UNBOUNDED PRECEDING)::INTEGER AS piece
            FROM (
                SELECT *, new OR request <> request_before OR (request = 0 AND gap > {BATCH_GAP}) AS piece_begins
                FROM (
                    SELECT *, key - key_before AS gap, (key >> {bits}) IS DISTINCT FROM (key_before >> {bits}) AS new
                    FROM (
                        SELECT *, row_number() OVER () - 1 AS pos, lag(key) OVER () AS key_before,
                               lag(request) OVER () AS request_before
                        FROM event POSITIONAL JOIN visible
                    )
                )
            );
        CREATE TABLE piece AS
            SELECT *, sum((first = pos)::INTEGER) OVER (ROWS UNBOUNDED PRECEDING)::INTEGER AS batch FROM (
                SELECT p.piece, p.pos, p.u, p.new, p.session, p.request,
                       CASE WHEN request = 0 THEN pos ELSE min_pos END AS first
                FROM (SELECT * FROM flagged WHERE piece_begins) p
                LEFT JOIN (SELECT u, request, min(pos) AS min_pos FROM flagged WHERE piece_begins AND request <> 0
                           GROUP BY u, request) USING (u, request)
                ORDER BY pos
            );
        CREATE TABLE bounds AS
            SELECT u, pos AS begin, lead(pos, 1, (SELECT count(*) FROM event)::INTEGER) OVER (ORDER BY pos) AS until,
                   session AS session_begin, batch AS batch_begin
            FROM piece WHERE new;
        CREATE TABLE known AS
            SELECT p.piece, p.first - b.begin AS first, f.batch - batch_begin AS request, begin, until, session_begin
            FROM piece p JOIN piece f ON p.first = f.pos JOIN bounds b ON p.u = b.u;
        CREATE TABLE placed AS
            SELECT u, pos, item_index, make_timestamp_ms((key & {(1 << bits) - 1}) + {first})::TIMESTAMP_MS AS ts,
                   (session - session_begin)::UINTEGER AS session, k.request::UINTEGER AS request,
                   least(before - begin, first)::UINTEGER AS v,
                   CASE WHEN until - begin < 3 OR pos < until - 2 THEN 0 WHEN pos = until - 1 THEN 3 ELSE 2
                        END::UTINYINT AS role
            FROM flagged f JOIN known k ON f.piece = k.piece;
    """)
    lists = ["item_index", "ts", "session", "request", "v", "role"]
    # Lists of a sorted table are in order but where two threads shared a user: those few are sorted.
    db.execute(f"""
        CREATE TABLE small.history AS
            SELECT u, {", ".join(f"list({name}) AS {name}" for name in lists)}, list(pos) AS pos
            FROM placed GROUP BY u;
        CREATE TABLE shared AS
            SELECT u FROM small.history JOIN bounds USING (u) WHERE pos <> range(begin, until)::INTEGER[];
    """)
    if db.execute("SELECT count(*) FROM shared").fetchone()[0]:
        db.execute(f"""
            DELETE FROM small.history WHERE u IN (SELECT u FROM shared);
            INSERT INTO small.history
                SELECT u, {", ".join(f"list({name} ORDER BY pos)" for name in lists)}, list(pos ORDER BY pos)
                FROM placed WHERE u IN (SELECT u FROM shared) GROUP BY u;
        """)


def cut(db):
    """`cuts`: the rows of histories of more than MAX_LEN: two stretches of context, the older of them mostly
    empty, and the row's own. In rounds, from the newest end of all histories at once."""
    db.execute(f"""
        CREATE TABLE small.long AS
            SELECT u, v, len(v)::INTEGER AS until_own FROM small.history WHERE len(v) > {MAX_LEN};
        CREATE TABLE cuts (u INTEGER, older INTEGER, older_until INTEGER, since INTEGER, until INTEGER,
                           own INTEGER, until_own INTEGER);
    """)
    must = 2
    while db.execute("SELECT count(*) FROM small.long").fetchone()[0]:
        # The last position that sees less than `until_own - HALF` is too old to be owned without a hole.
        db.execute(f"""
            CREATE OR REPLACE TABLE small.found AS
                SELECT u, v, until_own, until_own - coalesce(list_position(list_reverse(list_transform(
                       v[until_own - {HALF - 1}:until_own], lambda x: x < until_own - {HALF})), true) - 1,
                       {HALF})::INTEGER AS own
                FROM small.long;
            INSERT INTO cuts
                SELECT u, since, since, since, own, own, until_own FROM (
                    SELECT u, own, until_own,
                           least(greatest(list_min(v[own + 1:until_own])::INTEGER - {HALF}, 0), own) AS since
                    FROM small.found WHERE until_own - own >= {MAX_LEN // 4});
            CREATE OR REPLACE TABLE small.rest AS
                SELECT u, v, until_own FROM small.found WHERE until_own - own < {MAX_LEN // 4};
        """)
        if db.execute("SELECT count(*) FROM small.rest").fetchone()[0]:
            holed(db, must)
            db.execute("UPDATE small.found SET own = h.own FROM holes h WHERE small.found.u = h.u; "
                       "INSERT INTO cuts SELECT * FROM holes")
        # What is left of a history may fit into one row.
        db.execute(f"""
            INSERT INTO cuts SELECT u, 0, 0, 0, 0, 0, own FROM small.found WHERE own BETWEEN 1 AND {MAX_LEN};
            CREATE OR REPLACE TABLE small.long AS SELECT u, v, own AS until_own FROM small.found WHERE own > {MAX_LEN};
        """)
        must = 1


def holed(db, must):
    """`holes`: the rows that would own too little, with a hole; as a last resort what the held-out ones need."""
    db.execute(f"""
        CREATE OR REPLACE TABLE holes AS
            SELECT u, since AS older, since AS older_until, since, until, own, until_own FROM (
                SELECT u, until_own, min(own) AS own, arg_min(since, own) AS since, arg_min(until, own) AS until
                FROM (
                    SELECT *, least(start, until) AS since FROM (
                        SELECT u, until_own, own, greatest(min(v) OVER w - {HALF}, 0) AS start,
                               least(max(v) OVER w, own) AS until
                        FROM (SELECT u, until_own,
                                     unnest(range(until_own - {MAX_LEN}, until_own))::INTEGER AS own,
                                     unnest(v[until_own - {MAX_LEN - 1}:until_own])::INTEGER AS v FROM small.rest)
                        WINDOW w AS (PARTITION BY u ORDER BY own DESC)
                    )
                ) WHERE until - since + until_own - own <= {MAX_LEN}
                GROUP BY u, until_own
            ) WHERE until_own - own >= {must};
        INSERT INTO holes
            SELECT u, older + dropped, older_until, since + surplus - dropped, until, own, until_own FROM (
                SELECT *, least(surplus, older_until - older) AS dropped FROM (
                    SELECT *, greatest(older_until - older + until - since + {must} - {MAX_LEN}, 0) AS surplus FROM (
                        SELECT *, least(high, since) AS older_until FROM (
                            SELECT u, own, until_own, older, since, greatest(least(v_older, own), older) AS high,
                                   greatest(least(v_newer, own), since) AS until
                            FROM (
                                SELECT *, greatest(v_older - {HALF}, 0) AS older, greatest(v_newer - {HALF}, 0) AS since
                                FROM (SELECT u, until_own, until_own - {must} AS own,
                                             list_min(v[until_own - {must - 1}:until_own])::INTEGER AS v_older,
                                             list_max(v[until_own - {must - 1}:until_own])::INTEGER AS v_newer
                                      FROM small.rest WHERE u NOT IN (SELECT u FROM holes))
                            )
                        )
                    )
                )
            );
    """)


def write(db, out):
    columns = ["item_index", "ts", "session", "request"]

    def sliced(name):
        """A list of a row without a hole; and of one with."""
        return (f"{name}[since + 1:until_own] AS {name}",
                f"{name}[older + 1:older_until] || {name}[since + 1:until] || {name}[own + 1:until_own] AS {name}")

    plain, hole = zip(*[sliced(name) for name in columns])
    context = "list_resize([]::UTINYINT[], target_from, 4::UTINYINT) || role[own + 1:until_own] AS role"
    seen = " + ".join(f"least(greatest(x::INTEGER - {start}, 0), {end} - {start})" for start, end in
                      [("older", "older_until"), ("since", "until"), ("own", "until_own")])
    db.execute(f"""
        COPY (
            SELECT user_id, {", ".join(columns)}, v AS visible_len, role, 0::UINTEGER AS target_from
            FROM small.history JOIN users USING (u) WHERE len(v) <= {MAX_LEN}
            UNION ALL
            SELECT user_id, {", ".join(plain)},
                   list_transform(v[since + 1:until_own], lambda x: greatest(x::INTEGER - since, 0)::UINTEGER)
                       AS visible_len, {context}, target_from::UINTEGER
            FROM (SELECT *, own - since AS target_from FROM cuts WHERE until = own AND older = older_until)
                JOIN small.history USING (u) JOIN users USING (u)
            UNION ALL
            SELECT user_id, {", ".join(hole)},
                   list_transform(v[older + 1:older_until] || v[since + 1:until] || v[own + 1:until_own],
                                  lambda x: ({seen})::UINTEGER) AS visible_len, {context}, target_from::UINTEGER
            FROM (SELECT *, older_until - older + until - since AS target_from FROM cuts
                  WHERE NOT (until = own AND older = older_until))
                JOIN small.history USING (u) JOIN users USING (u)
        ) TO '{out}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, PARQUET_VERSION v2,
                         ROW_GROUP_SIZE 8192, DICTIONARY_SIZE_LIMIT 1, PER_THREAD_OUTPUT, OVERWRITE_OR_IGNORE);
    """)


def main():
    events, items, out = peer_arguments(__doc__)
    db = duckdb.connect()
    db.execute(f"SET threads = {THREADS}; SET TimeZone = 'UTC'")
    # Threads share a table by groups of rows: those of lists are too few at the usual 122880.
    db.execute("ATTACH ':memory:' AS small (ROW_GROUP_SIZE 2048)")
    first, bits = read(db, events, items)
    histories(db, first, bits)
    cut(db)
    write(db, out)


if __name__ == "__main__":
    main()
