"""The section `database` of a mapping file: what it may say, and what is wrong in a sentence."""

from pathlib import Path

import pytest

from retail_assets.errors import UsageError
from retail_assets.mapping import load

ORDERS = "database:\n  orders: {table: orders, day: placed_at%s}\n"


def declared(tmp_path: Path, text: str):
    path = tmp_path / "mapping.yaml"
    path.write_text(text)
    return load(path).database


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ("orders", ("orders",)),
        ("shop.orders", ("shop", "orders")),
        ('shop."new.orders"', ("shop", "new.orders")),
        ('"say ""hi"""', ('say "hi"',)),
    ],
)
def test_a_table_may_have_a_schema_and_an_odd_name(tmp_path, table, parts):
    found = declared(tmp_path, f"database:\n  orders: {{table: '{table}', day: d}}\n")
    assert found.orders.table_parts == parts


def test_a_query_ends_without_a_semicolon(tmp_path):
    text = "database:\n  orders:\n    day: d\n    query: |\n      -- ours\n      SELECT 1 AS d;\n"
    assert declared(tmp_path, text).orders.query == "-- ours\nSELECT 1 AS d"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (ORDERS % ", query: SELECT 1", "it needs either `table` or `query`"),
        ("database:\n  orders: {day: d}\n", "it needs either `table` or `query`"),
        ("database:\n  orders: {table: a}\n", r"database\.orders\.day is missing"),
        ("database:\n  orders: {query: DELETE FROM a, day: d}\n", "begins with SELECT or WITH"),
        ("database:\n  orders: {table: a.b.c, day: d}\n", "is no table"),
        (ORDERS % ", timezone: Moon", "not a time zone"),
        (ORDERS % "" + "  nightly: 2 am\n", "'2 am' is no time of day"),
        (ORDERS % "" + "  url: secret\n", r"database\.url: there is no such key"),
        (ORDERS % "" + "  nightly_days: 0\n", "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_meant_is_said_in_a_sentence(tmp_path, text, sentence):
    with pytest.raises(UsageError, match=sentence):
        declared(tmp_path, text)


def test_extracted_files_are_read_as_they_are_written(tmp_path):
    fields = "order_id customer_id product_id region status order_value_gbp order_timestamp"
    exports = f"exports:\n  fields: {{{', '.join(f'{name}: {name}' for name in fields.split())}}}\n"
    assert declared(tmp_path, ORDERS % "" + exports).orders.day == "placed_at"
    with pytest.raises(UsageError, match=r"`exports\.delimiter` is not for files that `database`"):
        declared(tmp_path, ORDERS % "" + exports + "  delimiter: ;\n")
