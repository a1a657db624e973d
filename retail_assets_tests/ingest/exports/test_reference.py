"""A reference file replaces its table, whole or not at all, and makes the right days stale."""

import csv
import io
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import narwhals as nw
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets import tables
from retail_assets.errors import AuditError, RetailAssetsError
from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.exports.reference import before_swap, read_reference, restate
from retail_assets.ingest.repair.replay import check_day
from retail_assets.lake.publish import publish_days, publish_table
from retail_assets.settings import Settings
from retail_assets.tables import CUSTOMERS, PRODUCTS, Table
from retail_assets.transforms import orders
from retail_assets_tests.conftest import WriteExport, order_row
from retail_assets_tests.ingest.exports.conftest import ExportLoader

DAY = date(2026, 10, 20)
NEXT = date(2026, 10, 21)
PRODUCTS_HEADER = "product_id,product_name,product_category,unit_price_gbp,stock_on_hand"
CUSTOMERS_HEADER = "customer_id,customer_segment,home_region,joined_on"
HEADERS = {PRODUCTS: PRODUCTS_HEADER, CUSTOMERS: CUSTOMERS_HEADER}

WriteReference = Callable[..., Path]


@pytest.fixture
def write_reference(settings: Settings) -> WriteReference:
    def write(table: Table, *rows: str, header: str | None = None) -> Path:
        path = settings.reference_dir / f"{table.name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in (header or HEADERS[table], *rows)))
        return path

    return write


def read(settings: Settings, table: Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_reference(settings.reference_dir, table).to_pylist()
    return rows


def publish(loader: ExportLoader, settings: Settings, table: Table) -> None:
    publish_table(
        loader.lake,
        loader.connection,
        table,
        read_reference(settings.reference_dir, table),
        before_swap=partial(restate, table, loader.lake),
    )


@pytest.mark.parametrize("table", [PRODUCTS, CUSTOMERS], ids=lambda table: table.name)
def test_a_missing_file_is_named(settings: Settings, table: Table) -> None:
    with pytest.raises(RetailAssetsError, match=rf"{table.name}\.csv does not exist"):
        read(settings, table)


def test_values_are_typed_and_blank_ones_are_null(
    settings: Settings, write_reference: WriteReference
) -> None:
    write_reference(PRODUCTS, "P1,Tea,Food,1.50,12", " P2\t, Soap ,Home,,", 'P3,"a, b",ß,3,0')
    write_reference(CUSTOMERS, "C1,gold,North,2020-02-29", "C2,new,South,")
    names = PRODUCTS.column_names
    assert read(settings, PRODUCTS) == [
        dict(zip(names, row, strict=True))
        for row in (
            ("P1", "Tea", "Food", Decimal("1.50"), 12),
            ("P2", "Soap", "Home", None, None),
            ("P3", "a, b", "ß", Decimal("3.00"), 0),
        )
    ]
    assert [row["joined_on"] for row in read(settings, CUSTOMERS)] == [date(2020, 2, 29), None]


def test_columns_may_come_in_any_order_and_further_ones_are_left_out(
    settings: Settings, write_reference: WriteReference
) -> None:
    write_reference(
        CUSTOMERS, "a,2020-02-29,b,North,gold,C1",
        header="record,joined_on,it's,home_region,customer_segment,customer_id",
    )  # fmt: skip
    assert read(settings, CUSTOMERS) == [
        {
            "customer_id": "C1",
            "customer_segment": "gold",
            "home_region": "North",
            "joined_on": date(2020, 2, 29),
        }
    ]


def test_missing_columns_are_named(settings: Settings, write_reference: WriteReference) -> None:
    path = write_reference(PRODUCTS, "P1,Tea", header="product_id,product_name")
    with pytest.raises(RetailAssetsError) as error:
        read(settings, PRODUCTS)
    assert str(path) in str(error.value)
    assert "product_category, unit_price_gbp, stock_on_hand" in str(error.value)


def test_an_empty_file_is_refused(settings: Settings, write_reference: WriteReference) -> None:
    write_reference(PRODUCTS).write_text("")
    with pytest.raises(RetailAssetsError, match=r"products\.csv is empty, without even a header"):
        read(settings, PRODUCTS)


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        (PRODUCTS, "P2,Tea,Food,cheap,1", "unit_price_gbp", "cheap"),
        (PRODUCTS, "P2,Tea,Food,1.999,1", "unit_price_gbp", "1.999"),
        (PRODUCTS, "P2,Tea,Food,1e3,1", "unit_price_gbp", "1e3"),
        (PRODUCTS, "P2,Tea,Food,1,3.7", "stock_on_hand", "3.7"),
        (PRODUCTS, "P2,Tea,Food,1,many", "stock_on_hand", "many"),
        (CUSTOMERS, "C2,gold,North,2021-02-29", "joined_on", "2021-02-29"),
        (CUSTOMERS, "C2,gold,North,03/04/2021", "joined_on", "03/04/2021"),
        (CUSTOMERS, "C2,gold,North,infinity", "joined_on", "infinity"),
    ],
)
def test_a_value_of_a_wrong_type_is_named_with_its_record(
    settings: Settings,
    write_reference: WriteReference,
    table: Table,
    row: str,
    column: str,
    value: str,
) -> None:
    good = {PRODUCTS: "P1,Tea,Food,1,1", CUSTOMERS: "C1,gold,North,2020-01-01"}[table]
    write_reference(table, good, row)
    with pytest.raises(RetailAssetsError, match=rf"{column} must be .* record 3 has '{value}'"):
        read(settings, table)


