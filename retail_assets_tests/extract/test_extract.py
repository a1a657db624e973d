"""Orders and reference tables from real databases into files."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from retail_assets import business_days, tables
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.extract import mysql
from retail_assets.extract.run import extract
from retail_assets.ingest.exports.load import ingest
from retail_assets.ingest.exports.reference import read_reference
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.extract.shops import (
    ORDERS,
    Shop,
    declare,
    ids,
    mariadb_shop,
    postgres_shop,
    query,
    read_csv,
    rows_of,
    table_of,
)
from retail_assets_tests.faults.batch import run_batch
from retail_assets_tests.platform import write_reference

pytestmark = pytest.mark.processes

DAY = date(2026, 10, 12)
NEXT = DAY + timedelta(days=1)
DAYS = business_days.days_between(DAY, DAY + timedelta(days=3))
WINTER = date(2026, 10, 25)
"""The day on which London's clocks go back, at two in the morning: it has 25 hours."""


on_postgres = pytest.mark.parametrize("shop", ["postgres"], indirect=True)
"""The kind of server makes no difference to the test."""


@pytest.fixture
def orders(settings: Settings, lake: Lake, shop: Shop) -> Settings:
    """The settings for a shop with an empty table of orders."""
    shop.create()
    return declare(settings, shop, {"orders": ORDERS})


def results(settings: Settings, days: list[date], **options: bool) -> dict[date, str]:
    done = extract(settings, days, **options)
    return {file.day: file.result for file in done.orders if file.day} | done.failed


def revenue(settings: Settings) -> dict[str, str]:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return {
            str(day): str(total)
            for day, total in connection.execute(
                "SELECT order_date, sum(total_revenue) FROM daily_revenue GROUP BY 1 ORDER BY 1"
            ).fetchall()
        }


def ledger(settings: Settings, columns: str) -> list[tuple[object, ...]]:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return connection.execute(f"SELECT {columns} FROM extracted_files ORDER BY ALL").fetchall()


def test_the_orders_of_each_day_are_in_its_file_and_in_its_revenue(
    orders: Settings, shop: Shop
) -> None:
    write_reference(orders)
    shop.order("1", f"{DAY} 00:00:00", total="19.99")
    shop.order("2", f"{DAY} 23:59:59", total="0.01")
    shop.order("3", f"{NEXT} 00:00:00")
    assert results(orders, [DAY, NEXT]) == {DAY: "written", NEXT: "written"}
    assert table_of(orders, DAY) == [
        list(ORDERS["columns"]),
        ["1", "C1", "P1", "North", "completed", "19.99", f"{DAY} 00:00:00"],
        ["2", "C1", "P1", "North", "completed", "0.01", f"{DAY} 23:59:59"],
    ]
    assert ids(orders, NEXT) == ["3"]
    run_batch(orders, [DAY, NEXT])
    assert revenue(orders) == {str(DAY): "20.00", str(NEXT): "10.00"}


@on_postgres
def test_a_day_without_orders_is_a_file_with_a_header_alone(orders: Settings) -> None:
    extract(orders, [DAY])
    assert table_of(orders, DAY) == [list(ORDERS["columns"])]


@on_postgres
def test_the_same_rows_leave_the_file_untouched(orders: Settings, shop: Shop) -> None:
    for n in range(50):
        shop.order(f"O{n}", f"{DAY} 10:00:00")
    extract(orders, [DAY])
    path = business_days.export_paths(orders.exports_dir, DAY)[0]
    before, entries = path.stat(), ledger(orders, "*")
    # Another order on disk.
    for n in reversed(range(50)):
        shop.order(f"O{n}", f"{DAY} 10:00:00")
    assert results(orders, [DAY]) == {DAY: "unchanged"}
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert ledger(orders, "*") == entries


@on_postgres
def test_compressed_exports_are_the_same_bytes_each_time(orders: Settings, shop: Shop) -> None:
    settings = declare(orders, shop, {"orders": ORDERS, "compress": True})
    shop.order("1", f"{DAY} 10:00:00")
    extract(settings, [DAY])
    assert ids(settings, DAY) == ["1"]
    assert results(settings, [DAY]) == {DAY: "unchanged"}
    # The other form of a file that was extracted goes.
    plain = declare(settings, shop, {"orders": ORDERS})
    assert results(plain, [DAY]) == {DAY: "replaced"}
    assert [path.suffix for path in plain.exports_dir.iterdir()] == [".csv"]


