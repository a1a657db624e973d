"""Exports that are ingested: each of their rows once, each bad file alone and by name."""

import csv
import gzip
import io
import json
import shutil
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

from retail_assets.ingest.exports.load import ExportResult, ingest
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, WriteExport, order_row, write_export_to
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
A_DAY = timedelta(days=1)
SAMPLE = Path(__file__).parents[3] / "data" / "exports"


def test_a_file_that_changes_while_it_is_read_is_not_ingested(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY)])

    def append(_: int) -> None:
        # Called when the files have been looked at, before they are read.
        if not loader.orders():
            write_export(DAY, [order_row("A", DAY), order_row("half", DAY)])

    ingested = ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY, DAY + A_DAY],
        late_days=7,
        progress=append,
    )
    assert "changed while it was read" in ingested.raw.failed[DAY]
    assert ingested.raw.rows == {DAY + A_DAY: 1}
    assert loader.orders() == [("B",)]
    loader.ingest(DAY)
    assert loader.orders() == [("A",), ("half",), ("B",)]


def test_an_order_of_implausible_value_fails_its_day_alone_and_by_name(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]
    for day, value in zip(days, ("1000.00", "9999999999.99", "1.00"), strict=True):
        write_export(day, [order_row("A", day), order_row("B", day, order_value_gbp=value)])

    def take(limit: float | None) -> ExportResult:
        return ingest(
            *(loader.lake, loader.connection, loader.exports_dir, days),
            late_days=7,
            max_order_gbp=limit,
        )

    ingested = take(1_000)
    assert ingested.raw.rows == {days[0]: 2, days[2]: 2}
    assert list(ingested.raw.failed) == [days[1]]
    assert (
        "order B is worth 9,999,999,999.99 GBP, more than RETAIL_MAX_ORDER_GBP (1,000.00)"
        in ingested.raw.failed[days[1]]
    )
    assert len(loader.orders()) == 4
    assert take(None).raw.rows[days[1]] == 2


def test_a_file_that_vanishes_before_it_is_read_fails_its_day_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    path = write_export(DAY, [order_row("A", DAY)])
    write_export(DAY + A_DAY, [order_row("B", DAY)])
    ingested = ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY, DAY + A_DAY],
        late_days=7,
        progress=lambda _: path.unlink(missing_ok=True),
    )
    assert ingested.raw.failed.keys() == {DAY}
    assert loader.orders() == [("B",)]


def test_two_who_ingest_the_same_new_file_at_once_leave_its_rows_once(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    write_export(DAY, [order_row("A", DAY), "malformed"])

    def be_faster(_: int) -> None:
        with loader.lake.connect() as other:
            ingest(loader.lake, other, loader.exports_dir, [DAY], late_days=7)

    ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        [DAY],
        late_days=7,
        progress=be_faster,
    )
    assert loader.orders() == [("A",)]
    assert loader.rejected() == [(3, "malformed_row", None)]
    assert loader.rows("SELECT rows_in FROM export_files") == [(2,)]
    assert loader.versions() == {DAY: 1}


# Many files


def test_one_bad_file_among_many_of_several_headers_fails_alone(
    loader: ExportLoader, write_export: WriteExport
) -> None:
    days = [DAY + n * A_DAY for n in range(9)]
    turned = ",".join(reversed(HEADER.split(",")))
    for n, day in enumerate(days):
        row = order_row(f"O{n}", day)
        reverse = ",".join(reversed(row.split(",")))
        match n % 3:
            case 0:
                write_export(day, [row, "malformed"], compressed=n % 2 == 0)
            case 1:
                write_export(day, [reverse], header=turned)
            case 2:
                write_export(day, [row + ",x"], header=HEADER + ",note")
    broken = write_export(days[0], [order_row("broken", days[0])], compressed=True)
    broken.write_bytes(broken.read_bytes()[:-9])
    mixed = f"{HEADER},note\r\n{order_row('mixed', days[2])},x\n"
    write_export(days[2], mixed)
    write_export(days[4], [order_row("other", days[4])], header="a,b,c")
    ingested = loader.ingest(*days, days[-1] + A_DAY)
    assert ingested.raw.failed.keys() == {days[0], days[4], days[-1] + A_DAY}
    assert ingested.raw.rows == dict.fromkeys(sorted(set(days) - {days[0], days[4]}), 1)
    assert [order_id for (order_id,) in loader.orders()] == [
        "O1", "mixed", "O3", "O5", "O6", "O7", "O8",
    ]  # fmt: skip
    assert loader.rejected("export_date, row_number") == [(days[3], 3), (days[6], 3)]
    again = loader.ingest(*days)
    assert again.unchanged == tuple(sorted(ingested.raw.rows))


