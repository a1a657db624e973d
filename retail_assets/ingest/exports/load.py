"""Order exports into `raw_orders` and `rejected_orders`, each with its ledger entry, exactly once.

A day's file is read, validated by `transforms.orders`, and put in place of what an earlier version
of the file gave, in one transaction. A file with the same bytes as the ledger's is left alone,
unless the rules or settings have changed that it was validated with.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from retail_assets import tables
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports import currencies
from retail_assets.ingest.exports.csv_file import inspect
from retail_assets.ingest.exports.files import (
    ExportFile,
    ExportFolder,
    MissingExportError,
    weight_of,
)
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.exports.other_files import lookalikes
from retail_assets.ingest.exports.staging import Staged, batches, staged_exports
from retail_assets.ingest.ledgers.exports import ExportEntry, export_entries, mapping_hash
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.connection import Lake, committed_snapshot, current_snapshot
from retail_assets.lake.publish import Publication, replace_days
from retail_assets.lake.rows import insert_columns
from retail_assets.mapping import NATIVE_EXPORTS, ExportMapping
from retail_assets.transforms import orders

if TYPE_CHECKING:
    from retail_assets.ingest.ledgers.event_files import FoundFile

SHOWN_LOOKALIKES = 3

BATCH_BYTES = 512 << 20
"""Files are ingested together up to this size, so that what is staged stays bounded."""


@dataclass(frozen=True)
class ExportResult:
    """The result of an ingest: one publication of each table, and the days that were unchanged."""

    raw: Publication
    rejected: Publication
    unchanged: tuple[date, ...] = ()


def ingest(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    exports_dir: Path | str,
    days: Collection[date],
    *,
    late_days: int,
    max_order_gbp: float | None = None,
    mapping: ExportMapping = NATIVE_EXPORTS,
    progress: Callable[[int], None] = lambda _: None,
) -> ExportResult:
    """Ingest the exports of some days; a bad file fails its own day alone, by name.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        exports_dir: the folder or `s3://` prefix where the exports lie, without a mapping
            `orders_YYYY_MM_DD.csv[.gz]`; those of a bucket are copied to this machine, as many at
            a time as are ingested together.
        days: the export dates to ingest.
        late_days: how many days before its export an order may lie.
        max_order_gbp: an export with an order worth more fails its day; None: no limit.
        mapping: how the exports are called and written.
        progress: called with the number of days done, after each batch.

    Returns:
        Row counts of each day that is in the lake now (of unchanged days, as the ledger has them),
        and the problem of each day that failed, which is in the ledger as well.

    Raises:
        RetailAssetsError: if the bucket cannot be reached.
    """
    location, mapped = ExportsLocation(exports_dir), mapping.file_name
    raw, rejected = Publication(tables.RAW_ORDERS), Publication(tables.REJECTED_ORDERS)
    unchanged: list[date] = []
    done = 0
    for some, names in _parts(location, mapping, sorted(set(days))):
        with location.copies(names, lake.spill_dir) as (folder, unreadable):
            part = _ingest(
                lake,
                connection,
                location,
                folder,
                some,
                {day: why for name, why in unreadable.items() if (day := mapped.day(name))},
                late_days=late_days,
                max_order_gbp=max_order_gbp,
                mapping=mapping,
                progress=lambda count, before=done: progress(before + count),  # type: ignore[misc]
            )
        raw, rejected = _added(raw, part.raw), _added(rejected, part.rejected)
        unchanged += part.unchanged
        done += len(some)
    return ExportResult(raw, rejected, tuple(unchanged))


def _parts(
    location: ExportsLocation, mapping: ExportMapping, days: Sequence[date]
) -> Iterator[tuple[Sequence[date], Sequence[str]]]:
    """The days with the names of their files in a bucket, as many at a time as are copied together.

    Files of a folder are where they are read: all days at once.
    """
    if location.is_local:
        yield days, ()
        return
    found: dict[date, list[FoundFile]] = {day: [] for day in days}
    for file in location.files(lambda name: mapping.file_name.day(name) in found):
        if day := mapping.file_name.day(file.path):
            found[day].append(file)

    def weight(day: date) -> int:
        return sum(weight_of(file.path, file.size_bytes) for file in found[day])

    for some in batches(days, weight, BATCH_BYTES):
        yield some, [file.path for day in some for file in found[day]]


def _added(before: Publication, part: Publication) -> Publication:
    """The publication of some days and that of further ones as one."""
    return replace(
        before,
        rows={**before.rows, **part.rows},
        failed={**before.failed, **part.failed},
        snapshot=part.snapshot or before.snapshot,
    )


def _ingest(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    location: ExportsLocation,
    folder: Path,
    days: Sequence[date],
    unreadable: Mapping[date, str],
    *,
    late_days: int,
    max_order_gbp: float | None,
    mapping: ExportMapping,
    progress: Callable[[int], None],
) -> ExportResult:
    """Ingest the exports in a folder, which may be copies of those at a location."""
    files, failed = _inspect(ExportFolder(folder, mapping), location, days, unreadable)
    failed = {day: location.shown(problem, folder) for day, problem in failed.items()}
    known = export_entries(connection, [file.day for file in files])
    hashed = mapping_hash(mapping)
    unchanged = {
        file.day: entry
        for file in files
        if (entry := known.get(file.day))
        and entry.content_hash == file.content_hash
        and entry.up_to_date(late_days=late_days, timezone=lake.timezone, mapping_hash=hashed)
    }
    raw = {day: entry.raw_rows for day, entry in unchanged.items()}
    rejected = {day: entry.rejected_rows for day, entry in unchanged.items()}
    _note(lake, connection, [file for file in files if file.day in unchanged], known, failed)
    snapshot = current_snapshot(connection) if unchanged else None
    done = len(failed) + len(unchanged)
    progress(done)
    changed = [file for file in files if file.day not in unchanged]
    for batch in batches(changed, lambda file: file.weight, BATCH_BYTES):
        with staged_exports(
            lake, connection, batch, late_days=late_days, max_order_gbp=max_order_gbp
        ) as staged:
            problems = {
                day: location.shown(problem, folder) for day, problem in staged.failed.items()
            }
            snapshot = _commit(lake, connection, replace(staged, failed=problems), late_days)
        raw |= staged.raw
        rejected |= staged.rejected
        failed |= problems
        done += len(batch)
        progress(done)
    return ExportResult(
        Publication(tables.RAW_ORDERS, raw, failed, snapshot),
        Publication(tables.REJECTED_ORDERS, rejected, failed, snapshot),
        tuple(unchanged),
    )


def _inspect(
    folder: ExportFolder,
    location: ExportsLocation,
    days: Sequence[date],
    unreadable: Mapping[date, str],
) -> tuple[list[ExportFile], dict[date, str]]:
    """The exports of some days, and the problem of each day that has none of use."""
    files: list[ExportFile] = []
    failed = dict(unreadable)
    missing: list[date] = []
    for day in (day for day in days if day not in unreadable):
        try:
            files.append(inspect(folder.locate(day)))
        except RetailAssetsError as error:
            failed[day] = str(error)
            if isinstance(error, MissingExportError):
                missing.append(day)
    similar = lookalikes(location, folder.file_name) if missing else {}
    for day in missing:
        if day in similar:
            names = ", ".join(map(repr, similar[day][:SHOWN_LOOKALIKES]))
            failed[day] += f" Its date is in the name of {names}: should that be it, rename it."
    return files, failed


def _note(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    unchanged: Sequence[ExportFile],
    known: Mapping[date, ExportEntry],
    failed: Mapping[date, str],
) -> None:
    """Note the failures, and the names and times of files whose bytes are the ledger's."""
    recovered = ledger.failures(connection, tables.RAW_ORDERS, [file.day for file in unchanged])
    moved = [
        file
        for file in unchanged
        if (known[file.day].source_file, known[file.day].modified_ns)
        != (file.path.name, file.modified_ns)
    ]
    if not (failed or recovered or moved):
        return
    with lake.transaction(connection, "note exports without new content"):
        for table in (tables.RAW_ORDERS, tables.REJECTED_ORDERS):
            ledger.mark_failed(connection, table, failed)
            ledger.forget_failures(connection, table, list(recovered))
        for file in moved:
            connection.execute(
                "UPDATE lake.export_files SET source_file = ?, modified_ns = ?"
                " WHERE export_date = ?",
                [file.path.name, file.modified_ns, file.day],
            )


