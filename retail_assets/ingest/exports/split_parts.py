"""The rows of an export of many days, put down by the day of their order."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb

from retail_assets.engines.duckdb import BLANK_CHARACTERS, identity_of, order_id_of
from retail_assets.ingest.exports.csv_records import open_text
from retail_assets.mapping import ExportMapping
from retail_assets.mapping.fields import TextField
from retail_assets.settings import Settings

Row = list[str]

FETCHED = 10_000
"""Orders that are fetched at a time."""


class Identities:
    """The order of a row, its own day, and whether it is a refund, as the typed read has them.

    Args:
        connection: in the business time zone.
        mapping: how the rows are written.
        header: the columns of the rows.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        mapping: ExportMapping,
        header: Sequence[str],
    ) -> None:
        self._connection, self._mapping, self._header = connection, mapping, header

    def of(self, rows: Sequence[Row]) -> list[tuple[str | None, date | None, bool]]:
        """Order, day and whether it is a refund, of each row; null if it has too few fields."""
        return self._queried(rows, *identity_of(self._mapping))

    def orders(self, rows: Sequence[Row]) -> list[str | None]:
        """The order of each row alone."""
        field = self._mapping.fields.order_id
        if field == TextField(source=field.source):
            # To plan a query takes longer than to read the rows of a day.
            place, width = self._header.index(field.source or ""), len(self._header)
            return [
                row[place].strip(BLANK_CHARACTERS) or None if len(row) == width else None
                for row in rows
            ]
        return [order for (order,) in self._queried(rows, *order_id_of(self._mapping))]

    def _queried(self, rows: Sequence[Row], names: Sequence[str], query: str) -> list[Any]:
        places = [self._header.index(name) for name in names]
        whole = [row if len(row) == len(self._header) else None for row in rows]
        texts = [[row[place] if row else "" for row in whole] for place in places]
        return self._connection.execute(query, texts).fetchall() if rows else []


class Parts:
    """The rows of an export in a file for each day, until all are known.

    All rows of an order go to one day: the last one of its rows, so that none lies in the future.
    Refunds count in this only where they belong to their own day. A row without an order goes to
    its own day, or to the one on which the export was written, `otherwise`; `undated` counts the
    latter, and those of orders without a day. `connection` is in the business time
    zone, and bounded in memory.

    Args:
        folder: an empty folder for them.
        mapping: how the rows are written.
        header: the columns of the rows.
        written: when the export was written.
        settings: the time zone, and limits of memory.
    """

    def __init__(
        self,
        folder: Path,
        mapping: ExportMapping,
        header: Sequence[str],
        written: datetime,
        settings: Settings,
    ) -> None:
        self._folder = folder
        self.connection = duckdb.connect(
            config={"memory_limit": settings.memory_limit, "temp_directory": str(folder / "spill")}
        )
        self.connection.execute("SET TimeZone = ?", [settings.timezone])
        self.connection.execute(
            'CREATE TABLE seen ("order" VARCHAR, own_day DATE, is_refund BOOLEAN)'
        )
        self.undated = 0
        self._own_day_refunds = mapping.refunds == "refund_day"
        self.otherwise = written.astimezone(ZoneInfo(settings.timezone)).date()
        self._identities = Identities(self.connection, mapping, header)

    def close(self) -> None:
        """Close the connection; the folder is the caller's."""
        self.connection.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Put down further rows."""
        found = self._identities.of(rows)
        by_day: dict[date, list[Row]] = {}
        for row, (order, day, _) in zip(rows, found, strict=True):
            by_day.setdefault(day or self.otherwise, []).append([order or "", *row])
        for day, some in by_day.items():
            self._append(day, some)
        seen = [each for each in found if each[0]]
        self.undated += sum(order is None and day is None for order, day, _ in found)
        columns = [list(each) for each in zip(*seen, strict=True)]
        if seen:
            self.connection.execute(
                "INSERT INTO seen SELECT unnest(?::VARCHAR[]), unnest(?::DATE[]),"
                " unnest(?::BOOLEAN[])",
                columns,
            )

    def finish(self) -> None:
        """Put all rows of an order together, once all rows are there."""
        decides = "true" if self._own_day_refunds else "NOT is_refund"
        otherwise = f"DATE '{self.otherwise}'"
        self.connection.execute(
            f'CREATE TABLE orders AS SELECT "order", coalesce(max(own_day) FILTER ({decides}),'
            f" max(own_day), {otherwise}) AS day,"
            f" count(DISTINCT coalesce(own_day, {otherwise})) > 1 AS is_scattered"
            ' FROM seen GROUP BY "order"'
        )
        (without_day,) = self.connection.execute(
            'SELECT count(*) FROM seen WHERE "order" IN (SELECT "order" FROM seen'
            ' GROUP BY "order" HAVING max(own_day) IS NULL)'
        ).fetchone() or (0,)
        self.undated += without_day
        scattered: Mapping[str, date] = dict(
            self.connection.execute('SELECT "order", day FROM orders WHERE is_scattered').fetchall()
        )
        if not scattered:
            return
        gathered: dict[date, list[Row]] = {}
        for day in self.days():
            rows = list(self.rows(day))
            moved = [row for row in rows if scattered.get(row[0], day) != day]
            if moved:
                self._path(day).unlink()
                self._append(day, [row for row in rows if scattered.get(row[0], day) == day])
            for row in moved:
                gathered.setdefault(scattered[row[0]], []).append(row)
        for day, some in gathered.items():
            self._append(day, some)

    def orders(self) -> Iterator[tuple[str, date]]:
        """Each order and its day."""
        found = self.connection.cursor().execute('SELECT "order", day FROM orders')
        while chunk := found.fetchmany(FETCHED):
            yield from chunk

    def days(self) -> list[date]:
        """The days that have rows, in order."""
        return sorted(
            date.fromisoformat(path.name) for path in self._folder.iterdir() if path.is_file()
        )

    def rows(self, day: date) -> Iterator[Row]:
        """The rows of a day, each with its order, blank if it has none, as a first field."""
        with open_text(self._path(day), "rb") as text:
            yield from csv.reader(text)

    def _append(self, day: date, rows: Iterable[Row]) -> None:
        with open_text(self._path(day), "ab") as part:
            csv.writer(part).writerows(rows)

    def _path(self, day: date) -> Path:
        return self._folder / str(day)
