"""The exports that the cases of the batch read; nothing here needs the platform."""

import csv
import gzip
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

STATUSES = ("completed", "pending", "cancelled", "returned", "refunded")
FIELDS = (
    "order_id",
    "customer_id",
    "product_id",
    "region",
    "status",
    "order_value_gbp",
    "order_timestamp",
)


def exports(data: Path) -> list[Path]:
    """The exports of all days of a data folder."""
    return sorted((data / "exports").glob("orders_*.csv*"))


def by_header(data: Path) -> Iterator[tuple[tuple[str, ...], list[Path]]]:
    """The exports with the same columns, together, and these columns."""
    headers = {path: _header(path) for path in exports(data)}
    for names, paths in groupby(sorted(headers, key=headers.__getitem__), headers.__getitem__):
        yield names, list(paths)


def _header(path: Path) -> tuple[str, ...]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        return tuple(next(csv.reader(file)))
