"""The ledger of marts that could not be published, in the lake: for `status` and notifications."""

import logging
from contextlib import suppress

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.lake.connection import Lake
from retail_assets.secrets import mask

logger = logging.getLogger(__name__)

SAME_PROBLEM = "INTERVAL 10 MINUTE"
"""The same problem is entered again after this long: each entry is a commit."""


def note(lake: Lake, connection: duckdb.DuckDBPyConnection, mart: str, problem: str | None) -> None:
    """Enter the problem of a mart, or with None that it has none; never fails.

    Args:
        lake: the lake whose ledger it is.
        connection: a connection to it, which may be read-only: to look whether there is news.
        mart: the name of the mart.
        problem: a sentence.
    """
    text = None if problem is None else mask(problem)
    try:
        if not _differs(connection, mart, text):
            return
        with lake.connect() as writing, lake.transaction(writing, f"problem of {mart}"):
            _enter(writing, mart, text)
    except (duckdb.Error, OSError, RetailAssetsError) as error:
        logger.warning("The outcome of %s could not be entered in the lake: %s", mart, error)


def problems(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The problem of each mart that could not be published, or not whole."""
    with suppress(duckdb.CatalogException):  # a lake of an earlier release, opened to read
        return dict(
            connection.execute("SELECT mart, problem FROM lake.failed_marts ORDER BY 1").fetchall()
        )
    return {}


def _differs(connection: duckdb.DuckDBPyConnection, mart: str, problem: str | None) -> bool:
    try:
        found = connection.execute(
            f"SELECT problem, failed_at < now() - {SAME_PROBLEM} FROM lake.failed_marts"
            " WHERE mart = ?",
            [mart],
        ).fetchone()
    except duckdb.CatalogException:
        return True
    return (
        found is not None if problem is None else found is None or found[0] != problem or found[1]
    )


def _enter(connection: duckdb.DuckDBPyConnection, mart: str, problem: str | None) -> None:
    since = connection.execute(
        "SELECT failed_since FROM lake.failed_marts WHERE mart = ?", [mart]
    ).fetchone()
    connection.execute("DELETE FROM lake.failed_marts WHERE mart = ?", [mart])
    if problem is not None:
        connection.execute(
            "INSERT INTO lake.failed_marts BY NAME SELECT ? AS mart, ? AS problem,"
            " coalesce(?::TIMESTAMPTZ, now()) AS failed_since, now() AS failed_at",
            [mart, problem, None if since is None else since[0]],
        )
