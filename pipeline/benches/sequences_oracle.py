#!/usr/bin/env python3
"""Checks a root's table `sequences` against DuckDB, list by list.

    pip install duckdb
    python3 pipeline/benches/sequences_oracle.py --root DIR [--actions play,like] [--split leave-one-out]

Reads the versions of `events` and `items` that `sequences` says it was built from, computes every list once
more with plain SQL from the definitions, and compares. Prints what it compared; at the first disagreement
prints some of its rows and exits with 1. Settings come from the table's properties; the filter and the split
are not among them. `--split any` leaves the roles unchecked. Positions of the SFT share (a hash that SQL
does not have) count as pre-training. Ties must be in file order, for the same reason.
"""

import argparse
import json
import pathlib
import sys
import time
import urllib.parse

import duckdb


def snapshot(root, table, version=None):
    """The shards and properties of one version, replayed from the table's log."""
    directory = pathlib.Path(root, table)
    shards, properties, last = {}, {}, None
    for entry in sorted(directory.glob("_delta_log/*.json")):
        if not entry.stem.isdigit() or (version is not None and int(entry.stem) > version):
            continue
        last = int(entry.stem)
        for line in entry.read_text().splitlines():
            action = json.loads(line)
            if "add" in action:
                shards[action["add"]["path"]] = True
            elif "remove" in action:
                shards.pop(action["remove"]["path"], None)
            elif "metaData" in action:
                properties = action["metaData"]["configuration"]
    if last is None:
        sys.exit(f"{directory} is not a table")
    paths = sorted(str(directory / urllib.parse.unquote(path)) for path in shards)
    return paths, properties, last


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--actions", default="", help="comma-separated; all where empty")
    parser.add_argument("--split", default="leave-one-out", help="leave-one-out, last-n=N, or any")
    args = parser.parse_args()
    started = time.time()

    sequences, properties, version = snapshot(args.root, "sequences")
    events, _, events_version = snapshot(args.root, "events", int(properties["events_version"]))
    items, _, items_version = snapshot(args.root, "items", int(properties["items_version"]))
    if properties["tie_policy"] != "file-order":
        sys.exit(f"ties are {properties['tie_policy']}; this script checks file-order only")
    off = properties["delta_tau_ms"] == "off"
    margin = 0 if off else int(properties["delta_tau_ms"])
    max_len = int(properties["max_len"])
    print(f"sequences version {version}, events {events_version}, items {items_version}; {properties}")

    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")

    def number(sql):
        return db.execute(sql).fetchone()[0]

    def none(what, sql):
        """Fails where `sql` has rows."""
        wrong = db.execute(f"SELECT * FROM ({sql}) LIMIT 5")
        names = [column[0] for column in wrong.description]
        rows = wrong.fetchall()
        if rows:
            print(f"DISAGREES: {what}", names, *rows, sep="\n  ", file=sys.stderr)
            sys.exit(1)
        print(f"  agrees: {what}")

    # The history of every user, from the definitions.
    actions = [f"'{action}'" for action in args.actions.split(",") if action]
    filtered = f"action IN ({', '.join(actions)})" if actions else "true"
    db.execute(f"""
        CREATE TABLE item AS SELECT item_id, item_index FROM read_parquet({items});
        CREATE TABLE event AS
            SELECT user_id, item_id, epoch_ms(ts) AS ts, request_id, source, position,
                   row_number() OVER (PARTITION BY event_date, event_id ORDER BY source, position) AS copy, action
            FROM read_parquet({events}, hive_partitioning = true);
        CREATE TABLE ordered AS
            SELECT user_id, item_id, ts, request_id,
                   row_number() OVER (PARTITION BY user_id ORDER BY ts, source, position) - 1 AS t,
                   count(*) OVER (PARTITION BY user_id) AS n
            FROM event WHERE copy = 1 AND {filtered};
        CREATE TABLE runs AS
            SELECT *,
                   sum(CASE WHEN gap > {properties["session_gap_ms"]} THEN 1 ELSE 0 END) OVER w AS session,
                   CASE WHEN request_id IS NULL THEN
                       sum(CASE WHEN t > 0 AND request_before IS NULL AND gap <= {properties["batch_gap_ms"]}
                           THEN 0 ELSE 1 END) OVER w END AS run
            FROM (SELECT *, ts - lag(ts) OVER w AS gap, lag(request_id) OVER w AS request_before
                  FROM ordered WINDOW w AS (PARTITION BY user_id ORDER BY t))
            WINDOW w AS (PARTITION BY user_id ORDER BY t);
        CREATE TABLE batches AS
            SELECT *, min(t) OVER (PARTITION BY user_id, request_id, run) AS first_t FROM runs;
        CREATE TABLE numbered AS
            SELECT *, dense_rank() OVER (PARTITION BY user_id ORDER BY first_t) - 1 AS request FROM batches;
        CREATE TABLE history AS
            SELECT i.user_id, i.t, i.n, item.item_index, i.ts, i.session, i.request, {"i.t" if off else '''
                   (SELECT count(*) FROM ordered j WHERE j.user_id = i.user_id AND j.t < i.t
                    AND j.ts < i.ts - ''' + str(margin) + '''
                    AND (i.request_id IS NULL OR j.t < i.first_t))'''} AS v
            FROM numbered i LEFT JOIN item USING (item_id);
    """)
    # The rows of the table, position by position. A row's owned positions continue those of the user's row
    # before; its context is the stretch before them, unless it leaves events out.
    db.execute(f"""
        CREATE TABLE stored AS
            SELECT row_number() OVER (ORDER BY filename, file_row_number) AS row, *
            FROM read_parquet({sequences}, filename = true, file_row_number = true);
        CREATE TABLE row AS
            SELECT row, user_id, filename, file_row_number, target_from, len(item_index) AS length,
                   coalesce(sum(len(item_index) - target_from) OVER (PARTITION BY user_id ORDER BY row
                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS first_owned,
                   len(ts) AS l1, len(session) AS l2, len(request) AS l3, len(visible_len) AS l4, len(role) AS l5
            FROM stored;
        CREATE TABLE place AS
            SELECT row, user_id, k, item_index[k + 1] AS item_index, epoch_ms(ts[k + 1]) AS ts,
                   session[k + 1] AS session, request[k + 1] AS request, visible_len[k + 1] AS visible_len,
                   role[k + 1] AS role, k >= target_from AS owned,
                   CASE WHEN k >= target_from THEN first_owned + k - target_from END AS t
            FROM (SELECT s.*, r.first_owned, unnest(range(len(s.item_index))) AS k FROM stored s JOIN row r USING (row));
    """)
    print(f"  {number('SELECT count(*) FROM history')} events of {number('SELECT count(DISTINCT user_id) FROM history')}"
          f" users, {number('SELECT count(*) FROM row')} rows, {number('SELECT count(*) FROM place')} positions,"
          f" {number('SELECT count(*) FROM event WHERE copy > 1')} duplicates")

    none("item indexes are dense from 1 and unique",
         "SELECT * FROM (SELECT item_index, row_number() OVER (ORDER BY item_index) AS rank FROM item) "
         "WHERE item_index <> rank")
    none("every event's item has an index", "SELECT * FROM history WHERE item_index IS NULL")
    none("lists of a row have one length, within max_len, and some position is owned",
         f"SELECT * FROM row WHERE length NOT BETWEEN 1 AND {max_len} OR target_from >= length "
         "OR l1 <> length OR l2 <> length OR l3 <> length OR l4 <> length OR l5 <> length")
    none("a user's rows lie in one shard",
         "SELECT user_id, count(DISTINCT filename) AS shards FROM row GROUP BY user_id HAVING shards > 1")
    none("shards are sorted by user",
         "SELECT * FROM (SELECT *, lag(user_id) OVER (PARTITION BY filename ORDER BY file_row_number) AS before "
         "FROM row) WHERE before > user_id")
    none("every event is owned exactly once",
         "SELECT coalesce(h.user_id, p.user_id) AS user_id, coalesce(h.t, p.t) AS t, h.item_index, p.row "
         "FROM history h FULL JOIN (SELECT * FROM place WHERE owned) p ON h.user_id = p.user_id AND h.t = p.t "
         "WHERE h.user_id IS NULL OR p.user_id IS NULL")
    for column in ["item_index", "ts", "session", "request"]:
        none(f"{column} at every owned position, in order",
             f"SELECT p.row, p.k, h.user_id, h.t, h.{column} AS sql, p.{column} AS stored "
             f"FROM place p JOIN history h USING (user_id, t) WHERE h.{column} <> p.{column}")

    # Where the context came from: the stretch before the owned positions, or, where that does not fit, the
    # only event of the history that looks like it.
    same = "h.item_index = p.item_index AND h.ts = p.ts AND h.session = p.session AND h.request = p.request"
    db.execute(f"""
        CREATE TABLE straight AS
            SELECT p.row, bool_and(coalesce({same}, false)) AS fits
            FROM place p JOIN row r USING (row)
            LEFT JOIN history h ON h.user_id = p.user_id AND h.t = r.first_owned + p.k - r.target_from
            GROUP BY p.row;
        CREATE TABLE mapped AS
            SELECT p.*, CASE WHEN p.owned THEN p.t WHEN s.fits THEN r.first_owned + p.k - r.target_from
                             ELSE c.t END AS origin, CASE WHEN p.owned OR s.fits THEN 1 ELSE c.candidates END AS candidates
            FROM place p JOIN row r USING (row) JOIN straight s USING (row)
            LEFT JOIN (SELECT p.row, p.k, min(h.t) AS t, count(*) AS candidates
                       FROM place p JOIN straight s USING (row) JOIN history h
                       ON NOT s.fits AND NOT p.owned AND h.user_id = p.user_id AND {same}
                       GROUP BY p.row, p.k) c ON c.row = p.row AND c.k = p.k;
    """)
    print(f"  {number('SELECT count(*) FROM straight WHERE NOT fits')} rows leave events out;"
          f" {number('SELECT count(*) FROM mapped WHERE candidates > 1')} of their positions look alike")
    none("context positions are events of the history", "SELECT * FROM mapped WHERE origin IS NULL")
    none("rows are in order of the history",
         "SELECT * FROM (SELECT *, lag(origin) OVER (PARTITION BY row ORDER BY k) AS before FROM mapped "
         "WHERE candidates = 1) WHERE before >= origin")
    db.execute("CREATE TABLE clear AS SELECT row FROM mapped GROUP BY row HAVING max(candidates) = 1")
    none("visible_len at every position",
         "SELECT p.row, p.k, h.t, p.visible_len AS stored, count(q.k) AS sql "
         "FROM mapped p JOIN clear USING (row) JOIN history h ON h.user_id = p.user_id AND h.t = p.origin "
         "LEFT JOIN mapped q ON q.row = p.row AND q.origin < h.v "
         "GROUP BY ALL HAVING stored <> sql")
    short = ("SELECT p.row, p.k, p.role, h.t, h.v, count(q.k) AS seen FROM mapped p JOIN clear USING (row) "
             "JOIN history h ON h.user_id = p.user_id AND h.t = p.origin "
             f"LEFT JOIN mapped q ON q.row = p.row AND q.origin < h.v AND q.origin >= h.v - {max_len // 2} "
             f"WHERE p.owned GROUP BY ALL HAVING seen < least(h.v, {max_len // 2})")
    none("every target sees its share of the history (rows that hold out may not)",
         f"SELECT * FROM ({short}) WHERE row NOT IN (SELECT row FROM place WHERE role IN (2, 3))")
    print(f"  {number(f'SELECT count(DISTINCT row) FROM ({short})')} rows have short context")
    none("context has role 4, owned positions another",
         "SELECT * FROM place WHERE owned = (role = 4)")
    if args.split != "any":
        last = int(args.split.removeprefix("last-n=")) if args.split.startswith("last-n=") else 1
        none(f"roles under {args.split}",
             "SELECT * FROM (SELECT p.row, p.k, h.t, h.n, CASE WHEN p.role = 1 THEN 0 ELSE p.role END AS stored, "
             f"CASE WHEN h.n < {last} + 2 THEN 0 WHEN h.t >= h.n - {last} THEN 3 WHEN h.t = h.n - {last} - 1 THEN 2 "
             "ELSE 0 END AS sql FROM place p JOIN history h USING (user_id, t)) WHERE stored <> sql")
    roles = db.execute("SELECT role, count(*) FROM place GROUP BY role ORDER BY role").fetchall()
    hidden = number("SELECT 100.0 * sum(k - visible_len) / greatest(sum(k), 1) FROM place WHERE owned")
    print(f"all lists agree: positions by role {dict(roles)}, {hidden:.2f}% of earlier positions hidden, "
          f"{time.time() - started:.1f} s")


if __name__ == "__main__":
    main()
