"""How the platform stands: what is pending, what failed, what is behind, how large the lake is."""

import time
from typing import TYPE_CHECKING, Any

from retail_assets import tables
from retail_assets.ingest.event_files import pending_event_files
from retail_assets.ingest.pending import pending_exports
from retail_assets.lake.connection import Lake, NoLakeError, current_snapshot, without_password
from retail_assets.settings import Settings
from retail_assets.stale import stale_days

if TYPE_CHECKING:
    from datetime import date


def collect_status(settings: Settings) -> dict[str, Any]:
    """Return the figures by name; sizes in bytes, ages in seconds.

    Raises:
        RetailAssetsError: if the catalog cannot be opened.
    """
    pending = pending_exports(settings)
    now = time.time_ns()
    oldest = min((file.modified_ns for file in pending.values()), default=now)
    events = pending_event_files(settings)
    oldest_event = min((file.modified_ns for file in events.files.values()), default=now)
    figures: dict[str, Any] = {
        "data folder": str(settings.data_dir),
        "lake catalog": without_password(settings.catalog),
        "pending exports": len(pending),
        "pending bytes": sum(file.size_bytes for file in pending.values()),
        "oldest pending, seconds": max(0, (now - oldest) // 1_000_000_000),
        "pending event files": len(events.files),
        "pending event bytes": sum(file.size_bytes for file in events.files.values()),
        "oldest pending event file, seconds": max(0, (now - oldest_event) // 1_000_000_000),
        "event files left alone": len(events.left_alone),
        **{f"left alone: {path}": reason for path, reason in events.left_alone.items()},
    }
    try:
        return figures | _lake_figures(settings)
    except NoLakeError:
        return figures | {"lake": "none yet"}


def _lake_figures(settings: Settings) -> dict[str, Any]:
    stale = stale_days(settings)
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
        lines, dead = connection.execute(
            "SELECT coalesce(sum(lines), 0), coalesce(sum(dead_lettered), 0) FROM event_files"
            " WHERE retracted_at IS NULL"
        ).fetchone() or (0, 0)
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
        "days failed": len(failed),
        **{f"failed {day}": problem for day, problem in sorted(failed.items())},
        "days published": days,
        "last day published": last_day,
        "export rows": int(rows_in),
        "rejected rows": int(rejected),
        "event lines": int(lines),
        "dead-letter rate": round(int(dead) / int(lines), 6) if lines else 0.0,
        "lake files": int(files),
        "lake bytes": int(size),
        "last snapshot": snapshot,
        "last snapshot at": committed,
    }
