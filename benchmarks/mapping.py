"""What a mapping costs: the same orders in our own shape and in a shop's, ingested in turns.

Run with `python -m benchmarks.mapping [ORDERS]`; prints the CPU seconds of each turn and their
ratio.
"""

import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import duckdb

from retail_assets.ingest.exports.load import ingest
from retail_assets.lake.connection import Lake
from retail_assets.mapping.exports import NATIVE_EXPORTS, ExportMapping
from retail_assets.settings import Settings

DAY = date(2026, 10, 20)
TURNS = 11

OURS = (
    "'O' || i AS order_id, 'C' || i % 5000 AS customer_id, 'P' || i % 300 AS product_id,"
    " ['North', 'South', 'East'][1 + i % 3] AS region,"
    " ['completed', 'cancelled'][1 + (i % 10 = 0)::INTEGER] AS status,"
    " printf('%d.%02d', 5 + i % 900, i % 100) AS order_value_gbp,"
    " strftime(TIMESTAMP '2026-10-20' + INTERVAL 1 SECOND * (i % 86400), '%Y-%m-%d %H:%M:%S')"
    " AS order_timestamp"
)

RENAMED = {
    "order_id": "Number",
    "customer_id": "Customer",
    "product_id": "Article",
    "region": "Region",
    "status": {"from": "State", "values": {"paid": "completed", "void": "cancelled"}},
    "order_value_gbp": "Price",
    "order_timestamp": "Placed",
}

SPELLED = RENAMED | {"order_timestamp": {"from": "Placed", "format": "%d.%m.%Y %H:%M:%S"}}

THEIRS = (
    "SELECT order_id AS Number, customer_id AS Customer, product_id AS Article, region AS Region,"
    " CASE status WHEN 'completed' THEN 'paid' ELSE 'void' END AS State, {price} AS Price,"
    " {placed} AS Placed FROM ours"
)

CASES: Mapping[str, tuple[ExportMapping, str, str]] = {
    "our own": (NATIVE_EXPORTS, "FROM ours", ","),
    "other names, statuses": (
        ExportMapping.model_validate({"file": "orders_%Y_%m_%d.csv", "fields": RENAMED}),
        THEIRS.format(price="order_value_gbp", placed="order_timestamp"),
        ",",
    ),
    "and numbers, times, delimiter": (
        ExportMapping.model_validate({"delimiter": ";", "decimal": ",", "fields": SPELLED}),
        THEIRS.format(
            price="replace(order_value_gbp, '.', ',')",
            placed="strftime(order_timestamp::TIMESTAMP, '%d.%m.%Y %H:%M:%S')",
        ),
        ";",
    ),
}


def main(orders: int) -> None:
    """Write the exports, ingest each in turns, and print the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    with TemporaryDirectory() as folder:
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE ours AS SELECT {OURS} FROM range({orders}) AS t(i)")
            for name, (_, query, delimiter) in CASES.items():
                exports = Path(folder, name, "exports")
                exports.mkdir(parents=True)
                connection.execute(
                    f"COPY ({query}) TO '{exports / 'orders_2026_10_20.csv'}'"
                    f" (HEADER, DELIMITER '{delimiter}')"
                )
        for turn in range(TURNS):
            for name, (mapping, _, _) in CASES.items():
                settings = Settings(data_dir=Path(folder, name, f"lake{turn}"))
                lake = Lake.from_settings(settings)
                with lake.connect() as connection:
                    begun = time.process_time()
                    found = ingest(
                        lake, connection, Path(folder, name, "exports"), [DAY], late_days=7,
                        mapping=mapping,
                    )  # fmt: skip
                    seconds[name].append(time.process_time() - begun)
                assert found.raw.rows == {DAY: orders}, (name, found)
    plain = median(seconds["our own"])
    for name, times in seconds.items():
        turns = ", ".join(f"{each:.2f}" for each in times)
        print(f"{name:32} median {median(times):6.2f} s = {median(times) / plain:4.2f}   ({turns})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500_000)