@on_postgres
def test_a_changed_order_comes_again_on_the_day_of_its_change(orders: Settings, shop: Shop) -> None:
    write_reference(orders)
    shop.order("1", f"{DAY} 10:00:00")
    extract(orders, [DAY])
    run_batch(orders, [DAY])
    shop.order("1", f"{DAY} 10:00:00", f"{NEXT} 09:00:00", state="refunded")
    shop.order("2", f"{NEXT} 11:00:00")
    done = extract(orders, [NEXT])
    assert [(file.rows, file.late_rows) for file in done.orders] == [(2, 1)]
    assert ids(orders, NEXT) == ["1", "2"]
    run_batch(orders, [DAY, NEXT])
    assert revenue(orders) == {str(NEXT): "10.00"}


@on_postgres
def test_an_order_that_changed_too_late_is_told_and_rejected_by_name(
    orders: Settings, shop: Shop
) -> None:
    write_reference(orders)
    late = DAY + timedelta(days=8)
    shop.order("1", f"{DAY} 10:00:00", f"{late} 09:00:00", state="refunded")
    done = extract(orders, [late])
    assert [
        note for note in done.notes if f"--start {DAY} --end {late - timedelta(days=1)}" in note
    ]
    assert ids(orders, late) == ["1"]
    run_batch(orders, [late])
    with Lake.from_settings(orders).connect(read_only=True) as connection:
        found = connection.execute("SELECT export_date, reason FROM rejected_orders").fetchall()
    assert found == [(late, "too_late")]


@on_postgres
def test_an_earlier_day_extracted_again_brings_no_older_version_back(
    orders: Settings, shop: Shop
) -> None:
    write_reference(orders)
    days = business_days.days_between(DAY, DAY + timedelta(days=3))
    shop.order("1", f"{DAY} 10:00:00", total="1.00")
    extract(orders, [days[0]])
    shop.order("1", f"{DAY} 10:00:00", f"{days[1]} 10:00:00", total="2.00")
    extract(orders, [days[1]])
    run_batch(orders, days[:2])
    # Changed again, on a day that is not extracted yet; the file of its second version is again.
    shop.order("1", f"{DAY} 10:00:00", f"{days[3]} 10:00:00", total="3.00")
    extract(orders, [days[1]])
    run_batch(orders, days[:2])
    assert revenue(orders) == {str(DAY): "3.00"}


def test_all_lines_of_an_order_come_when_one_has_changed(orders: Settings, shop: Shop) -> None:
    shop.execute("DROP TABLE orders")
    shop.create(key="")
    for line, changed in (("P1", DAY), ("P2", NEXT), ("P3", DAY)):
        shop.execute(
            "INSERT INTO orders VALUES ('1', 'C1',"
            f" '{line}', 'North', 'completed', 5, '{DAY} 10:00:00', '{changed} 11:00:00')"
        )
    extract(orders, [NEXT])
    assert [row[2] for row in rows_of(orders, NEXT)] == ["P1", "P2", "P3"]


def test_rows_without_an_order_id_are_not_lost(orders: Settings, shop: Shop) -> None:
    shop.execute("DROP TABLE orders")
    shop.create(key="")
    for day in (DAY, NEXT):
        shop.execute(
            "INSERT INTO orders VALUES (NULL, 'C1', 'P1', 'North', 'completed', 5,"
            f" '{day} 10:00:00', '{day} 11:00:00')"
        )
    extract(orders, [DAY, NEXT])
    assert [len(rows_of(orders, day)) for day in (DAY, NEXT)] == [1, 1]