def _commit(
    lake: Lake, connection: duckdb.DuckDBPyConnection, staged: Staged, late_days: int
) -> int:
    """Publish what is staged, with its ledger entries; returns the snapshot."""
    days = [file.day for file in staged.files]
    with lake.transaction(connection, "ingest order exports"):
        # Only now: another process may have ingested the same new file a moment ago.
        known = export_entries(connection, days)
        changed = _changed_days(connection, days, known)
        entered = ledger.entries(connection, {*days, *staged.failed, *changed})
        for table, source, rows in (
            (tables.RAW_ORDERS, "temp.main.staged_raw", staged.raw),
            (tables.REJECTED_ORDERS, "temp.main.staged_rejects", staged.rejected),
        ):
            replace_days(connection, table, source, rows, known)
            ledger.mark_published(connection, table, rows, {}, entered)
            ledger.mark_failed(connection, table, staged.failed, entered)
        _enter(lake, connection, staged, known, late_days)
        currencies.ingest_again(connection, currencies.enter(connection, known))
        ledger.mark_changed(connection, "orders", changed, entered)
    return committed_snapshot(connection)


_CONTENT = ", ".join(
    name for name in tables.RAW_ORDERS.column_names if name not in ("source_file", "row_number")
)
"""Columns in which two versions of an order may differ; the position in a file is none."""


