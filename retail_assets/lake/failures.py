"""Whose fault a failed transaction is: that of the data in it, or of what it runs on.

Data at fault fails again however often it is tried; with anything else nothing is known of the
data, which has to be tried again. The type of the error decides. Its text may quote a payload, so
only how it begins is looked at, which is the library's own.
"""

import re

import duckdb

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
"""How errors begin that DuckDB wraps into one over values."""

_NO_THREAD = "can't start new thread"


def is_of_the_data(error: BaseException) -> bool:
    """Whether an error of a transaction may be due to its rows; of any doubt the answer is no."""
    return (
        isinstance(error, _OVER_VALUES)
        # Some errors of the operating system are a ValueError as well.
        and not isinstance(error, OSError)
        and not _WRAPPED.match(str(error))
        and str(error) != _NO_THREAD
    )


def is_of_the_size(error: BaseException) -> bool:
    """Whether less data at once might go through."""
    return isinstance(error, (duckdb.OutOfMemoryException, MemoryError))
