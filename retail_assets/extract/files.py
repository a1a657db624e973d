"""Extracted files: written aside, entered in the ledger, then put in their places.

A file is entered before it has its name. After a kill in between the next run finds the file that
was there before, which the ledger knows, too; leftovers have hidden names and are removed. A file
whose bytes the ledger does not know was written or changed by somebody else, and stays.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

import duckdb

from retail_assets import business_days, tables
from retail_assets.lake import day_ledger
from retail_assets.lake.connection import Lake
from retail_assets.lake.replacement import Draft, replace_files
from retail_assets.lake.rows import insert_columns
from retail_assets.lake.sql import identifier, literal

UNFINISHED = ".extracting."
"""How the names of files begin that are being written."""

CHUNK_BYTES = 1 << 20

Result = Literal["written", "replaced", "unchanged"]


@dataclass(frozen=True)
class ExtractedFile:
    """A file with its rows: how many there are, and how many of them are of earlier days.

    `draft` is where it was written; `day` is None for reference files.
    """

    path: Path
    draft: Path
    day: date | None
    rows: int
    late_rows: int
    size_bytes: int
    content_hash: str
    result: Result = "written"


def remove_unfinished(folders: Iterable[Path]) -> None:
    """Remove what a run that was killed has left; the caller holds the lock of extractions."""
    for folder in folders:
        for path in folder.glob(f"{UNFINISHED}*"):
            path.unlink()


def write(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    columns: Mapping[str, str],
    rows: str,
    order: str,
    *,
    day: date | None = None,
    late: str = "false",
) -> ExtractedFile:
    """Write rows as CSV beside the place of a file; the same rows give the same bytes.

    Args:
        connection: where the rows are.
        path: the place, which says by its name whether it is compressed.
        columns: SQL for the text of each column, by its name in the file.
        rows: what stands after FROM.
        order: what stands after ORDER BY.
        day: the day of an order export.
        late: SQL for whether a row is of an earlier day.
    """
    draft = path.with_name(UNFINISHED + path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    select = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
    compression = "gzip" if path.suffix == ".gz" else "none"
    connection.execute(
        f"COPY (SELECT {select} FROM {rows} ORDER BY {order}) TO {literal(str(draft))}"
        f" (FORMAT csv, HEADER true, DELIMITER ',', QUOTE '\"', ESCAPE '\"', NULLSTR '',"
        f" COMPRESSION {compression})"
    )
    counts = connection.execute(f"SELECT count(*), count(*) FILTER ({late}) FROM {rows}").fetchone()
    assert counts is not None
    count, late_count = counts
    return ExtractedFile(
        path, draft, day, count, late_count, draft.stat().st_size, content_hash(draft)
    )


def content_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def place(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    data_dir: Path,
    files: Sequence[ExtractedFile],
    origin: Mapping[str, str],
    *,
    may_replace: bool,
) -> tuple[list[ExtractedFile], dict[Path, str]]:
    """Put files in their places, durably, each at once and the newest day first.

    So whoever reads between two of them finds an order's newest version in the latest file.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        data_dir: the folder that paths in the ledger are relative to.
        files: the files, as `write` left them.
        origin: where the rows are from, by name.
        may_replace: also in place of files that somebody else wrote or changed.

    Returns:
        The files that are in their places now, and the problem of each other one.
    """
    ledger = _Ledger(connection, data_dir, files)
    placed: list[ExtractedFile] = []
    refused: dict[Path, str] = {}
    for file in files:
        there = {path: content_hash(path) for path in _places(file) if path.exists()}
        foreign = [path for path, found in there.items() if not ledger.knows(path, found)]
        if there == {file.path: file.content_hash}:
            placed.append(replace(file, result="unchanged"))
        elif foreign and not may_replace:
            refused[file.path] = (
                f"{foreign[0]} was not written by `retail-assets extract`, or was changed since: it"
                " stays as it is. Move it away, or have it replaced with `--replace`."
            )
        else:
            placed.append(replace(file, result="replaced" if there else "written"))
    new = [file for file in placed if file.result != "unchanged"]
    failed = {file.day: refused[file.path] for file in files if file.path in refused and file.day}
    replace_files(
        [
            Draft(file.draft, file.path, [path for path in _places(file) if path != file.path])
            for file in sorted(new, key=lambda file: file.day or date.max, reverse=True)
        ],
        note=lambda: ledger.enter(lake, placed, origin, failed),
    )
    for file in files:
        file.draft.unlink(missing_ok=True)
    return placed, refused


def _places(file: ExtractedFile) -> Sequence[Path]:
    """Where the file may lie: an export also in its other form, compressed or not."""
    if file.day is None:
        return (file.path,)
    return business_days.export_paths(file.path.parent, file.day)


class _Ledger:
    """What was extracted before to the places of some files."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        data_dir: Path,
        files: Sequence[ExtractedFile],
    ) -> None:
        self._connection, self._data_dir = connection, data_dir
        names = [self._name(path) for file in files for path in _places(file)]
        # The newest last.
        entries = connection.execute(
            "SELECT file, content_hash FROM lake.extracted_files"
            " WHERE file IN (SELECT unnest(?::VARCHAR[])) ORDER BY extracted_at",
            [names],
        ).fetchall()
        self._known, self._newest = set(entries), dict(entries)

    def _name(self, path: Path) -> str:
        if path.is_relative_to(self._data_dir):
            return path.relative_to(self._data_dir).as_posix()
        # RETAIL_EXPORTS: wherever it lies, its files are the exports.
        return f"exports/{path.name}"

    def knows(self, path: Path, found: str) -> bool:
        """Whether a file has bytes that were extracted to its place."""
        return (self._name(path), found) in self._known

    def enter(
        self,
        lake: Lake,
        files: Sequence[ExtractedFile],
        origin: Mapping[str, str],
        failed: Mapping[date, str],
    ) -> None:
        """Enter files with new content, and the days that failed; forget earlier failures."""
        new = [
            file
            for file in files
            if file.result != "unchanged"
            or self._newest.get(self._name(file.path)) != file.content_hash
        ]
        table = tables.EXTRACTED_FILES
        days = [file.day for file in files if file.day]
        recovered = day_ledger.failures(self._connection, table, days)
        if not (new or failed or recovered):
            return
        with lake.transaction(self._connection, "note extracted files"):
            self._delete(new)
            columns: dict[str, Sequence[object]] = {
                "file VARCHAR": [self._name(file.path) for file in new],
                "content_hash VARCHAR": [file.content_hash for file in new],
                "export_date DATE": [file.day for file in new],
                "size_bytes BIGINT": [file.size_bytes for file in new],
                "row_count BIGINT": [file.rows for file in new],
                "late_rows BIGINT": [file.late_rows for file in new],
                "origin VARCHAR": [json.dumps(dict(origin))] * len(new),
            }
            if new:
                insert_columns(self._connection, table.name, columns, "now() AS extracted_at")
            day_ledger.mark_failed(self._connection, table, failed)
            day_ledger.forget_failures(self._connection, table, list(recovered))

    def _delete(self, files: Collection[ExtractedFile]) -> None:
        """An earlier entry of the same content, which comes back."""
        again = [file for file in files if self.knows(file.path, file.content_hash)]
        if again:
            self._connection.execute(
                "DELETE FROM lake.extracted_files WHERE (file, content_hash) IN"
                " (SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[]))",
                [[self._name(f.path) for f in again], [f.content_hash for f in again]],
            )
