"""Whatever an export holds and in whatever order exports come: what is right is in the lake."""

import csv
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import narwhals as nw
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from retail_assets.ingest.exports.load import ingest
from retail_assets.lake.connection import Lake
from retail_assets.transforms import orders, revenue
from retail_assets_tests.conftest import HEADER, NewLake, order_row, write_export_to

DAY = date(2026, 10, 26)
A_DAY = timedelta(days=1)
LATE_DAYS = 2
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""An example costs a second: making it smaller would cost minutes."""

COLUMNS = HEADER.split(",")
IDS = ("order_id", "customer_id", "product_id")
STATUSES = ("completed", "pending", "cancelled", "returned", "refunded")
BLANKS = " \t\r\n\u00a0"


@contextmanager
def fresh(new_lake: NewLake) -> Iterator[tuple[Lake, duckdb.DuckDBPyConnection, Path]]:
    """An empty lake, connected, with a folder for exports."""
    with tempfile.TemporaryDirectory() as folder:
        # Tables this small take longer with more threads.
        lake = replace(new_lake(Path(folder)), threads=1)
        with lake.connect() as connection:
            yield lake, connection, Path(folder) / "exports"


# An independent reading of an export, slow and in plain Python


@dataclass(frozen=True)
class Row:
    """What the rules say of a record: values if it is used, else why it is not."""

    record: int
    reason: str | None
    field: str | None = None
    values: tuple[Any, ...] = ()


def read(content: bytes) -> list[Row]:
    """Validate every record of an export; of repeated lines of an order the last counts."""
    records = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header = [name.strip() for name in next(records)]
    rows = [
        validate(number, dict(zip(header, fields, strict=True)))
        if len(fields) == len(header)
        else Row(number, "malformed_row")
        for number, fields in enumerate(filter(None, records), start=2)
    ]
    products: dict[str, set[str]] = {}
    for row in rows:
        if row.reason is None:
            products.setdefault(row.values[0], set()).add(row.values[3])

    def line(row: Row) -> tuple[Any, ...]:
        """What makes two rows the same line of an order."""
        order, number, _, product, *_, value, _ = row.values
        if number is not None:
            return order, number
        return (order, None) if len(products[order]) == 1 else (order, None, product, value)

    last = {line(row): row.record for row in rows if row.reason is None}
    rows = [
        Row(row.record, "duplicate_order", "order_id")
        if row.reason is None and row.record < last[line(row)]
        else row
        for row in rows
    ]
    highest: dict[str, int] = {}
    for row in rows:
        if row.reason is None:
            highest[row.values[0]] = max(highest.get(row.values[0], 0), row.values[1] or 0)
    for n, row in enumerate(rows):
        if row.reason is None and row.values[1] is None:
            order, _, *values = row.values
            highest[order] += 1
            rows[n] = replace(row, values=(order, highest[order], *values))
    return rows


def validate(record: int, fields: dict[str, str]) -> Row:
    text = {name: fields[name].strip(BLANKS) for name in COLUMNS}
    measured = ("order_value_gbp", "order_timestamp")
    missing = [name for name in COLUMNS if name not in measured and not text[name]]
    missing += [name for name in COLUMNS if name in IDS and text[name].lower() in orders.NO_ID]
    missing += [name for name in measured if not text[name]]
    if missing:
        return Row(record, "missing_value", missing[0])
    for name in (name for name in COLUMNS if name in IDS):
        if re.search(orders.SHORTENED_NUMBER, text[name]):
            reason = "mangled_order_id" if name == "order_id" else "mangled_id"
            return Row(record, reason, name)
    value, when = money(text["order_value_gbp"]), wall_clock(text["order_timestamp"])
    line = line_number(fields.get("line_number", "").strip(BLANKS))
    wrong = {"order_value_gbp": value is None, "line_number": line == 0}
    if any(wrong.values()):
        return Row(record, "invalid_number", next(name for name in wrong if wrong[name]))
    if when is None:
        return Row(record, "invalid_timestamp", "order_timestamp")
    if value <= 0:
        return Row(record, "not_positive", "order_value_gbp")
    status = text["status"].lower()
    if status not in STATUSES:
        return Row(record, "unknown_status", "status")
    days_late = (DAY - when.date()).days
    if days_late < 0:
        return Row(record, "future_order", "order_timestamp")
    if days_late > LATE_DAYS:
        return Row(record, "too_late", "order_timestamp")
    order, *others = (text[name] for name in ("order_id", "customer_id", "product_id", "region"))
    return Row(record, None, None, (order, line, *others, status, value, when))


def money(text: str) -> Decimal | None:
    match = re.fullmatch(r"([+-]?)([0-9]+)(?:\.([0-9]+))?", text, re.ASCII)
    if match is None or len(match[2]) > 10 or len((match[3] or "").rstrip("0")) > 2:
        return None
    return Decimal(text).quantize(Decimal("0.01"))


def line_number(text: str) -> int | None:
    """The number of a line; None if it has none, zero if that is no number of a line."""
    match = re.fullmatch(r"\+?([0-9]{1,9})(?:\.0*)?", text, re.ASCII)
    return (int(match[1]) if match else 0) if text else None


def wall_clock(text: str) -> datetime | None:
    for pattern in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S%z"):
        try:
            when = datetime.strptime(text.replace("T", " "), pattern)  # noqa: DTZ007 both kinds
        except ValueError:
            continue
        if when.tzinfo is None:
            return when
        return when.astimezone(ZoneInfo("Europe/London")).replace(tzinfo=None)
    return None


# Exports, good and hostile

blank_text = st.text(BLANKS, max_size=2)
any_text = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), include_characters="\",\t\n\r'"),
    max_size=6,
)
moments = st.datetimes(datetime(2026, 10, 22), datetime(2026, 10, 27, 12))  # noqa: DTZ001 local
offsets = st.integers(-14 * 4, 14 * 4).map(lambda quarters: timedelta(minutes=15 * quarters))


def written(when: datetime, offset: timedelta | None, separator: str) -> str:
    text = when.replace(microsecond=0, tzinfo=timezone(offset) if offset is not None else None)
    return text.isoformat(separator)


def padded(text: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds("{}{}{}".format, blank_text, text, blank_text)


def mostly(good: st.SearchStrategy[str], bad: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.integers(0, 9).flatmap(lambda n: bad if n == 0 else padded(good) if n == 1 else good)


cells = st.fixed_dictionaries(
    {
        "order_id": mostly(
            st.sampled_from(["A", "B", "C", "D", "Ä", "日"]),
            any_text | st.sampled_from(["NULL", "NaN", "\\N"]),
        ),
        "customer_id": mostly(st.just("C1"), any_text),
        "product_id": mostly(st.sampled_from(["P1", "P2"]), any_text),
        "region": mostly(st.sampled_from(["North", "a,b", 'a"b', "a\nb", "NULL"]), any_text),
        "status": mostly(st.sampled_from([*STATUSES, "COMPLETED", "Returned"]), any_text),
        "order_value_gbp": mostly(
            st.decimals(-1, 10**10 - 1, places=2).map(str),
            any_text
            | st.sampled_from(["NaN", "1e400", "1e3", "0x1", "1,0", "0", "1.005", "1.500"])
            | st.integers(10**10, 10**13).map(str)
            | st.decimals(allow_nan=True).map(str),
        ),
        "order_timestamp": mostly(
            st.builds(written, moments, st.none() | offsets, st.sampled_from("T ")),
            any_text | st.sampled_from(["2026-02-30", "24:00", "2026-10-26", "2026-10-26 25:00"]),
        ),
        "line_number": mostly(
            st.sampled_from(["1", "2", "3", ""]), any_text | st.sampled_from(["0", "-1", "+2.0"])
        ),
        "note": any_text,
    }
)  # fmt: skip


@st.composite
def exports(draw: st.DrawFn) -> bytes:
    """An export: columns in any order, quoted or as needed, lines that end in any one way."""
    optional = draw(st.lists(st.sampled_from(["line_number", "note"]), unique=True))
    columns = draw(st.permutations([*COLUMNS, *optional]))
    text = io.StringIO()
    end = draw(st.sampled_from(["\n", "\r\n"]))
    quote_all = draw(st.booleans())
    writer = csv.writer(
        text, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator=end
    )
    writer.writerow(columns)
    for row in draw(st.lists(cells, min_size=8, max_size=30)):
        writer.writerow([row[name] for name in columns])
        match draw(st.integers(0, 14)):
            case 0:
                writer.writerow(["too", "few"])
            case 1:
                writer.writerow([*("x" for _ in columns), "too", "many"])
            case 2:
                text.write(end)
    content = text.getvalue()
    if draw(st.booleans()):
        content = content.removesuffix(end)
    return draw(st.sampled_from(["", "\ufeff"])).encode() + content.encode()


def test_an_export_is_read_as_an_independent_reader_reads_it(new_lake: NewLake) -> None:
    """Each in place of the one before."""
    with fresh(new_lake) as (lake, connection, folder):

        @settings(max_examples=8, phases=NO_SHRINKING)
        @given(content=exports())
        def check(content: bytes) -> None:
            expected = read(content)
            write_export_to(folder, DAY, content)
            ingested = ingest(lake, connection, folder, [DAY], late_days=LATE_DAYS)
            assert ingested.raw.failed == {}
            raw = connection.execute(
                "SELECT order_id, line_number, customer_id, product_id, region, status,"
                " order_value_gbp, order_timestamp, order_date FROM raw_orders ORDER BY row_number"
            ).fetchall()
            rejected = connection.execute(
                "SELECT row_number, reason, field FROM rejected_orders ORDER BY row_number"
            ).fetchall()
            usable = [row.values for row in expected if row.reason is None]
            assert raw == [(*values, values[-1].date()) for values in usable]
            assert rejected == [
                (row.record, row.reason, row.field) for row in expected if row.reason is not None
            ]

        check()


# The order of arrival

DAYS = [DAY, DAY + A_DAY, DAY + 2 * A_DAY]
TABLES = ("raw_orders", "rejected_orders")


def small_row(order: str, back: int, pence: int, status: str) -> tuple[str, int, str, str]:
    return order, back, f"{pence / 100:.2f}", status


small_exports = st.lists(
    st.builds(
        small_row,
        st.sampled_from("ABCD"),
        st.integers(0, 4),
        st.integers(0, 300),
        st.sampled_from(["completed", "completed", "returned", "lost"]),
    ),
    max_size=8,
)


def product(value: str) -> str:
    """The product of a small row: an order may have lines of two."""
    return f"P{value[-1] > '4':d}"


def lines(day: date, rows: Sequence[tuple[str, int, str, str]]) -> list[str]:
    return [
        order_row(
            order,
            day - back * A_DAY,
            product_id=product(value),
            order_value_gbp=value,
            status=status,
        )
        for order, back, value, status in rows
    ]


def final_tables(connection: duckdb.DuckDBPyConnection) -> list[list[tuple[Any, ...]]]:
    """The rows of raw and rejected orders, and the revenue that they make."""
    raw = nw.from_native(connection.table("lake.raw_orders"))
    reference = [
        nw.from_native(connection.table(f"lake.{name}")) for name in ("products", "customers")
    ]
    earned = revenue.daily_revenue(orders.completed_orders(raw, *reference)).to_native()
    return [
        *(connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in TABLES),
        connection.execute(f"FROM ({earned.sql_query()}) ORDER BY ALL").fetchall(),
    ]


arrivals = st.lists(st.tuples(st.integers(0, len(DAYS) - 1), small_exports), min_size=1, max_size=5)


@settings(max_examples=2, phases=NO_SHRINKING)
@given(versions=arrivals, order=st.randoms(use_true_random=False))
@example(
    versions=[
        (0, [("A", 0, "1.00", "completed"), ("B", 0, "2.00", "completed")]),
        (1, [("A", 1, "1.00", "returned")]),
        (0, [("A", 0, "1.00", "completed")]),
    ],
    order=None,
)
def test_any_order_of_arrival_gives_the_same_tables_and_twice_is_once(
    new_lake: NewLake, versions: list[tuple[int, Any]], order: Any
) -> None:
    """Each file may be replaced on its way; what counts is the last version of each."""
    last = dict(versions)
    with fresh(new_lake) as (lake, connection, folder):
        for number, rows in last.items():
            write_export_to(folder, DAYS[number], lines(DAYS[number], rows))
        days = [DAYS[number] for number in last]
        ingest(lake, connection, folder, days, late_days=LATE_DAYS)
        expected = final_tables(connection)
        again = ingest(lake, connection, folder, days, late_days=LATE_DAYS)
        assert again.unchanged == tuple(sorted(days))
        assert final_tables(connection) == expected
    numbers = list(range(len(versions)))
    if order is not None:
        order.shuffle(numbers)
    # Versions of one file keep their order; those of different files come in any.
    queues = {day: [rows for number, rows in versions if number == day] for day in last}
    with fresh(new_lake) as (lake, connection, folder):
        for number in numbers:
            which = versions[number][0]
            write_export_to(folder, DAYS[which], lines(DAYS[which], queues[which].pop(0)))
            ingest(lake, connection, folder, [DAYS[which]], late_days=LATE_DAYS)
        assert final_tables(connection) == expected
