"""Sessions of ingest: which connection an attempt has that follows others."""

import duckdb
import pytest

from retail_assets.ingest.events.session import FreshSessions
from retail_assets.lake.connection import Lake


def test_attempts_share_a_connection_until_one_fails(lake: Lake) -> None:
    with FreshSessions(lake, ()) as sessions:
        with sessions.attempt() as first:
            pass
        with sessions.attempt() as second:
            assert second is first
        with pytest.raises(ValueError, match="a fault"), sessions.attempt():
            raise ValueError("a fault")
        with pytest.raises(duckdb.ConnectionException):
            first.connection.execute("SELECT 1")
        with sessions.attempt() as third:
            assert third is not first
    with pytest.raises(duckdb.ConnectionException):
        third.connection.execute("SELECT 1")
