"""The state of the platform: pending, failed and stale data, and the size of the lake."""

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any

from retail_assets import tables
from retail_assets.consumers.framework import lag
from retail_assets.consumers.registry import all_consumers
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.ingest.events import mapping_ledger
from retail_assets.ingest.exports import currencies, rejects
from retail_assets.ingest.exports.other_files import other_exports
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.stale_days import (
    Waiting,
    advice,
    days_without_export,
    stale_days,
    waiting_orders,
)
from retail_assets.ingest.ledgers.workers import FILE_GAUGES, LAG, heartbeats, state
from retail_assets.lake.checksums import last_verification
from retail_assets.lake.connection import Lake, NoLakeError, current_snapshot
from retail_assets.outbound.lookups.follow import waiting_of
from retail_assets.outbound.marts.status import mart_status
from retail_assets.secrets import mask
from retail_assets.settings import Settings
from retail_assets.transforms.events import UNKNOWN_CURRENCY

if TYPE_CHECKING:
    from datetime import date

    import duckdb


SHOWN_FILES = 20

RETRACTED = "their earlier events taken back"
QUARANTINED = "keys set aside by consumers"
"""Names that scripts may read from JSON and CSV."""

LABELS = {
    RETRACTED: "their earlier events retracted",
    QUARANTINED: "keys quarantined by consumers",
}
"""What people read in place of them."""