@pytest.mark.parametrize(
    ("moments", "zone", "hours"),
    [
        (True, None, ("2026-10-24 22:59:59", "2026-10-24 23:00:00", "2026-10-25 23:59:59")),
        (False, "UTC", ("2026-10-24 22:59:59", "2026-10-24 23:00:00", "2026-10-25 23:59:59")),
        (False, None, ("2026-10-24 23:59:59", "2026-10-25 00:00:00", "2026-10-25 23:59:59")),
        (
            False,
            "Europe/Berlin",
            ("2026-10-25 00:59:59", "2026-10-25 01:00:00", "2026-10-26 00:59:59"),
        ),
    ],
    ids=["with zone", "utc", "local", "another zone"],
)
def test_a_day_begins_and_ends_by_the_clocks_of_the_business(
    settings: Settings,
    lake: Lake,
    shop: Shop,
    moments: bool,
    zone: str | None,
    hours: tuple[str, str, str],
) -> None:
    shop.create(moments=moments)
    offset = "+00" if moments and shop.kind == "postgres" else ""
    for name, hour in zip(("before", "first", "last"), hours, strict=True):
        shop.order(name, hour + offset)
    after = {"Europe/Berlin": "2026-10-26 01:00:00"}.get(str(zone), "2026-10-26 00:00:00")
    shop.order("after", after + offset)
    database = {"orders": ORDERS | ({"timezone": zone} if zone else {})}
    declared = declare(settings, shop, database)
    extract(declared, [WINTER])
    assert ids(declared, WINTER) == ["first", "last"]
    # And the platform sees them on that day as well.
    with Lake.from_settings(declared).connect() as connection:
        ingest(lake, connection, declared.exports_dir, [WINTER], late_days=0)
        found = connection.execute("SELECT order_date FROM raw_orders").fetchall()
    assert found == [(WINTER,)] * 2


def test_any_value_and_any_column_name_is_csv_as_it_was(
    settings: Settings, lake: Lake, shop: Shop
) -> None:
    big = shop.kind == "postgres"
    decimal, json = ("numeric", "jsonb") if big else ("decimal(40,20)", "json")
    quote = '"' if big else "`"
    odd = 'a "b",\nc`; -- é'
    name = odd.replace(quote, quote * 2)
    time, binary = ("timestamp", "bytea") if big else ("datetime", "blob")
    shop.execute(
        f"CREATE TABLE {quote}odd.table{quote} (order_id varchar(9), placed {time},"
        f" {quote}{name}{quote} text, value {decimal}, yes boolean, doc {json}, b {binary})"
    )
    texts = ["", " x ", "a,b", 'say "hi"', "two\nlines", "carriage\rreturn", "é😀", "#c", "NULL"]
    with shop._connection() as connection, connection.cursor() as cursor:
        for n, text in enumerate(texts):
            cursor.execute(
                f"INSERT INTO {quote}odd.table{quote} VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [
                    str(n),
                    f"{DAY} 10:00:00",
                    text,
                    "12345678901234567890.10",
                    True,
                    '{"a": 1}',
                    b"\0\xff",
                ],
            )
        cursor.execute(
            f"INSERT INTO {quote}odd.table{quote} (order_id, placed) VALUES ('9', '{DAY}')"
        )
    declared = declare(settings, shop, {"orders": {"table": '"odd.table"', "day": "placed"}})
    extract(declared, [DAY])
    header, *rows = table_of(declared, DAY)
    assert header == ["order_id", "placed", odd, "value", "yes", "doc", "b"]
    assert sorted(row[2] for row in rows[1:]) == sorted(texts)
    value = "12345678901234567890.10" if big else "12345678901234567890.10000000000000000000"
    assert {tuple(row[3:]) for row in rows} == {
        (value, "true" if big else "1", '{"a": 1}', r"\x00ff"),
        ("", "", "", ""),
    }


@on_postgres
def test_rates_of_currencies_are_extracted_like_other_reference_tables(
    orders: Settings, shop: Shop
) -> None:
    shop.execute(
        "CREATE TABLE exchange (on_day date, code varchar(3), gbp decimal(18, 8))",
        f"INSERT INTO exchange VALUES ('{DAY}', 'EUR', 0.86500000), ('{NEXT}', 'EUR', 0.87)",
    )
    columns = {"day": "on_day", "currency": "code", "rate": "gbp"}
    rates = {"table": "exchange", "columns": columns}
    settings = declare(orders, shop, {"orders": ORDERS, "currency_rates": rates})
    [file] = extract(settings, []).reference
    assert file.path == settings.reference_dir / "currency_rates.csv"
    found = read_reference(settings.reference_dir, tables.CURRENCY_RATES).to_pylist()
    assert [(row["day"], row["currency"], float(row["rate"])) for row in found] == [
        (DAY, "EUR", 0.865),
        (NEXT, "EUR", 0.87),
    ]


