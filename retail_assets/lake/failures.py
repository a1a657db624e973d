"""Why a transaction failed: because of the data in it, or of what it runs on.

Failing data fails with every attempt. Any other error says nothing about the data, which has to be
tried again. The type of the error decides. Its text may quote a payload, so only the beginning is
read, which is the library's own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import duckdb

T = TypeVar("T")
E = TypeVar("E")

_OVER_VALUES = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InternalError,
    duckdb.InvalidInputException,
    duckdb.NotSupportedError,
    # Python's own; the bindings of DuckDB raise RuntimeError for a text that is no Unicode.
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors over values. All others are about files, memory, the network or the catalog.

So are the errors of psycopg and sqlite3: no value of an event goes through these."""

_WRAPPED = re.compile(
    r"Invalid Input Error: (?:arrow_scan: get_next failed\(\): (?:IOError|Out of memory)"
    r"|Attempting to execute an unsuccessful or closed pending query result\s+Error: "
    r"(?:IO|HTTP|Out of Memory|TransactionContext|Catalog|Connection|Permission|FATAL) Error: )"
)
"""The beginning of errors that DuckDB wraps into one over values."""

_NO_THREAD = "can't start new thread"


def is_of_the_data(error: BaseException) -> bool:
    """Whether the rows of a transaction may be the cause of its error; no, if in doubt."""
    return (
        isinstance(error, _OVER_VALUES)
        # Some errors of the operating system are a ValueError as well.
        and not isinstance(error, OSError)
        and not _WRAPPED.match(str(error))
        and str(error) != _NO_THREAD
    )


def is_of_the_size(error: BaseException) -> bool:
    """Whether less data at once might succeed."""
    return isinstance(error, (duckdb.OutOfMemoryException, MemoryError))


def bisect(items: Sequence[T], attempt: Callable[[Sequence[T]], E | None]) -> Iterator[tuple[T, E]]:
    """Find the items that fail alone: try all together, then the halves of whatever fails.

    Parts are tried in the order of the items, and none twice. Each item that does not fail alone
    is in exactly one part that succeeds, so `attempt` may commit the part.

    Args:
        items: what failed, or may fail, together.
        attempt: tries a part of them, a slice; returns the error if they fail, None if not.

    Yields:
        Each item that fails alone, with its error, before the items after it are tried.
    """
    parts = [items] if items else []
    while parts:
        part = parts.pop()
        error = attempt(part)
        if error is None:
            continue
        if len(part) == 1:
            yield part[0], error
        else:
            middle = len(part) // 2
            parts += [part[middle:], part[:middle]]
