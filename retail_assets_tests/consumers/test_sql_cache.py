"""The rules of consumers are compiled to SQL once, not in each round."""

from collections.abc import Iterator
from typing import Any

import duckdb
import narwhals as nw
import pytest

from retail_assets.consumers.registry import all_consumers
from retail_assets.consumers.sql_cache import CompiledSql, compile_once
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings


class OnlyStatements:
    """A connection by which statements can be executed, but no frames be built."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        assert name not in {"sql", "table", "query", "view"}, "a rule is put into SQL again"
        return getattr(self._connection, name)


@pytest.fixture
def connection(lake: Lake) -> Iterator[duckdb.DuckDBPyConnection]:
    with lake.connect() as connection:
        yield connection


def select(number: int) -> nw.LazyFrame:
    return nw.from_native(duckdb.sql(f"SELECT {number} AS n"))


def test_a_text_is_made_once_for_each_name() -> None:
    texts = CompiledSql()
    one, two = texts.of("one", lambda: select(1)), texts.of("two", lambda: select(2))
    assert (duckdb.sql(one).fetchall(), duckdb.sql(two).fetchall()) == ([(1,)], [(2,)])
    assert texts.of("one", lambda: select(3)) == one


def test_a_rule_of_all_keys_is_another_than_that_of_some(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    asked: list[str | None] = []

    def compute(_: duckdb.DuckDBPyConnection, keys: str | None) -> dict[str, Any]:
        asked.append(keys)
        return {"frame": select(len(asked)), "text": f"SELECT {len(asked)}"}

    rule = compile_once(compute)
    some = [rule(connection, "some") for _ in range(2)]
    every = [rule(connection, None) for _ in range(2)]
    assert asked == ["some", None]
    assert some[0] == some[1] != every[0] == every[1]
    assert duckdb.sql(str(every[0]["frame"])).fetchall() == [(2,)]


@pytest.mark.parametrize("name", [consumer.name for consumer in all_consumers(Settings())])
@pytest.mark.parametrize("some", [True, False])
def test_only_the_first_round_of_a_consumer_puts_its_rules_into_sql(
    name: str, some: bool, connection: duckdb.DuckDBPyConnection, settings: Settings
) -> None:
    [consumer] = [each for each in all_consumers(settings) if each.name == name]
    key = consumer.key
    keys = "temp.main.some_keys" if some else None
    connection.execute(
        f"CREATE TEMP TABLE some_keys AS SELECT {key} FROM lake.{consumer.sources[0].name}"
    )
    first = consumer.compute(connection, keys)
    again = consumer.compute(OnlyStatements(connection), keys)  # type: ignore[arg-type]
    assert again == first
    assert all(isinstance(rows, str) for rows in again.values())