@pytest.mark.parametrize("row", ["P2,Tea", "P2,Tea,Food,1,1,1", '"P2,Tea,Food,1,1'])
def test_a_malformed_row_refuses_the_file(
    settings: Settings, write_reference: WriteReference, row: str
) -> None:
    path = write_reference(PRODUCTS, "P1,Tea,Food,1,1", row)
    with pytest.raises(RetailAssetsError) as error:
        read(settings, PRODUCTS)
    assert f"{path} cannot be read" in str(error.value)
    assert "Line: 3" in str(error.value)


SWALLOWED = {
    "never closed": (PRODUCTS, ['P2,"Tea,Food,1,1', "P3,Soap,Home,2,1", "P4,Mat,Bath,3,1"]),
    "closed by a stray quote": (PRODUCTS, ['P2,"Tea,Food,1,1', 'P3,Soap",Home,2,1']),
    "without values": (PRODUCTS, ['P2,"Tea,Food,,', 'P3,Soap",Home,,']),
    "closed in a row with quotes": (PRODUCTS, ['P2,"Tea,Food,1,1', 'P3,"Soap",Home,2,1']),
    "in customers": (CUSTOMERS, ['C2,"gold,North,2020-01-01', 'C3,new",South,2020-01-02']),
}


@pytest.mark.parametrize(("table", "rows"), SWALLOWED.values(), ids=SWALLOWED)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_a_quote_that_takes_rows_into_its_field_refuses_the_file_and_names_the_lines(
    settings: Settings, write_reference: WriteReference, table: Table, rows: list[str], end: str
) -> None:
    first = {PRODUCTS: 'P1,"Tea\nfine, black",Food,1,1', CUSTOMERS: 'C1,old,"North\nEast",'}[table]
    path = write_reference(table, first, *rows)
    path.write_bytes(path.read_bytes().replace(b"\n", end.encode()))
    with pytest.raises(RetailAssetsError) as error:
        read(settings, table)
    assert f"{path}, line 4: a quote opens there" in str(error.value)
    assert "such as line 5, into its field" in str(error.value)


names = st.sampled_from(
    ["Tea", "", "Mat", "Lamp", '"Tea, black"', '"two\nlines"', '5" pipe', '"say ""hi"""']
)
faults = st.sampled_from(['"', '""', "\n", "\r", "\r\n", ",", ' "', '",', ',"', '"b"c', "\udce9"])


@st.composite
def reference_files(draw: st.DrawFn) -> tuple[str, set[str]]:
    """Products with faults, and the ids of those that nobody has touched."""
    ids = [f"P{n}" for n in range(draw(st.integers(4, 8)))]
    prices = st.sampled_from(["1.50", ""])
    rows = {key: f"{key},{draw(names)},Food,{draw(prices)},3" for key in ids}
    opened, closed = draw(st.sampled_from([*combinations(ids, 2)]))
    if draw(st.booleans()):
        # A quote that opens in one row and closes in another, at the borders of fields.
        rows[opened] = f'{opened},"Tea,Food,1.50,3'
        rows[closed] = f'{closed},Tea",Food,1.50,3'
    else:
        for key in (opened, closed):
            place = draw(st.integers(0, len(rows[key])))
            rows[key] = rows[key][:place] + draw(faults) + rows[key][place:]
    lines = [PRODUCTS_HEADER, *rows.values(), ""]
    if draw(st.booleans()):
        lines.insert(draw(st.integers(1, len(lines) - 1)), "")
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines), {*ids} - {opened, closed}


