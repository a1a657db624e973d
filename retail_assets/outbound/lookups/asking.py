"""Asks for all lookups that no worker asks for: what Dagster does where there is no worker."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.ledgers.workers import alive_workers
from retail_assets.outbound.lookups.client import LookupClient
from retail_assets.outbound.lookups.follow import LookupFollower, waiting_metric, waiting_of

if TYPE_CHECKING:
    import duckdb

    from retail_assets.lake.connection import Lake
    from retail_assets.mapping.lookups import Lookup
    from retail_assets.settings import Settings


@dataclass(frozen=True)
class Asked:
    """What became of a lookup, in words; `failed` if it cannot be asked for as it is declared."""

    said: str
    failed: bool = False


class Asking:
    """The followers of all lookups, which know from one time to the next whom to leave alone."""

    def __init__(self, lake: "Lake", settings: "Settings") -> None:
        self._lake = lake
        self._settings = settings
        self._followers: dict[str, tuple[Lookup, LookupFollower]] = {}

    def close(self) -> None:
        """Close all connections."""
        for _, follower in self._followers.values():
            follower.close()
        self._followers.clear()

    def ask(
        self, connection: "duckdb.DuckDBPyConnection", stop: Callable[[], bool]
    ) -> dict[str, Asked]:
        """Enter new values, and ask about those that are due, unless a worker that is alive does.

        Args:
            connection: a connection that can write, in no transaction.
            stop: whether to ask nothing more; the values are asked about another time.
        """
        workers = {
            metric: found.worker for found in alive_workers(connection) for metric in found.metrics
        }
        found: dict[str, Asked] = {}
        for name, lookup in self._settings.source_mapping.lookups.items():
            worker = workers.get(waiting_metric(name))
            if worker:
                found[name] = Asked(f"the worker {worker} asks")
                continue
            try:
                follower = self._follower(name, lookup)
            except RetailAssetsError as error:
                found[name] = Asked(str(error), failed=True)
                continue
            follower.iterate(connection, stop=stop)
            found[name] = Asked(_describe(connection, follower))
        return found

    def _follower(self, name: str, lookup: "Lookup") -> LookupFollower:
        declared, follower = self._followers.get(name, (None, None))
        if follower is None or declared != lookup:
            if follower is not None:
                follower.close()
                del self._followers[name]
            follower = LookupFollower(self._lake, LookupClient(name, lookup, self._settings))
            self._followers[name] = lookup, follower
        return follower


def _describe(connection: "duckdb.DuckDBPyConnection", follower: LookupFollower) -> str:
    waiting, failing, problem = waiting_of(connection).get(follower.name, (0, 0, None))
    alone = ", and the API is left alone for a while" if follower.breaker.is_open else ""
    why = f", {failing} of them failed ({(problem or '').rstrip('.')})" if failing else ""
    return f"{waiting} values wait{why}{alone}"