def test_no_days_are_no_work(loader: ExportLoader) -> None:
    ingested = loader.ingest()
    assert (ingested.raw.rows, ingested.raw.failed, ingested.unchanged) == ({}, {}, ())


def test_progress_counts_the_days(loader: ExportLoader, write_export: WriteExport) -> None:
    days = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]
    for day in days[:2]:
        write_export(day, [])
    loader.ingest(days[0])
    seen: list[int] = []
    ingest(
        loader.lake,
        loader.connection,
        loader.exports_dir,
        days,
        late_days=7,
        progress=seen.append,
    )
    assert seen == sorted(seen)
    assert seen[-1] == len(days)


# Reconciliation


def independent_count(path: Path) -> tuple[int, Decimal]:
    """Records of an export, and the sum of what the well-formed ones say they are worth."""
    compressed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig", errors="replace"), newline=""))
    header = next(reader)
    rows = [fields for fields in reader if fields]
    well_formed = (
        dict(zip(header, fields, strict=True))
        for fields in rows
        if len(fields) == len(header) and "\ufffd" not in "".join(fields)
    )
    return len(rows), sum((money(row["order_value_gbp"]) for row in well_formed), Decimal(0))


def money(text: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError:
        return Decimal(0)
    return value if value.is_finite() else Decimal(0)


def test_rows_in_are_raw_and_rejected_and_so_is_the_money(
    loader: ExportLoader, settings: Settings
) -> None:
    """On the committed sample, which has every kind of bad row."""
    shutil.copytree(SAMPLE, settings.exports_dir)
    paths = sorted(settings.exports_dir.iterdir())
    days = [date(*map(int, path.name.split(".")[0].split("_")[1:])) for path in paths]
    ingested = loader.ingest(*days)
    assert ingested.raw.failed == {}
    raw = {
        day: (count, total)
        for day, count, total in loader.rows(
            "SELECT export_date, count(*), sum(order_value_gbp) FROM raw_orders GROUP BY ALL"
        )
    }
    rejected = dict.fromkeys(days, (0, Decimal(0)))
    for day, reason, raw_text in loader.rejected("export_date, reason, raw_text"):
        well_formed = reason not in ("malformed_row", "not_utf8")
        value = money(json.loads(raw_text)["order_value_gbp"]) if well_formed else Decimal(0)
        rejected[day] = (rejected[day][0] + 1, rejected[day][1] + value)
    for day, path in zip(days, paths, strict=True):
        assert independent_count(path) == (
            raw[day][0] + rejected[day][0],
            raw[day][1] + rejected[day][1],
        ), path


def test_a_file_larger_than_memory_is_ingested_whole(lake: Lake, settings: Settings) -> None:
    count, bad_every, padding = 800_000, 1_000, "x" * 70
    row = order_row("O%d", DAY, order_value_gbp="%s")
    path = write_export_to(settings.exports_dir, DAY, b"")
    with path.open("w") as file:
        file.write(f"{HEADER},note\n")
        for n in range(count):
            value = "bad" if n % bad_every == 7 else f"{n + 1}.01"
            file.write(f"{row % (n, value)},{n}{padding}\n")
    # Each thread that writes Parquet holds a row group, about 123,000 rows, whatever the file.
    small = replace(lake, memory_limit="100MB", threads=1)
    assert path.stat().st_size > 105_000_000
    with small.connect() as connection:
        ingested = ingest(small, connection, settings.exports_dir, [DAY], late_days=7)
        assert ingested.raw.failed == {}
        bad = count // bad_every
        found = connection.execute(
            "SELECT count(*), count(DISTINCT order_id), sum(order_value_gbp),"
            " bool_and('O' || (row_number - 1) = order_id AND (extra ->> 'note') ="
            " (row_number - 1) || ?) FROM raw_orders",
            [padding],
        ).fetchone()
        good = [n for n in range(count) if n % bad_every != 7]
        total = sum(n + 1 for n in good) + Decimal("0.01") * len(good)
        assert found == (count - bad, count - bad, total, True)
        assert connection.execute(
            "SELECT count(*), bool_and('O' || (row_number - 2) = (raw_text ->> 'order_id'))"
            " FROM rejected_orders"
        ).fetchone() == (bad, True)