@hypothesis_settings(max_examples=150, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(found=reference_files())
def test_every_record_of_a_reference_file_is_read_or_the_file_is_refused_by_name(
    found: tuple[str, set[str]],
) -> None:
    text, intact = found
    with TemporaryDirectory() as folder:
        path = Path(folder) / "products.csv"
        path.write_bytes(text.encode(errors="surrogateescape"))
        try:
            rows = read_reference(Path(folder), PRODUCTS).to_pylist()
        except RetailAssetsError as error:
            assert str(path) in str(error)  # noqa: PT017 either outcome is right
            return
    records = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    assert len(rows) == sum(1 for fields in records if fields) - 1
    assert {row["product_id"] for row in rows} >= intact


def test_a_file_that_is_not_utf8_is_refused(
    settings: Settings, write_reference: WriteReference
) -> None:
    path = write_reference(PRODUCTS)
    path.write_bytes(f"{PRODUCTS_HEADER}\nP1,Thé,Food,1,1\n".encode("latin-1"))
    with pytest.raises(RetailAssetsError, match="cannot be read"):
        read(settings, PRODUCTS)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (("P1,Tea,Food,1,1", "P1,Tea,Food,2,1"), "P1"),
        (("P1,Tea,Food,1,1", " ,Soap,Home,2,1"), "Soap"),
        (("P1,Tea,Food,1,1", "P2,Soap,,2,1"), "Soap"),
    ],
    ids=["duplicate", "blank key", "blank category"],
)
def test_duplicates_and_blanks_are_refused_and_the_old_rows_stay(
    loader: ExportLoader,
    settings: Settings,
    write_reference: WriteReference,
    rows: tuple[str, ...],
    named: str,
) -> None:
    write_reference(PRODUCTS, "P0,Old,Food,1,1")
    publish(loader, settings, PRODUCTS)
    write_reference(PRODUCTS, *rows)
    with pytest.raises(AuditError, match=named):
        publish(loader, settings, PRODUCTS)
    assert loader.rows("SELECT product_id FROM products") == [("P0",)]


@pytest.mark.parametrize("table", [PRODUCTS, CUSTOMERS], ids=lambda table: table.name)
def test_a_file_that_lacks_more_rows_than_it_may_leaves_the_table_as_it_was(
    loader: ExportLoader, settings: Settings, write_reference: WriteReference, table: Table
) -> None:
    def load(rows: int, first: int = 0, max_shrink: float = 0.5) -> None:
        tail = ",a,b,1,1" if table is PRODUCTS else ",a,b,2026-01-01"
        write_reference(table, *(f"K{n}{tail}" for n in range(first, first + rows)))
        publish_table(
            loader.lake,
            loader.connection,
            table,
            read_reference(settings.reference_dir, table),
            before_swap=before_swap(table, loader.lake, max_shrink=max_shrink),
        )

    def rows() -> int:
        ((count,),) = loader.rows(f"SELECT count(*) FROM {table.name}")
        return int(count)

    load(0)
    load(10)
    for fewer, first in ((0, 0), (4, 0), (10, 6)):
        with pytest.raises(AuditError, match=rf"of the 10 {table.name} .* --allow-shrink"):
            load(fewer, first)
    assert rows() == 10
    load(5)
    assert rows() == 5
    load(0, max_shrink=1)
    assert rows() == 0


def publish_completed_orders(loader: ExportLoader) -> None:
    frames = (
        nw.from_native(loader.connection.table(f"lake.{table.name}"))
        for table in (tables.RAW_ORDERS, PRODUCTS, CUSTOMERS)
    )
    published = publish_days(
        loader.lake,
        loader.connection,
        tables.COMPLETED_ORDERS,
        orders.completed_orders(*frames),
        [DAY, NEXT],
    )
    assert published.failed == {}