def test_reference_tables_and_orders_are_of_one_snapshot(orders: Settings, shop: Shop) -> None:
    shop.execute("CREATE TABLE products (product_id varchar(9), product_category varchar(9))")
    shop.execute("INSERT INTO products VALUES ('P1', 'Kitchen')")
    settings = declare(orders, shop, {"orders": ORDERS, "products": {"table": "products"}})
    shop.order("before", f"{DAY} 10:00:00")

    def somebody_orders(text: str) -> None:
        if text == "reading orders":
            shop.order("meanwhile", f"{DAY} 10:00:00")
            shop.execute(
                "UPDATE orders SET total = 99", "INSERT INTO products VALUES ('P2', 'New')"
            )

    done = extract(settings, [DAY], say=somebody_orders)
    assert [row[0] for row in rows_of(settings, DAY)] == ["before"]
    assert rows_of(settings, DAY)[0][5] == "10.00"
    assert read_csv(settings.reference_dir / "products.csv")[1:] == [["P1", "Kitchen"]]
    assert done.origin["server"].startswith("PostgreSQL" if shop.kind == "postgres" else "MariaDB")
    assert "snapshot" in done.origin or "taken_at" in done.origin
    assert results(settings, [DAY]) == {DAY: "replaced"}
    assert ids(settings, DAY) == ["before", "meanwhile"]


