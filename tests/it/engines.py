"""Other engines at our tables, for `engines.rs`: deltalake, DuckDB, Polars and, where it is there, Spark with Delta.

    engines.py have                    the engines that are there, a line each
    engines.py read ROOT TABLE         rows as each engine counts them, a line each
    engines.py rewrite TABLE [COLUMN]  writes the table again: long texts, times in microseconds
    engines.py delete TABLE USER       deletes a user's rows
    engines.py append TABLE            adds a copy of one row under another event_id
    engines.py vector TABLE USER       deletes a user's rows of one shard by a deletion vector
    engines.py checkpoint TABLE        writes a checkpoint and cleans the log up
    engines.py spark-delete TABLE USER
    engines.py spark-append TABLE
"""

import glob
import json
import os
import struct
import sys
import time
import urllib.parse

import duckdb
import polars
import pyarrow
import pyarrow.parquet
from deltalake import DeltaTable, write_deltalake


def spark():
    """A session, or None where Spark or the jars of Delta are not there: their directory is CLIMBER_SPARK_JARS."""
    jars = sorted(glob.glob(os.path.join(os.environ.get("CLIMBER_SPARK_JARS", ""), "delta-*.jar")))
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        return None
    if not jars:
        return None
    builder = SparkSession.builder.master("local[1]").appName("engines")
    settings = {
        "spark.jars": ",".join(jars),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.ui.enabled": "false",
        "spark.sql.shuffle.partitions": "2",
        "spark.driver.memory": "1g",
        "spark.sql.session.timeZone": "America/New_York",
    }
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    return session


def read(root, table):
    path = os.path.join(root, table)
    delta = DeltaTable(path)
    rows = delta.to_pyarrow_table()
    print("deltalake", rows.num_rows)
    # Its own reader refuses unsigned columns, which Delta's schema does not know.
    print("polars", polars.read_delta(path, use_pyarrow=True).height)
    files = [urllib.parse.unquote(uri) for uri in delta.file_uris()]
    counted = duckdb.sql(f"select count(*) from read_parquet({files!r}, union_by_name = true)")
    print("duckdb", counted.fetchall()[0][0])
    if session := spark():
        print("spark", session.read.format("delta").load(path).count())


def rewrite(table, partition=None):
    rows = DeltaTable(table).to_pyarrow_table()
    large = [f.with_type(pyarrow.large_string()) if f.type == pyarrow.string() else f for f in rows.schema]
    rows = rows.cast(pyarrow.schema(large))
    write_deltalake(table, rows, mode="overwrite", partition_by=[partition] if partition else None)


def live(table):
    """The add actions of the newest version, and the number of that version."""
    adds, logs = {}, sorted(glob.glob(table + "/_delta_log/*.json"))
    assert logs[0].endswith(f"{0:020}.json"), "the log was cleaned up"
    for action in (json.loads(line) for log in logs for line in open(log)):
        if "add" in action:
            adds[action["add"]["path"]] = action["add"]
        if "remove" in action:
            adds.pop(action["remove"]["path"], None)
    return adds, int(os.path.basename(logs[-1])[:20])


def vector(table, user):
    """As the protocol has it: a bitmap of row numbers, in Z85, inside of the log."""
    adds, version = live(table)
    for path, add in adds.items():
        file = pyarrow.parquet.ParquetFile(os.path.join(table, urllib.parse.unquote(path)))
        users = file.read(["user_id"])["user_id"].to_pylist()
        rows = [row for row, found in enumerate(users) if found == user]
        if rows:
            break
    bitmap = struct.pack("<IQIIIHHI", 1681511377, 1, 0, 12346, 1, 0, len(rows) - 1, 16)
    bitmap += struct.pack(f"<{len(rows)}H", *rows)
    size = len(bitmap)
    bitmap += bytes(-size % 4)
    digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    words = struct.iter_unpack(">I", bitmap)
    text = "".join(digits[word // 85**place % 85] for (word,) in words for place in (4, 3, 2, 1, 0))
    now = int(time.time() * 1000)
    feature = ["deletionVectors"]
    deletion = dict(storageType="i", pathOrInlineDv=text, sizeInBytes=size, cardinality=len(rows))
    actions = [
        {"commitInfo": dict(timestamp=now, operation="DELETE")},
        {"protocol": dict(minReaderVersion=3, minWriterVersion=7, readerFeatures=feature, writerFeatures=feature)},
        {"remove": dict(path=path, deletionTimestamp=now, dataChange=True, partitionValues=add["partitionValues"], size=add["size"])},
        {"add": dict(add, dataChange=True, deletionVector=deletion)},
    ]
    with open(f"{table}/_delta_log/{version + 1:020}.json", "x") as log:
        log.writelines(json.dumps(action) + "\n" for action in actions)


def checkpoint(table):
    delta = DeltaTable(table)
    delta.create_checkpoint()
    version = delta.version()
    for log in glob.glob(table + "/_delta_log/*.json"):
        if int(os.path.basename(log)[:20]) < version:
            os.remove(log)


def main():
    command, *arguments = sys.argv[1:]
    if command == "have":
        print("deltalake\nduckdb\npolars")
        if spark():
            print("spark")
    elif command == "read":
        read(*arguments)
    elif command == "rewrite":
        rewrite(*arguments)
    elif command == "delete":
        table, user = arguments
        DeltaTable(table).delete(f"user_id = '{user}'")
    elif command == "append":
        rows = DeltaTable(arguments[0]).to_pyarrow_table().slice(0, 1)
        at = rows.schema.get_field_index("event_id")
        rows = rows.set_column(at, rows.schema.field(at), pyarrow.array(["appended"], rows.schema.field(at).type))
        write_deltalake(arguments[0], rows, mode="append")
    elif command == "vector":
        vector(*arguments)
    elif command == "checkpoint":
        checkpoint(*arguments)
    elif command == "spark-delete":
        table, user = arguments
        spark().sql(f"delete from delta.`{table}` where user_id = '{user}'")
    elif command == "spark-append":
        session = spark()
        from pyspark.sql.functions import lit

        row = session.read.format("delta").load(arguments[0]).limit(1).withColumn("event_id", lit("by spark"))
        row.write.format("delta").mode("append").save(arguments[0])
    else:
        sys.exit(__doc__)


main()