BASE: dict[Table, tuple[str, ...]] = {
    PRODUCTS: ("P1,Tea,Food,1,1", "P2,Soap,Home,1,1"),
    CUSTOMERS: ("C1,gold,North,", "C2,gold,South,"),
}
CHANGES: dict[str, tuple[Table, tuple[str, ...], set[date]]] = {
    "category": (PRODUCTS, ("P1,Tea,DRINKS,1,1", "P2,Soap,Home,1,1"), {DAY}),
    "name": (PRODUCTS, ("P1,Tea,Food,1,1", "P2,NEW,Home,1,1"), {NEXT}),
    "price and stock": (PRODUCTS, ("P1,Tea,Food,9,9", "P2,Soap,Home,9,9"), set()),
    "order of rows": (PRODUCTS, BASE[PRODUCTS][::-1], set()),
    "product gone": (PRODUCTS, BASE[PRODUCTS][:1], {NEXT}),
    "product known at last": (PRODUCTS, (*BASE[PRODUCTS], "P9,New,x,1,1"), {NEXT}),
    "product nobody ordered": (PRODUCTS, (*BASE[PRODUCTS], "P7,New,x,1,1"), set()),
    "segment": (CUSTOMERS, ("C1,silver,North,", "C2,gold,South,"), {DAY, NEXT}),
    "region": (CUSTOMERS, ("C1,gold,North,", "C2,gold,West,"), {NEXT}),
    "joined": (CUSTOMERS, ("C1,gold,North,2020-01-01", "C2,gold,South,"), set()),
}


def test_a_change_makes_the_days_stale_whose_orders_it_concerns_and_no_others(
    loader: ExportLoader,
    settings: Settings,
    write_export: WriteExport,
    write_reference: WriteReference,
) -> None:
    def made_stale(table: Table, rows: tuple[str, ...]) -> set[date]:
        before = loader.versions()
        write_reference(table, *rows)
        publish(loader, settings, table)
        return {day for day, version in loader.versions().items() if version > before[day]}

    for table, rows in BASE.items():
        assert made_stale(table, rows) == set()
    write_export(DAY, [order_row("A", DAY, product_id="P1")])
    soap = order_row("B", NEXT, product_id="P2")
    unknown = order_row("C", NEXT, product_id="P9", customer_id="C2")
    write_export(NEXT, [soap, unknown])
    loader.ingest(DAY, NEXT)
    publish_completed_orders(loader)
    for change, (table, rows, days) in CHANGES.items():
        assert made_stale(table, rows) == days, change
        assert made_stale(table, BASE[table]) == days, f"{change}, undone"


def test_a_change_reaches_the_events_that_it_concerns_and_no_others(settings, lake):
    day = settings.data_dir / "events" / "2026-10-12"
    day.mkdir(parents=True)
    lines = [
        f'{{"event_id": "{product}{customer}", "order_id": "{product}{customer}",'
        f' "customer_id": "{customer}", "product_id": "{product}", "order_value_gbp": 5,'
        ' "region": "North"}\n'
        for product in ("P1", "P2", "P9")
        for customer in ("C1", "C2")
    ]
    (day / "a.jsonl").write_text("".join(lines))
    settings.reference_dir.mkdir()
    products = settings.reference_dir / "products.csv"
    customers = settings.reference_dir / "customers.csv"
    customers.write_text(
        "customer_id,customer_segment,home_region,joined_on\nC1,loyal,North,\nC2,new,South,\n"
    )

    def load(table, text):
        products.write_text(f"{PRODUCTS_HEADER}\n{text}")
        with lake.connect() as connection:
            publish_table(
                lake,
                connection,
                table,
                read_reference(settings.reference_dir, table),
                before_swap=partial(restate, table, lake),
            )

    def categories():
        with lake.connect(read_only=True) as connection:
            return connection.execute(
                "SELECT product_id, product_category, customer_segment, count(*),"
                " count(DISTINCT processed_at) FROM enriched_events GROUP BY ALL ORDER BY ALL"
            ).fetchall()

    load(tables.CUSTOMERS, "")
    load(tables.PRODUCTS, "P1,Kettle,Kitchen,,\nP2,Lamp,Lighting,,\n")
    with lake.connect() as connection:
        ingest(EventSession(lake, connection), settings, ["2026-10-12/a.jsonl"])
    load(tables.PRODUCTS, "P1,Kettle,Home,,\nP9,Mat,Bath,,\n")

    assert categories() == [
        ("P1", "Home", "loyal", 1, 1),
        ("P1", "Home", "new", 1, 1),
        ("P2", "unknown", "loyal", 1, 1),
        ("P2", "unknown", "new", 1, 1),
        ("P9", "Bath", "loyal", 1, 1),
        ("P9", "Bath", "new", 1, 1),
    ]
    with lake.connect() as connection:
        assert check_day(EventSession(lake, connection), date(2026, 10, 12)) == []
