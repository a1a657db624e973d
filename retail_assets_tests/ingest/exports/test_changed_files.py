"""Exports that are ingested again: other files in their place, other settings and rules."""

import gzip
import os
from datetime import date, timedelta
from typing import Any

from retail_assets import tables
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.lake import day_ledger as ledger
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, WriteExport, order_row
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)


def state(loader: ExportLoader) -> list[Any]:
    """All rows that outside data leave, without the times of commits."""
    return [
        loader.rows(f"SELECT * EXCLUDE ({without}) FROM {table} ORDER BY ALL")
        for table, without in (
            ("raw_orders", "source_file"),
            ("rejected_orders", "source_file"),
            ("export_files", "source_file, modified_ns, size_bytes, content_hash, ingested_at"),
            ("changed_days", "changed_at"),
            ("published_days", "published_at"),
            ("failed_days", "failed_at"),
        )
    ]


def snapshots(loader: ExportLoader) -> int:
    ((count,),) = loader.rows("SELECT count(*) FROM lake.snapshots()")
    return int(count)


def test_the_same_bytes_again_are_a_counted_no_op(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), "malformed"])
    first = loader.ingest(DAY)
    before, commits = state(loader), snapshots(loader)
    again = loader.ingest(DAY)
    assert (first.unchanged, again.unchanged) == ((), (DAY,))
    assert (again.raw.rows, again.rejected.rows) == ({DAY: 1}, {DAY: 1})
    assert state(loader) == before
    assert snapshots(loader) == commits


def test_a_new_time_or_name_of_the_same_bytes_is_noted_and_changes_no_rows(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    before = state(loader)
    os.utime(path, ns=(1, 1_700_000_000_000_000_000))
    assert loader.ingest(DAY).unchanged == (DAY,)
    assert state(loader) == before
    assert loader.rows("SELECT modified_ns FROM export_files") == [(1_700_000_000_000_000_000,)]


def test_a_file_that_is_compressed_later_gives_the_same_rows(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY), "malformed"])
    loader.ingest(DAY)
    rows, rejected, versions = loader.orders(), loader.rejected(), loader.versions()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    loader.ingest(DAY)
    assert (loader.orders(), loader.rejected()) == (rows, rejected)
    assert loader.versions() == versions
    assert loader.rows("SELECT source_file FROM export_files") == [(path.name + ".gz",)]


def test_a_corrected_file_replaces_what_it_gave_and_concerns_only_the_days_that_differ(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY - n * A_DAY for n in range(7)]
    rows = [order_row(f"O{n}", day) for n, day in enumerate(days)]
    write_export(DAY, [*rows, "malformed"])
    loader.ingest(DAY)
    assert loader.versions() == dict.fromkeys(days, 1)
    corrected = [
        rows[0],
        order_row("O1", days[1], order_value_gbp="11.00"),
        rows[3],
        order_row("O4", days[5]),
        rows[5] + "",
        order_row("new", days[6]),
        rows[6],
    ]
    write_export(DAY, corrected)
    loader.ingest(DAY)
    assert {order_id for (order_id,) in loader.orders()} == {
        "O0", "O1", "O3", "O4", "O5", "O6", "new",
    }  # fmt: skip
    assert loader.rejected() == []
    changed = {
        days[1],  # another value
        days[2],  # gone
        days[4],  # moved from here
        days[5],  # moved to here
        days[6],  # one more
    }
    assert loader.versions() == {day: 2 if day in changed else 1 for day in days}


def test_a_file_whose_rows_are_only_in_another_order_changes_no_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    rows = [order_row("A", DAY), order_row("B", DAY - A_DAY), "malformed"]
    write_export(DAY, rows)
    loader.ingest(DAY)
    write_export(DAY, rows[::-1])
    assert loader.ingest(DAY).unchanged == ()
    assert loader.versions() == {DAY: 1, DAY - A_DAY: 1}
    assert loader.orders("order_id, row_number") == [("B", 1), ("A", 2)]


