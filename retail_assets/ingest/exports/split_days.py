"""What exports of many days were split into: a file for each day, and which one an order is in."""

import csv
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from datetime import date
from itertools import islice
from pathlib import Path

import duckdb
from typing_extensions import Self

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.csv_records import open_text
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.exports.split_parts import Identities, Row
from retail_assets.lake.replacement import Draft, replace_files
from retail_assets.mapping import ExportMapping
from retail_assets.mapping.file_name import NATIVE
from retail_assets.mapping.model import fingerprint
from retail_assets.settings import Settings

ORIGIN = ("source_file", "source_line", "source_time")
"""The columns that a day's file has after those of the exports: which one, where, written when."""

DRAFT = ".new"
"""How the names of files end that are being written; they begin with a dot."""

INDEX = "split_orders.sqlite"

LOOKED_UP = 500
"""Orders that are looked up at a time."""


class DayFiles:
    """The files of days, which exports of many days are split into.

    Changes are written aside, until `place` puts them in their places, all synced together.

    Args:
        folder: where they lie.
        mapping: how the exports are written.
        connection: reads which row is of which order.
    """

    def __init__(
        self, folder: Path, mapping: ExportMapping, connection: duckdb.DuckDBPyConnection
    ) -> None:
        self._folder, self._mapping, self._connection = folder, mapping, connection
        self._drafts: list[Draft] = []

    def __enter__(self) -> Self:
        self._remove_drafts()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_drafts()

    def place(self) -> None:
        """Put the files that were changed in their places."""
        if self._drafts:
            replace_files(self._drafts)
            self._drafts.clear()

    def merge(self, day: date, header: Sequence[str], rows: Sequence[Row]) -> None:
        """Put the rows of an export into the file of a day, in place of older ones of their orders.

        Args:
            day: the day.
            header: the columns of the rows, but the first field, which is their order or blank.
            rows: the rows.

        Raises:
            RetailAssetsError: if the file was not made of exports of many days.
        """
        target = self._path(day)
        orders = {row[0] for row in rows} - {""}
        both, old, new = _aligned(target, list(header), [row[1:] for row in rows])
        broken = [row for row, (order, *_) in zip(new, rows, strict=True) if not order]
        kept = [
            row
            for row, order in self._with_orders(both, old)
            if order not in orders and (order or row not in broken)
        ]
        self._write(target, [both, *kept, *_in_order(both, new)])

    def remove(self, day: date, orders: Collection[str]) -> None:
        """Remove orders, which are in the file of another day now, from that of a day."""
        target = self._path(day)
        if not target.exists():
            return
        header, old, _ = _aligned(target, [], [])
        kept = [row for row, order in self._with_orders(header, old) if order not in orders]
        if len(kept) < len(old):
            self._write(target, [header, *kept])

    def has(self, day: date) -> bool:
        """Whether there is a file of a day."""
        return self._path(day).exists()

    def _names(self) -> Iterable[str]:
        """The names of all files."""
        return sorted(path.name for path in self._folder.iterdir())

    def orders(self) -> Iterator[tuple[str, date, str]]:
        """Each order, its day, and when its rows were written, in all files."""
        for name in self._names():
            day = NATIVE.day(name)
            if day is None or name.endswith(".gz"):
                continue
            with suppress(RetailAssetsError, ValueError):
                header, rows, _ = _aligned(self._path(day), [], [])
                for row, order in self._with_orders(header, rows):
                    if order:
                        yield order, day, row[-1]

    def _with_orders(
        self, header: Sequence[str], rows: Sequence[Row]
    ) -> Iterator[tuple[Row, str | None]]:
        orders = Identities(self._connection, self._mapping, header).orders(rows)
        yield from zip(rows, orders, strict=True)

    def _path(self, day: date) -> Path:
        return self._folder / NATIVE.of_day(day)

    def _write(self, target: Path, rows: Sequence[Row]) -> None:
        draft = draft_of(target)
        with draft.path.open("w", encoding="utf-8", newline="", errors="surrogateescape") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        self._drafts.append(draft)

    def _remove_drafts(self) -> None:
        """Remove what is in no place: after a failure, or of a run that was killed."""
        for path in self._folder.glob(f".*{DRAFT}"):
            if NATIVE.day(path.name[1 : -len(DRAFT)]) is not None:
                path.unlink()


