"""Whose fault a failed transaction is: that of the data in it, or of what it runs on.

Data at fault fails again however often it is tried; with anything else nothing is known of the
data, which has to be tried again.
"""

import duckdb

from retail_assets.errors import RetailAssetsError

_DATAS_OWN = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InternalError,
    duckdb.InvalidInputException,
    duckdb.NotSupportedError,
)
"""What DuckDB raises over values. All else is about files, memory, the network or the catalog."""

_PYTHONS_OWN = (OSError, MemoryError, RetailAssetsError, duckdb.Error)

_SIGNS = (
    "no space left",
    "disk is full",
    "disk i/o error",
    "input/output error",
    "i/o error",
    "read-only file system",
    "quota exceeded",
    "too many open files",
    "file too large",
    "cannot allocate memory",
    "out of memory",
    "database is locked",
    "could not connect",
    "connection refused",
    "connection reset",
    "server closed the connection",
    "timed out",
    "timeout",
)
"""What such errors say where DuckDB or an extension wraps them into one of its own, in any case."""


def is_of_the_data(error: BaseException) -> bool:
    """Whether an error of a transaction may be due to its rows; of any doubt the answer is no."""
    if isinstance(error, duckdb.Error):
        said = str(error).lower()
        return isinstance(error, _DATAS_OWN) and not any(sign in said for sign in _SIGNS)
    return isinstance(error, Exception) and not isinstance(error, _PYTHONS_OWN)


def is_of_the_size(error: BaseException) -> bool:
    """Whether less data at once might go through."""
    return isinstance(error, (duckdb.OutOfMemoryException, MemoryError))