def test_a_change_in_a_later_export_concerns_the_days_of_all_versions_of_the_order(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    later = DAY + A_DAY
    write_export(DAY, [order_row("A", DAY - A_DAY), order_row("B", DAY)])
    loader.ingest(DAY)
    assert loader.versions() == {DAY - A_DAY: 1, DAY: 1}
    write_export(later, [order_row("A", later)])
    loader.ingest(later)
    assert loader.versions() == {DAY - A_DAY: 2, DAY: 1, later: 1}
    write_export(later, [])
    loader.ingest(later)
    assert loader.versions() == {DAY - A_DAY: 3, DAY: 1, later: 2}


def test_an_export_without_orders_still_counts_as_a_change_of_its_day(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [])
    loader.ingest(DAY)
    assert loader.versions() == {DAY: 1}
    assert ledger.published(loader.connection, tables.RAW_ORDERS, [DAY]) == {DAY: 0}


def test_a_spoiled_replacement_leaves_the_rows_of_the_good_one(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    good, before = path.read_bytes(), state(loader)
    write_export(DAY, "nonsense\n")
    assert loader.ingest(DAY).raw.failed.keys() == {DAY}
    assert state(loader)[:-1] == before[:-1]
    assert ledger.failures(loader.connection, tables.RAW_ORDERS, [DAY]).keys() == {DAY}
    path.write_bytes(good)
    assert loader.ingest(DAY).unchanged == (DAY,)
    assert ledger.failures(loader.connection, tables.RAW_ORDERS, [DAY]) == {}
    assert state(loader) == before


def test_exports_with_lines_or_a_currency_are_ingested_again_after_the_upgrade(
    loader: ExportLoader, write_export: WriteExport, settings: Settings
) -> None:
    lines = [order_row("A", DAY, product_id=product) for product in ("P1", "P2")]
    extra = {DAY + A_DAY: "Line_Number", DAY + 2 * A_DAY: "currency", DAY + 3 * A_DAY: "note"}
    write_export(DAY, lines)
    for day, name in extra.items():
        write_export(day, [f"{order_row(name, day)},1"], header=f"{HEADER},{name}")
    loader.ingest(DAY, *extra)
    now = loader.orders("order_id, product_id, extra")
    # As the release before left it.
    execute = loader.connection.execute
    first = f"WHERE export_date = '{DAY}' AND line_number = 1"
    rejected = "export_date, 'unsupported_line_item', 'order_id', '', source_file, 2"
    execute(f"INSERT INTO rejected_orders SELECT {rejected} FROM raw_orders {first}")
    execute(f"DELETE FROM raw_orders {first}")
    for day, name in extra.items():
        execute(
            "INSERT INTO raw_orders BY NAME SELECT * REPLACE (?::DATE AS export_date, ? AS extra)"
            f" FROM raw_orders WHERE export_date = '{DAY}'",
            [day, f'{{"{name}": "1"}}'],
        )
    execute("ALTER TABLE lake.raw_orders DROP COLUMN line_number")
    with loader.lake.connect():
        pass
    assert pending_exports(settings).keys() == {DAY, DAY + A_DAY, DAY + 2 * A_DAY}
    loader.ingest(DAY, *list(extra)[:2])
    assert [row for row in loader.orders("order_id, product_id, extra") if row in now] == now
    assert pending_exports(settings) == {}


# Settings and rules that change


def test_an_export_is_ingested_again_when_a_setting_that_concerns_it_has_changed(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    lag = {"within": 1, "late": 5, "too late": 9}
    for n, days_late in enumerate(lag.values()):
        day = DAY + n * A_DAY
        write_export(day, [order_row(f"O{n}", day - days_late * A_DAY), order_row(f"P{n}", day)])
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]

    def ingested_again(late_days: int) -> set[date]:
        ingested = loader.ingest(*days, late_days=late_days)
        assert ingested.raw.failed == {}
        return set(days) - set(ingested.unchanged)

    assert ingested_again(7) == set(days)
    assert loader.rows("SELECT late_days, max_days_late FROM export_files ORDER BY ALL") == [
        (7, 1), (7, 5), (7, 9),
    ]  # fmt: skip
    assert ingested_again(7) == set()
    assert ingested_again(9) == {days[2]}
    assert loader.rejected() == []
    assert ingested_again(5) == {days[2]}
    assert loader.rejected("export_date, reason") == [(days[2], "too_late")]
    assert ingested_again(4) == {days[1], days[2]}
    assert ingested_again(20) == {days[1], days[2]}
    loader.connection.execute(
        "UPDATE export_files SET timezone = 'UTC' WHERE export_date = ?", [DAY]
    )
    assert ingested_again(20) == {DAY}
    loader.connection.execute("UPDATE export_files SET rules_version = 1")
    assert ingested_again(20) == set(days)


def test_entries_of_before_the_settings_were_recorded_are_concerned_if_they_may_be(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY), "malformed"])
    forgotten = (
        "UPDATE export_files SET late_days = NULL, max_days_late = NULL, rules_version = NULL,"
        " timezone = NULL"
    )
    days = (DAY, DAY + A_DAY)
    loader.ingest(*days)
    loader.connection.execute(forgotten)
    assert loader.ingest(*days).unchanged == (DAY,)
    loader.connection.execute(forgotten)
    assert loader.ingest(*days, late_days=8).unchanged == ()
    assert loader.ingest(*days, late_days=8).unchanged == days


def test_a_lake_that_nobody_has_written_to_since_can_be_asked_what_is_pending(
    loader: ExportLoader, write_export: WriteExport, settings: Settings
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    loader.ingest(DAY)
    for column in ("rules_version", "timezone", "late_days", "max_days_late"):
        loader.connection.execute(f"ALTER TABLE lake.export_files DROP COLUMN {column}")
    assert pending_exports(settings) == {}
    assert pending_exports(settings.model_copy(update={"late_days": 8})).keys() == {DAY}