class BucketDayFiles(DayFiles):
    """Those of a bucket: each is copied to this machine when it is looked at, and put back.

    Args:
        location: the bucket.
        folder: where the copies lie.
        mapping: how the exports are written.
        connection: reads which row is of which order.
    """

    def __init__(
        self,
        location: ExportsLocation,
        folder: Path,
        mapping: ExportMapping,
        connection: duckdb.DuckDBPyConnection,
    ) -> None:
        super().__init__(folder, mapping, connection)
        self._location = location
        listed = location.files(lambda name: NATIVE.day(name) is not None)
        self._there = {file.path for file in listed}

    def place(self) -> None:
        """Put the files that were changed in their places, each as a whole."""
        changed = [draft.place for draft in self._drafts]
        super().place()
        for path in changed:
            self._location.put(path)
            self._there.add(path.name)

    def has(self, day: date) -> bool:
        """Whether there is a file of a day."""
        return NATIVE.of_day(day) in self._there

    def _names(self) -> Iterable[str]:
        return sorted(self._there)

    def _path(self, day: date) -> Path:
        path = super()._path(day)
        compressed = path.with_name(f"{path.name}.gz")
        missing = [
            each.name
            for each in (path, compressed)
            if each.name in self._there and not each.exists()
        ]
        problems = self._location.fetch(missing, self._folder) if missing else {}
        if problems:
            raise RetailAssetsError(*problems.values())
        return path


def day_files(
    location: ExportsLocation,
    folder: Path,
    mapping: ExportMapping,
    connection: duckdb.DuckDBPyConnection,
) -> DayFiles:
    """The files of days of a location; those of a bucket are copied into a folder."""
    if location.is_local:
        return DayFiles(folder, mapping, connection)
    return BucketDayFiles(location, folder, mapping, connection)


class OrderDays:
    """Which day's file has an order, and when the export was written that it is from.

    An index of the day files in the lake's folder, so that the cost of an export follows its own
    orders; it is made again where it is gone, damaged, of another mapping, or of another state of
    the files than `mark` says.
    """

    def __init__(
        self, settings: Settings, mapping: ExportMapping, files: DayFiles, mark: str = ""
    ) -> None:
        self._path, self._files = settings.lake_dir / INDEX, files
        self._mapping = fingerprint(mapping) + mark

    @staticmethod
    def confirm(settings: Settings, mapping: ExportMapping, mark: str) -> None:
        """Note that the index has all orders of the files at this mark of their state."""
        if mark and (settings.lake_dir / INDEX).exists():
            with closing(sqlite3.connect(settings.lake_dir / INDEX)) as connection, connection:
                connection.execute("UPDATE mapping SET hash = ?", [fingerprint(mapping) + mark])

    def __enter__(self) -> Self:
        try:
            self._connection = sqlite3.connect(self._path)
            self._make()
        except sqlite3.DatabaseError:
            self._connection.close()
            self._path.unlink()
            self._connection = sqlite3.connect(self._path)
            self._make()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _make(self) -> None:
        with self._connection as connection:
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE IF NOT EXISTS mapping (hash TEXT)")
            if connection.execute("SELECT hash FROM mapping").fetchall() == [(self._mapping,)]:
                return
            connection.execute("DROP TABLE IF EXISTS orders")
            connection.execute(
                "CREATE TABLE orders (order_id TEXT PRIMARY KEY, day TEXT, written TEXT)"
                " WITHOUT ROWID"
            )
            self._insert(self._files.orders())
            connection.execute("DELETE FROM mapping")
            connection.execute("INSERT INTO mapping VALUES (?)", [self._mapping])

    def _insert(self, orders: Iterable[tuple[str, date, str]]) -> None:
        self._connection.executemany(
            "INSERT INTO orders VALUES (?, ?, ?) ON CONFLICT (order_id) DO UPDATE SET"
            " day = excluded.day, written = excluded.written"
            " WHERE excluded.written >= orders.written",
            ((order, str(day), written) for order, day, written in orders),
        )

    def compare(
        self, orders: Iterable[tuple[str, date]], written: str
    ) -> tuple[set[str], Mapping[date, Mapping[str, date]]]:
        """Compare the orders of an export with those that are there.

        Args:
            orders: each order and its day.
            written: when the export was written.

        Returns:
            The orders that are there from an export that was written later; and of the others those
            that are in the file of another day: by that day, with the one where they belong.
        """
        newer: set[str] = set()
        moved: dict[date, dict[str, date]] = {}
        remaining = iter(orders)
        while chunk := dict(islice(remaining, LOOKED_UP)):
            found = self._connection.execute(
                "SELECT order_id, day, written FROM orders WHERE order_id IN"
                f" ({', '.join('?' * len(chunk))})",
                list(chunk),
            ).fetchall()
            for order, text, known in found:
                day = date.fromisoformat(text)
                if not self._files.has(day):
                    # Somebody has removed it.
                    continue
                if known > written:
                    newer.add(order)
                elif day != chunk[order]:
                    moved.setdefault(day, {})[order] = chunk[order]
        return newer, moved

    def enter(self, orders: Iterable[tuple[str, date]], written: str) -> None:
        """Note that the files of these days have these orders now."""
        with self._connection:
            self._insert((order, day, written) for order, day in orders)