@on_postgres
def test_a_file_of_somebody_else_stays_unless_it_may_be_replaced(
    orders: Settings, shop: Shop
) -> None:
    shop.order("1", f"{DAY} 10:00:00")
    by_hand = business_days.export_paths(orders.exports_dir, DAY)[1]
    by_hand.parent.mkdir()
    by_hand.write_bytes(b"of somebody else")
    found = results(orders, [DAY, NEXT])
    assert found[NEXT] == "written"
    assert str(by_hand) in found[DAY]
    assert "--replace" in found[DAY]
    assert by_hand.read_bytes() == b"of somebody else"
    with Lake.from_settings(orders).connect(read_only=True) as connection:
        assert connection.execute("SELECT table_name, day FROM failed_days").fetchall() == [
            ("extracted_files", DAY)
        ]
    assert results(orders, [DAY, NEXT], may_replace=True) == {DAY: "replaced", NEXT: "unchanged"}
    assert ids(orders, DAY) == ["1"]
    with Lake.from_settings(orders).connect(read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM failed_days").fetchall() == [(0,)]


@on_postgres
def test_a_file_that_was_edited_is_somebody_elses(orders: Settings, shop: Shop) -> None:
    extract(orders, [DAY])
    path = business_days.export_paths(orders.exports_dir, DAY)[0]
    path.write_text(path.read_text() + "2,C1,P1,North,completed,1.00,2026-10-12\n")
    shop.order("1", f"{DAY} 10:00:00")
    assert "was changed since" in results(orders, [DAY])[DAY]
    assert ids(orders, DAY) == ["2"]


def test_rows_without_a_day_are_told(orders: Settings, shop: Shop) -> None:
    shop.execute(
        "INSERT INTO orders (id, placed_at, updated_at) VALUES ('1', NULL, NULL),"
        f" ('2', NULL, '{DAY} 10:00:00')"
    )
    done = extract(orders, [DAY])
    assert ["without a usable placed_at: 2" in note for note in done.notes] == [True]
    # The one that changed that day is rejected there, by its reason.
    assert ids(orders, DAY) == ["2"]


@pytest.mark.parametrize("shop", ["mariadb"], indirect=True)
def test_days_that_no_calendar_has_are_told(orders: Settings, shop: Shop) -> None:
    shop.execute(
        "SET SESSION sql_mode = ''",
        "INSERT INTO orders (id, placed_at) VALUES ('1', '2026-10-00'), ('2', '0000-00-00')",
    )
    assert ["without a usable placed_at: 2" in note for note in extract(orders, [DAY]).notes] == [
        True
    ]


def test_the_source_is_never_changed(orders: Settings, shop: Shop) -> None:
    sql = (
        "SELECT * FROM orders FOR UPDATE"
        if shop.kind == "postgres"
        else "SELECT orders.*, nextval(numbers) AS number FROM orders"
    )
    if shop.kind == "mariadb":
        shop.execute("CREATE SEQUENCE numbers")
    shop.order("1", f"{DAY} 10:00:00")
    settings = declare(orders, shop, {"orders": query(sql)})
    with pytest.raises(RetailAssetsError, match=r"(?i)read.only"):
        extract(settings, [DAY])
    assert not list(settings.exports_dir.glob("*"))


def test_what_the_server_says_is_told_without_the_password(
    orders: Settings, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Shop(shop.kind, shop.url.replace("not%20a%20secret", "wr0ng%20secret"))
    for settings, text in (
        (declare(orders, wrong, {"orders": ORDERS}), "password|Access denied"),
        (declare(orders, shop, {"orders": {**ORDERS, "table": "nowhere"}}), "nowhere"),
    ):
        with pytest.raises(RetailAssetsError, match=text) as raised:
            extract(settings, [DAY])
        shown = str(raised.value) + caplog.text + repr(raised.value.__cause__)
        assert "secret" not in shown
        assert len(raised.value.lines) == 1
        with Lake.from_settings(orders).connect(read_only=True) as connection:
            found = connection.execute("SELECT day, problem FROM failed_days").fetchall()
        assert found == [(DAY, str(raised.value))]


def test_a_wrong_declaration_is_a_sentence(orders: Settings, shop: Shop) -> None:
    for change, text in (
        ({"day": "nowhere"}, r"database.orders.day: there is no column 'nowhere'; there are id, "),
        ({"day": "region"}, "region.*not a date or timestamp"),
        ({"columns": {"status": "gone"}}, "database.orders.order_id: there is no column"),
        ({"columns": {"a": "id", "A": "id"}, "order_id": "id"}, "same name"),
    ):
        settings = declare(orders, shop, {"orders": {**ORDERS, **change}})
        with pytest.raises(UsageError, match=text):
            extract(settings, [DAY])


def test_text_of_a_latin1_database_is_utf8(settings, lake, postgres) -> None:  # type: ignore[no-untyped-def]
    shop = postgres_shop(postgres, "LATIN1")
    shop.create()
    shop.order("1", f"{DAY} 10:00:00", region="café")
    declared = declare(settings, shop, {"orders": ORDERS})
    extract(declared, [DAY])
    assert rows_of(declared, DAY)[0][3] == "café"


def test_bytes_that_are_no_text_are_shown_as_bytes(settings, lake, postgres) -> None:  # type: ignore[no-untyped-def]
    shop = postgres_shop(postgres, "SQL_ASCII")
    shop.create()
    shop.order("1", f"{DAY} 10:00:00")
    shop.order("2", f"{DAY} 10:00:00", region="ok")
    shop.execute(r"UPDATE orders SET region = E'caf\xe9' WHERE id = '1'")
    declared = declare(settings, shop, {"orders": ORDERS})
    extract(declared, [DAY])
    assert [row[3] for row in rows_of(declared, DAY)] == [r"\x636166e9", "ok"]


@on_postgres
def test_files_have_the_permissions_of_the_lake(orders: Settings) -> None:
    extract(orders, [DAY])
    assert {oct(Path(each).stat().st_mode & 0o777) for each in orders.exports_dir.iterdir()} == {
        "0o600"
    }


SECOND_LINES = (
    "INSERT INTO orders SELECT id, customer, product, region, state, total,"
    " placed_at + INTERVAL 2 HOUR, updated_at FROM orders"
)


@pytest.mark.parametrize("key", ["PRIMARY KEY", ""], ids=["orders", "lines"])
def test_many_rows_of_mysql_are_read_in_chunks_each_once(
    settings: Settings, lake: Lake, mariadb: int, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "CHUNK_ROWS", 1_000)
    shop = mariadb_shop(mariadb)
    shop.create(key=key)
    # Two hours with more rows than a chunk has, then one of few; and second lines two hours later.
    shop.execute(
        "INSERT INTO orders SELECT seq, 'C1', 'P1', 'North', 'completed', 1,"
        f" '{DAY} 10:00:00' + INTERVAL seq DIV 1100 HOUR, '{DAY} 12:30:00' FROM seq_1_to_2201",
        *([] if key else [SECOND_LINES]),
    )
    declared = declare(settings, shop, {"orders": ORDERS})
    read: list[str] = []
    done = extract(declared, [DAY, NEXT], say=read.append)
    rows = 2_201 if key else 4_402
    assert [file.rows for file in done.orders] == [rows, 0]
    found = [row[0] for row in rows_of(declared, DAY)]
    assert len(set(found)) == 2_201
    assert len(found) == rows
    assert len([text for text in read if text.endswith("rows of orders read")]) >= 4
