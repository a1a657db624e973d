"""The ledger of mappings: from when on events were validated with which one.

A row is written by the first batch that is validated with another mapping than the one before it,
in its transaction. So `processed_at` of an event or dead letter says with which mapping it was
validated, and a replay with today's makes it one of today.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import duckdb
from pydantic import TypeAdapter, ValidationError

from retail_assets import tables
from retail_assets.engines.mapped_events import ORIGIN
from retail_assets.lake.history import most_rows
from retail_assets.lake.sql import literal
from retail_assets.mapping.events import EventMapping
from retail_assets.mapping.model import EventMappings, fingerprint

_ADAPTER = TypeAdapter[EventMappings](EventMappings)


@dataclass(frozen=True)
class Outdated:
    """Events and dead letters that were validated with another mapping, and their received days."""

    rows: int
    first: date
    last: date

    def __str__(self) -> str:
        """What to do about them."""
        return (
            f"{self.rows:,} events received from {self.first} to {self.last} were validated with"
            f" another mapping: run `retail-assets replay --start {self.first} --end {self.last}`"
        )


def note(connection: duckdb.DuckDBPyConnection, mappings: EventMappings) -> None:
    """In a transaction, note with which mappings its events are validated, if that is new."""
    if not mappings and not most_rows(connection, tables.EVENT_MAPPINGS):
        return
    content = _content(mappings)
    (latest,) = connection.execute(
        "SELECT mapping FROM lake.event_mappings ORDER BY since DESC LIMIT 1"
    ).fetchone() or ("[]",)
    if latest != content:
        connection.execute(
            "INSERT INTO lake.event_mappings BY NAME SELECT now() AS since, ? AS mapping", [content]
        )


def outdated(connection: duckdb.DuckDBPyConnection, mappings: EventMappings) -> Outdated | None:
    """Find what was validated with another mapping than today's, and its source has one now or had.

    Only rows that are older than the last change of the mapping are looked at.
    """
    conditions: list[str] = []
    for since, until, content in _periods(connection):
        origins = _changed(content, mappings)
        if not origins:
            continue
        parts = [
            f"{name} TIMESTAMPTZ '{time}'"
            for name, time in (("processed_at >=", since), ("processed_at <", until))
            if time is not None
        ]
        if None not in origins:
            pattern = "|".join(sorted(filter(None, origins)))
            parts.append(f"regexp_full_match({ORIGIN}, {literal(pattern)})")
        conditions.append(" AND ".join(parts) or "true")
    if not conditions:
        return None
    where = " OR ".join(f"({each})" for each in conditions)
    rows = " UNION ALL ".join(
        f"SELECT received_date FROM lake.{table.name} WHERE {where}"
        for table in (tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS)
    )
    count, first, last = connection.execute(
        f"SELECT count(*), min(received_date), max(received_date) FROM ({rows})"
    ).fetchone() or (0, None, None)
    return Outdated(count, first, last) if count else None


def _periods(
    connection: duckdb.DuckDBPyConnection,
) -> list[tuple[datetime | None, datetime | None, str]]:
    """From when until when events were validated with which mapping, joined where it is one."""
    found = connection.execute(
        "SELECT since, mapping FROM lake.event_mappings ORDER BY since"
    ).fetchall()
    starts: list[tuple[datetime | None, str]] = [(None, "[]"), *found]
    ends = [*(since for since, _ in found), None]
    return [(since, until, content) for (since, content), until in zip(starts, ends, strict=True)]


def _changed(content: str, mappings: EventMappings) -> set[str | None]:
    """The origins whose events another mapping is for than before; None for all."""
    if content == _content(mappings):
        return set()
    try:
        before = _ADAPTER.validate_json(content)
    except ValidationError:
        # It was written by another release.
        return {None}
    old, new = _by_fingerprint(before), _by_fingerprint(mappings)
    changed = old.keys() ^ new.keys() or old.keys()
    return {(old | new)[each].origins for each in changed}


def _by_fingerprint(mappings: Sequence[EventMapping]) -> dict[str, EventMapping]:
    return {fingerprint(each): each for each in mappings}


def _content(mappings: Sequence[EventMapping]) -> str:
    return json.dumps(
        [each.model_dump(mode="json", by_alias=True, exclude_defaults=True) for each in mappings],
        sort_keys=True,
        ensure_ascii=False,
    )
