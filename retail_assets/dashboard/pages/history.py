"""The page Then and now: a slider over the commits that changed revenue, and what changed since."""

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

import duckdb
from fastapi import Request
from nicegui import ui

from retail_assets.dashboard.board import Board
from retail_assets.dashboard.pages.frame import failure, frame, page
from retail_assets.dashboard.reading.history import (
    REASONS,
    Difference,
    Moment,
    moment_at,
    read_difference,
    read_moments,
)
from retail_assets.dashboard.reading.period import day_of
from retail_assets.dashboard.render import day
from retail_assets.errors import RetailAssetsError, UsageError


def build(board: Board) -> None:
    """Add the page."""

    @page("/history", "Then and now")
    async def history(request: Request) -> None:
        query = request.query_params

        def read(
            connection: duckdb.DuckDBPyConnection,
        ) -> tuple[list[Moment], Moment | None, Difference | None]:
            zone = board.settings.timezone
            moments = read_moments(connection, zone)
            chosen = _chosen(moments, query.get("at"), query.get("time"), zone)
            found = read_difference(connection, chosen, zone) if chosen else None
            return moments, chosen, found

        try:
            moments, chosen, found = await board.readers.read(read)
        except RetailAssetsError as error:
            with frame(board, "/history"):
                failure(board, "Then and now", error)
            return
        with frame(board, "/history"):
            _show(board, moments, chosen, found)


def _chosen(
    moments: Sequence[Moment], at: str | None, time: str | None, zone: str
) -> Moment | None:
    """The moment of an address: a snapshot, a time, or the last one before the newest day.

    Raises:
        UsageError: if there is no such moment.
    """
    if not moments:
        return None
    if at:
        found = next((each for each in moments if str(each.snapshot) == at), None)
        if found is None:
            raise UsageError(
                f"Snapshot {at} did not change revenue, or is not kept any more: choose another"
                " one in Then and now."
            )
        return found
    if time:
        try:
            when = datetime.fromisoformat(time)
            day_of(time[:10])
        except ValueError as error:
            raise UsageError(f"{time!r} is no time such as 2026-11-01T08:00.") from error
        when = when if when.tzinfo else when.replace(tzinfo=ZoneInfo(zone))
        # Before the first one there was nothing to compare with.
        return moment_at(moments, when) or moments[0]
    midnight = moments[-1].at.replace(hour=0, minute=0, second=0, microsecond=0)
    return moment_at(moments, midnight) or moments[0]


def _show(
    board: Board, moments: Sequence[Moment], chosen: Moment | None, found: Difference | None
) -> None:
    labels = [
        {
            "snapshot": each.snapshot,
            "label": f"{day(each.at.date())} {each.at:%H:%M:%S} ({each.message or 'no message'})",
        }
        for each in moments
    ]
    ui.html(
        board.render.macro(
            "history",
            "slider",
            {
                "moments": moments,
                "chosen": None if chosen is None else list(moments).index(chosen),
                "labels": labels,
            },
        ),
        sanitize=False,
    )
    if found is None:
        ui.html("<p>No commit has changed revenue yet.</p>", sanitize=False)
        return
    ui.html(
        board.render.macro("history", "difference", {"found": found, "reasons": REASONS}),
        sanitize=False,
    )
