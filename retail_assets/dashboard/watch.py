"""Reads the lake for all pages at once, over one connection that is opened again when it must be.

Each part is read when it is due: after a commit or when a minute has passed, and health and stock
no more often than each some seconds. So a lake that nobody writes to costs a query a second.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import duckdb

from retail_assets.dashboard.reading.events import EventsOfDay, read_events
from retail_assets.dashboard.reading.health import Health, read_health
from retail_assets.dashboard.reading.state import (
    Condition,
    LakeState,
    LakeStateError,
    naming_state,
    state_of,
)
from retail_assets.dashboard.reading.stock import LowStock, read_low_stock
from retail_assets.dashboard.reading.today import Past, Revenue, read_revenue
from retail_assets.explain import explain
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.settings import Settings

logger = logging.getLogger(__name__)

PAST_SECONDS = 300
"""How long the earlier weeks are kept: they are restated now and then."""

STOCK_SECONDS = 60
HEALTH_SECONDS = 15


def utc_now() -> datetime:
    """The time, with a time zone."""
    return datetime.now(timezone.utc)


UNREAD = LakeState(Condition.reading, "The board is reading the lake.")


@dataclass(frozen=True)
class View:
    """All that the live pages show. Equal versions are equal views.

    Where the lake cannot be read, `state` says so and the other parts are as of `read_at`; before
    the first read they are None.
    """

    version: int = 0
    read_at: datetime | None = None
    state: LakeState = UNREAD
    revenue: Revenue | None = None
    events: EventsOfDay | None = None
    low_stock: Sequence[LowStock] = ()
    health: Health | None = None


class Watch:
    """The lake as the live pages see it; one thread at a time may read.

    Args:
        settings: which lake, and the business time zone.
        now: the time of day, with a time zone.
        monotonic: seconds that only grow, for what is due.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.view = View()
        self._lake = Lake.from_settings(settings)
        self._now = now
        self._monotonic = monotonic
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._catalog: tuple[int, int] | None = None
        # The time at which each part is due again; parts that are not in it are due.
        self._due: dict[str, float] = {}
        # The snapshot and the minute as of which revenue, and health, were read.
        self._seen: tuple[int, datetime] | None = None
        self._healthy: tuple[int, datetime] | None = None
        self._past: Past | None = None

    def read(self) -> View:
        """Read what is due; never raises, because the pages have to say what is wrong."""
        try:
            with naming_state():
                self._read()
        except LakeStateError as error:
            self._failed(error.state)
        except Exception as error:
            logger.exception("The board cannot read the lake")
            self._failed(LakeState(Condition.unavailable, " ".join(explain(error))))
        return self.view

    def close(self) -> None:
        """Close the connection; the next read opens another one and reads everything."""
        connection, self._connection = self._connection, None
        self._due.clear()
        self._seen = self._healthy = self._past = None
        if connection is not None:
            connection.close()

    def _failed(self, state: LakeState) -> None:
        self.close()
        if state != self.view.state:
            self._show(state=state)

    def _show(self, **parts: object) -> None:
        self.view = replace(self.view, version=self.view.version + 1, **parts)  # type: ignore[arg-type]

    def _read(self) -> None:
        connection = self._connected()
        now = self._now()
        with SnapshotRead(connection):
            state = state_of(connection)
            if not state.is_readable:
                if state != self.view.state:
                    self._show(state=state, revenue=None, events=None, low_stock=(), health=None)
                return
            seen = current_snapshot(connection), now.replace(second=0, microsecond=0)
            parts: dict[str, object] = {} if state == self.view.state else {"state": state}
            if seen != self._seen:
                if self._is_due("past", PAST_SECONDS):
                    self._past = None
                revenue = read_revenue(connection, self.settings, now, self._past)
                self._past = revenue.past
                parts["revenue"] = revenue
                parts["events"] = read_events(connection, revenue.day, now)
                if self._is_due("stock", STOCK_SECONDS):
                    parts["low_stock"] = read_low_stock(connection, revenue.day)
            if seen != self._healthy and self._is_due("health", HEALTH_SECONDS):
                parts["health"] = read_health(connection, self._lake, self.settings, now)
                self._healthy = seen
        self._seen = seen
        if parts:
            self._show(read_at=now, **parts)

    def _connected(self) -> duckdb.DuckDBPyConnection:
        """The connection to the lake, a new one where the catalog is another file than before."""
        catalog = self._catalog_file()
        if self._connection is not None and catalog != self._catalog:
            self.close()
        if self._connection is None:
            self._connection = self._lake.open(read_only=True)
            self._catalog = catalog
        return self._connection

    def _catalog_file(self) -> tuple[int, int] | None:
        if self._lake.on_postgres:
            return None
        try:
            found = Path(self._lake.catalog).stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _is_due(self, part: str, seconds: float) -> bool:
        now = self._monotonic()
        if now < self._due.get(part, now):
            return False
        self._due[part] = now + seconds
        return True
