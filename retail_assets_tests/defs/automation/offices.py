"""A service that is told, and what it was told."""

import json
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from typing import Any

import duckdb

from retail_assets import tables
from retail_assets.lake import day_ledger as days
from retail_assets.lake.connection import Lake
from retail_assets.outbound.notifications.outbox import collect
from retail_assets.outbound.notifications.sending import Sent, send
from retail_assets.settings import Settings

NOW = datetime(2026, 10, 14, 12, 0, tzinfo=timezone.utc)
DAY = date(2026, 10, 12)
MINUTE = timedelta(minutes=1)


@dataclass
class Office:
    """A lake, and who is told of what happens there."""

    settings: Settings
    lake: Lake
    connection: duckdb.DuckDBPyConnection
    now: datetime = NOW

    def collect(self) -> int:
        return collect(self.lake, self.connection, self.settings, self.now)

    def send(self) -> Sent:
        return send(self.lake, self.connection, self.settings, self.now)

    def tell(self) -> Sent:
        """Look and send, once."""
        self.collect()
        return self.send()

    def later(self, time: timedelta = MINUTE) -> None:
        self.now += time + timedelta(seconds=1)

    def change(self, sql: str, *parameters: Any) -> None:
        with self.lake.transaction(self.connection, "a test"):
            self.connection.execute(sql, parameters)

    def fail(self, *failed: date, problem: str = "It broke.") -> None:
        with self.lake.transaction(self.connection, "a test"):
            days.mark_failed(self.connection, tables.DAILY_REVENUE, dict.fromkeys(failed, problem))

    def recover(self, *recovered: date) -> None:
        with self.lake.transaction(self.connection, "a test"):
            days.forget_failures(self.connection, tables.DAILY_REVENUE, list(recovered))

    def publish(self, *published: date) -> None:
        with self.lake.transaction(self.connection, "a test"):
            for table in (tables.RAW_ORDERS, tables.DAILY_REVENUE):
                days.mark_published(self.connection, table, dict.fromkeys(published, 1), {})

    def publish_late_orders(self, *published: date) -> None:
        """Publish days that have no export of their own."""
        with self.lake.transaction(self.connection, "a test"):
            days.mark_published(
                self.connection, tables.DAILY_REVENUE, dict.fromkeys(published, 1), {}
            )

    def alert(self, *orders: str, happened: datetime | None = NOW) -> None:
        """Fraud alerts about orders of a customer whose name must not go anywhere."""
        self.change(
            "INSERT INTO lake.fraud_alerts BY NAME SELECT unnest(?::VARCHAR[]) AS order_id,"
            " 'E-' || order_id AS event_id, 'CUSTOMER-7' AS customer_id, 'North' AS region,"
            " ?::TIMESTAMPTZ AS event_timestamp, DATE '2026-10-14' AS order_date,"
            " DATE '2026-10-14' AS received_date, 900 AS order_value_gbp,"
            " 'velocity,region' AS reasons, 0.875 AS rule_score, 0.875 AS score,"
            " 'CUSTOMER-7 ordered five times' AS explanation",
            *(list(orders), happened),
        )

    def worker(
        self,
        name: str,
        heartbeat: datetime,
        state: str = "running",
        sources: str = "files",
        **figures: float,
    ) -> None:
        self.change("DELETE FROM lake.stream_workers WHERE worker = ?", name)
        self.change(
            "INSERT INTO lake.stream_workers BY NAME SELECT ? AS worker, 'shop' AS host,"
            " 1 AS process_id, ? AS sources, ? AS state, ? AS figures,"
            " ?::TIMESTAMPTZ AS started_at, ?::TIMESTAMPTZ AS heartbeat_at",
            *(name, sources, state, json.dumps(figures), heartbeat, heartbeat),
        )

    def rows(self, columns: str, table: str = "notifications") -> list[tuple[Any, ...]]:
        return self.connection.execute(
            f"SELECT {columns} FROM lake.{table} ORDER BY ALL"
        ).fetchall()


def with_settings(office: Office, **changed: Any) -> Office:
    return Office(
        office.settings.model_copy(update=changed), office.lake, office.connection, office.now
    )
