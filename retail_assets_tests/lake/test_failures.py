"""Whose fault an error is: whatever a payload says that an error quotes, it changes nothing."""

from collections.abc import Iterator, Sequence

import duckdb
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.errors import RetailAssetsError
from retail_assets.lake.failures import bisect, is_of_the_data

SIGNS = (
    "No space left on device",
    "database or disk is full",
    "disk I/O error",
    "Input/output error",
    "Read-only file system",
    "Disk quota exceeded",
    "Too many open files",
    "File too large",
    "Cannot allocate memory",
    "Out of Memory Error: failed to pin block of size 256.0 KiB",
    "database is locked",
    "could not connect to server: Connection refused",
    "Connection reset by peer",
    "server closed the connection unexpectedly",
    "timed out",
    "timeout",
    "IO Error: Could not write file",
    "\nError: IO Error: No space left on device",
    "TransactionContext Error: Failed to commit: disk I/O error",
    "arrow_scan: get_next failed(): IOError: [Errno 28]",
    "can't start new thread",
)
"""What a disk, memory, a server or a network say."""

CLAIMS = ("Conversion Error: Could not convert string 'x' to INT32", "Constraint Error: duplicate")
"""What errors over values say."""

OVER_VALUES = (
    "SELECT CAST(? AS INTEGER)",
    "SELECT CAST(? AS DECIMAL(3,1))",
    "SELECT CAST(? AS TIMESTAMPTZ)",
    "SELECT strptime(?, '%Y')",
    "SELECT json_extract(?, '$.a')",
    "INSERT INTO taken SELECT ? FROM range(2)",
)
"""Statements that fail over any text that is no number, date or JSON, and quote it."""


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("LOAD json")
        connection.execute("CREATE TABLE taken (text VARCHAR PRIMARY KEY)")
        yield connection


@given(
    st.sampled_from(OVER_VALUES),
    st.sampled_from(SIGNS),
    st.text("'\"\n:{}( aE", max_size=9),
    st.text("'\"\n:{}( aE", max_size=9),
)
def test_a_payload_that_speaks_of_the_disk_is_blamed_itself(connection, sql, sign, before, after):
    payload = f"{before}{sign}{after}{{"  # no JSON, whatever is around
    with pytest.raises(duckdb.Error) as failed:
        connection.execute(sql, [payload]).fetchall()
    assert sign.strip()[:7] in str(failed.value)
    assert is_of_the_data(failed.value), str(failed.value)
    assert is_of_the_data(ValueError(f"no number: {payload}"))


@given(
    st.sampled_from(
        (
            duckdb.IOException,
            duckdb.HTTPException,
            duckdb.TransactionException,
            duckdb.CatalogException,
            duckdb.ConnectionException,
            duckdb.OutOfMemoryException,
            duckdb.FatalException,
            duckdb.Error,
            OSError,
            TimeoutError,
            MemoryError,
            RetailAssetsError,
            psycopg.OperationalError,
        )
    ),
    st.sampled_from(CLAIMS),
)
def test_what_the_lake_runs_on_is_blamed_though_its_error_quotes_a_payload(error, claim):
    assert not is_of_the_data(error(claim))
    assert not is_of_the_data(error(f'Failed to execute query "INSERT ... {claim}": no answer'))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("full")])
def test_an_error_of_the_disk_or_memory_that_duckdb_wraps_is_none_of_the_data(connection, error):
    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"number": [1]})
        raise error

    schema = pa.schema([("number", pa.int64())])
    rows = pa.RecordBatchReader.from_batches(schema, batches())  # noqa: F841  # DuckDB finds it
    with pytest.raises(duckdb.InvalidInputException) as failed:
        connection.execute("SELECT sum(number) FROM rows").fetchall()
    assert not is_of_the_data(failed.value)


def test_a_payload_that_is_no_unicode_is_blamed_and_a_lack_of_threads_is_not(connection):
    with pytest.raises(RuntimeError) as failed:
        connection.execute("SELECT ?", ["\ud800 can't start new thread"])
    assert is_of_the_data(failed.value)
    assert not is_of_the_data(RuntimeError("can't start new thread"))


@given(st.integers(0, 40), st.data())
def test_a_bisection_finds_exactly_what_fails_alone_and_tries_the_rest_once_in_order(count, data):
    items = range(count)
    poison = data.draw(st.sets(st.sampled_from(items))) if items else set()
    log: list[int] = []
    attempts: list[Sequence[int]] = []

    def attempt(part: Sequence[int]) -> str | None:
        attempts.append(part)
        bad = [item for item in part if item in poison]
        if not bad:
            log.extend(part)
        return f"{bad} failed" if bad else None

    for item, error in bisect(items, attempt):
        assert error == f"[{item}] failed"
        assert item in poison
        log.append(item)
    assert log == list(items)
    assert len(set(attempts)) == len(attempts)
    # The path to each item that fails, and what lies beside it.
    assert len(attempts) <= 1 + 2 * len(poison) * count.bit_length()


def test_items_that_fail_only_together_are_tried_apart_and_none_is_found():
    good: list[Sequence[int]] = []

    def attempt(part: Sequence[int]) -> str | None:
        if len(part) > 3:
            return "too many at once"
        good.append(part)
        return None

    assert list(bisect(range(10), attempt)) == []
    assert [list(part) for part in good] == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