def collect_status(settings: Settings) -> dict[str, Any]:
    """Return the state by name; sizes in bytes, ages in seconds.

    Raises:
        RetailAssetsError: if the catalog cannot be opened.
    """
    pending = pending_exports(settings)
    now = time.time_ns()
    oldest = min((file.modified_ns for file in pending.values()), default=now)
    others = other_exports(settings)
    events = pending_event_files(settings)
    oldest_event = min((file.modified_ns for file in events.files.values()), default=now)
    found: dict[str, Any] = {
        "data folder": str(settings.data_dir),
        "lake catalog": mask(settings.catalog),
        "pending exports": len(pending),
        "pending bytes": sum(file.size_bytes for file in pending.values()),
        "oldest pending, seconds": max(0, (now - oldest) // 1_000_000_000),
        "exports not taken": len(others),
        **{f"not taken: {name}": others[name] for name in islice(others, SHOWN_FILES)},
        "pending event files": len(events.files),
        "pending event bytes": sum(file.size_bytes for file in events.files.values()),
        "oldest pending event file, seconds": max(0, (now - oldest_event) // 1_000_000_000),
        **({} if settings.events_listed else {"event files": "not listed: RETAIL_EVENTS_LISTED"}),
        "event files not read": len(events.not_read),
        **({"not read, first": events.names_not_read()} if events.not_read else {}),
        "event files left alone": len(events.left_alone),
        **{f"left alone: {path}": reason for path, reason in events.left_alone.items()},
    }
    try:
        return found | _lake_state(settings) | _verified(settings)
    except NoLakeError:
        return found | {"lake": "none yet"}


def _verified(settings: Settings) -> dict[str, Any]:
    """The last verification of the lake's files, and its outcome."""
    try:
        last = last_verification(Lake.from_settings(settings))
    except RetailAssetsError as error:
        return {"last verified": f"unknown: {error}"}
    if last is None:
        return {"last verified": "never: run `retail-assets verify`"}
    return {
        "last verified": last.finished_at,
        "last verified, checksums": last.compared if last.deep else "not compared",
        "files damaged": last.damaged,
        **({"first damage": last.found} if last.found else {}),
    }


def _extracted(settings: Settings, connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """The newest export that came from the shop's database, where one is declared."""
    if settings.source_mapping.database is None:
        return {}
    day, when = connection.execute(
        "SELECT max(export_date), max(extracted_at) FROM extracted_files"
    ).fetchone() or (None, None)
    return {
        "last extracted day": day or "none: run `retail-assets extract`",
        "last change of an extracted file": when,
    }


def _lake_state(settings: Settings) -> dict[str, Any]:
    stale = stale_days(settings)
    mappings = settings.source_mapping.events
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        failed: dict[date, str] = dict(
            connection.execute(
                "SELECT day, any_value(problem) FROM failed_days GROUP BY 1"
            ).fetchall()
        )
        last_day, days = connection.execute(
            "SELECT max(day), count(*) FROM published_days WHERE table_name = ?",
            [tables.DAILY_REVENUE.name],
        ).fetchone() or (None, 0)
        rows_in, rejected = connection.execute(
            "SELECT coalesce(sum(rows_in), 0), coalesce(sum(rejected_rows), 0) FROM export_files"
        ).fetchone() or (0, 0)
        waiting = waiting_orders(connection, settings)
        without_export = days_without_export(connection)
        too_late = rejects.too_late(connection, settings.late_days)
        without_rate = _without_rate(connection)
        rejected_days = rejects.days_above(connection, settings.max_rejected_share)
        events = _event_state(connection)
        stream = _stream_state(settings, connection) | mart_status(settings, connection)
        extracted = _extracted(settings, connection)
        other_mapping = mapping_ledger.outdated(connection, mappings)
        files, size = connection.execute(
            "SELECT coalesce(sum(file_count), 0), coalesce(sum(file_size_bytes), 0)"
            " FROM ducklake_table_info('lake')"
        ).fetchone() or (0, 0)
        snapshot = current_snapshot(connection)
        (committed,) = connection.execute(
            "SELECT snapshot_time FROM lake.snapshots() WHERE snapshot_id = ?", [snapshot]
        ).fetchone() or (None,)
    return {
        "days behind": len(stale),
        **extracted,
        "days failed": len(failed),
        **{f"failed {day}": problem for day, problem in sorted(failed.items())},
        **_orders_in_no_revenue(waiting, too_late),
        **without_rate,
        "days above the rejected share": len(rejected_days),
        **{f"rejected {day.day}": day.summary() for day in rejected_days[-rejects.SHOWN_DAYS :]},
        **({"days without an export": without_export} if without_export else {}),
        "days published": days,
        "last day published": last_day,
        "export rows": int(rows_in),
        "rejected rows": int(rejected),
        **events,
        **({"validated with another mapping": str(other_mapping)} if other_mapping else {}),
        "lake files": int(files),
        "lake bytes": int(size),
        "last snapshot": snapshot,
        "last snapshot at": committed,
        **stream,
    }


def _without_rate(connection: "duckdb.DuckDBPyConnection") -> dict[str, str]:
    """Rows of exports and events whose currency has no rate, and what to do about them."""
    rows = currencies.without_rate(connection)
    (events,) = connection.execute(
        "SELECT sum(dead_letters)::BIGINT FROM dead_letter_counts WHERE reason = ?",
        [UNKNOWN_CURRENCY],
    ).fetchone() or (None,)
    found = {"without a rate": rows} if rows else {}
    if events:
        found["events without a rate"] = (
            f"{events:,}: `retail-assets dead-letters list --reason {UNKNOWN_CURRENCY}` lists them;"
            f" add their rates to {tables.CURRENCY_RATES.name}.csv, and they are validated again by"
            " themselves."
        )
    return found


def _event_state(connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """The lines of all events, and what became of the events of files that changed."""
    lines, dead = connection.execute(
        "SELECT coalesce(sum(lines), 0), coalesce(sum(dead_lettered), 0) FROM ("
        "SELECT lines, dead_lettered FROM event_files WHERE retracted_at IS NULL"
        " UNION ALL SELECT lines, dead_lettered FROM stream_offsets WHERE kind = 'source')"
    ).fetchone() or (0, 0)
    changed, stay, retracted = connection.execute(
        "SELECT count(DISTINCT path) FILTER (superseded_at IS NOT NULL),"
        " coalesce(sum(accepted) FILTER (retracted_at IS NULL), 0),"
        " coalesce(sum(accepted) FILTER (retracted_at IS NOT NULL), 0)"
        " FROM event_files WHERE superseded_at IS NOT NULL OR retracted_at IS NOT NULL"
    ).fetchone() or (0, 0, 0)
    return {
        "event lines": int(lines),
        "dead-letter rate": round(int(dead) / int(lines), 6) if lines else 0.0,
        "event files that changed": changed,
        "their earlier events that stay": int(stay),
        RETRACTED: int(retracted),
    }


def _orders_in_no_revenue(waiting: Sequence[Waiting], too_late: str | None) -> dict[str, Any]:
    """Accepted orders that wait, by day and reason, and what to do about them and late ones."""
    return {
        "orders waiting": sum(each.orders for each in waiting),
        "value waiting, GBP": sum(each.value_gbp for each in waiting),
        **{
            f"waiting {w.day}": f"{w.orders:,} orders, {w.value_gbp:,.2f} GBP: {w.reason}"
            for w in waiting[-rejects.SHOWN_DAYS :]
        },
        **{f"to do {number}": text for number, text in enumerate(advice(waiting), start=1)},
        **({"too late": too_late} if too_late else {}),
    }


def _stream_state(settings: Settings, connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """The newest worker's metrics (while it is alive), and the lag of consumers.

    Metrics that the caller measures itself are left out: the worker's may be old.
    """
    found: dict[str, Any] = {"stream worker": "never started"}
    consumers = {consumer.name: consumer for consumer in all_consumers(settings)}
    for worker in heartbeats(connection, latest=1):
        now = datetime.now(timezone.utc)
        found = {
            "stream worker": f"{worker.worker} on {worker.host}: {state(worker, now)}",
            "last heartbeat, seconds": round(worker.silent_seconds(now)),
            **({"last heartbeat": worker.last_seen(now)} if worker.is_ahead(now) else {}),
            **({"worker's problem": worker.problem} if worker.problem else {}),
            **{
                f"worker: {name.replace('_', ' ')}": value
                for name, value in worker.metrics.items()
                if worker.is_alive(now)
                and name not in {"sources", *FILE_GAUGES}
                and value is not None
                and name.removesuffix(LAG) not in consumers
            },
        }
    for name, consumer in consumers.items():
        behind = lag(connection, consumer)
        found[f"{name} behind, commits"] = behind.snapshots
        found[f"{name} behind, seconds"] = round(behind.seconds, 1)
    for name, (waiting, failing, problem) in waiting_of(connection).items():
        found[f"lookup {name}, values waiting"] = waiting
        if failing:
            found[f"lookup {name}, failing"] = failing
            found[f"lookup {name}, problem"] = problem
    (keys,) = connection.execute("SELECT count(*) FROM consumer_dead_letters").fetchone() or (0,)
    return found | {QUARANTINED: keys}