def _changed_days(
    connection: duckdb.DuckDBPyConnection, days: Sequence[date], known: Collection[date]
) -> set[date]:
    """The business days whose orders differ once these exports are in.

    Those of every order that is new, gone or different in an export, and of all its other
    versions; and the day of an export that comes for the first time, even if it is empty.
    """
    again = [day for day in days if day in known]
    first = [day for day in days if day not in known]
    parameters = {"first": first}
    changed = (
        "SELECT order_id, order_date FROM staged_raw"
        " WHERE export_date IN (SELECT unnest($first::DATE[]))"
    )
    if again:
        parameters["again"] = again
        new = (
            f"SELECT {_CONTENT} FROM staged_raw"
            " WHERE export_date IN (SELECT unnest($again::DATE[]))"
        )
        old = new.replace("staged_raw", "lake.raw_orders")
        changed += (
            " UNION ALL SELECT order_id, order_date FROM"
            f" (({new} EXCEPT {old}) UNION ALL ({old} EXCEPT {new}))"
        )
    found = connection.execute(
        f"WITH changed_orders AS NOT MATERIALIZED ({changed})"
        " SELECT DISTINCT order_date FROM changed_orders UNION SELECT DISTINCT order_date"
        " FROM lake.raw_orders WHERE order_id IN (SELECT order_id FROM changed_orders)",
        parameters,
    ).fetchall()
    return {day for (day,) in found} | set(first)


def _enter(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    staged: Staged,
    known: Collection[date],
    late_days: int,
) -> None:
    files, raw, rejected = staged.files, staged.raw, staged.rejected
    again = [file.day for file in files if file.day in known]
    if again:
        connection.execute(
            "DELETE FROM lake.export_files WHERE export_date IN (SELECT unnest(?::DATE[]))",
            [again],
        )
    columns: dict[str, Sequence[object]] = {
        "export_date DATE": [file.day for file in files],
        "source_file VARCHAR": [file.path.name for file in files],
        "size_bytes BIGINT": [file.size_bytes for file in files],
        "modified_ns BIGINT": [file.modified_ns for file in files],
        "content_hash VARCHAR": [file.content_hash for file in files],
        "rows_in BIGINT": [raw[file.day] + rejected[file.day] for file in files],
        "raw_rows BIGINT": [raw[file.day] for file in files],
        "rejected_rows BIGINT": [rejected[file.day] for file in files],
        "rules_version BIGINT": [orders.RULES_VERSION] * len(files),
        "timezone VARCHAR": [lake.timezone] * len(files),
        "late_days BIGINT": [late_days] * len(files),
        "mapping_hash VARCHAR": [mapping_hash(files[0].mapping)] * len(files) if files else [],
        "max_days_late BIGINT": [staged.max_days_late[file.day] for file in files],
    }
    insert_columns(connection, "export_files", columns, "now() AS ingested_at")