def _in_order(header: Sequence[str], rows: Sequence[Row]) -> list[Row]:
    """Rows in the order of their lines: those of an order may have come from several days.

    A row of too few or too many fields follows the one before it.
    """
    place, line = header.index(ORIGIN[1]), 0
    lines = []
    for row in rows:
        line = int(row[place]) if len(row) == len(header) else line
        lines.append(line)
    return [row for _, row in sorted(zip(lines, rows, strict=True), key=lambda each: each[0])]


def _aligned(target: Path, header: Row, new: list[Row]) -> tuple[Row, list[Row], list[Row]]:
    """The columns of a day's file and of new rows together, its rows, and the new ones.

    Raises:
        RetailAssetsError: if the file was not made of exports of many days.
    """
    if target.with_name(f"{target.name}.gz").exists():
        raise RetailAssetsError(f"{target}.gz is in the way of {target.name}: move it elsewhere.")
    if not target.exists():
        return header, [], new
    with open_text(target, "rb") as text:
        known, *old = csv.reader(text)
    if tuple(known[-len(ORIGIN) :]) != ORIGIN:
        raise RetailAssetsError(
            f"{target} was not made of an export of many days, and is left as it is: move it"
            " elsewhere, and the export's rows of that day are put in its place."
        )
    if known == header:
        return header, old, new
    both = list(dict.fromkeys([*known[: -len(ORIGIN)], *header[: -len(ORIGIN)], *ORIGIN]))

    def realigned(rows: list[Row], names: Row) -> list[Row]:
        return [
            [dict(zip(names, row, strict=True)).get(name, "") for name in both]
            if len(row) == len(names)
            else still_too_long(row, len(names))
            for row in rows
        ]

    return both, realigned(old, known), realigned(new, header)


def still_too_long(fields: Row, width: int) -> Row:
    """A row of too many fields, so that it has too many with the columns of the origin as well."""
    # DuckDB passes over blank ones.
    return [*fields, *["too many fields"] * (len(ORIGIN) + 1)] if len(fields) > width else fields


def draft_of(place: Path) -> Draft:
    """Where a file is written before it is put in its place."""
    return Draft(place.with_name(f".{place.name}{DRAFT}"), place)
