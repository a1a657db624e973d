"""What becomes of a sample of events by a mapping: nothing is stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.events.session import EventSession
from retail_assets.lake.connection import Lake
from retail_assets.mapping.events import EventFields, EventMapping
from retail_assets.mapping.json_path import json_path
from retail_assets.mapping.model import EventMappings
from retail_assets.settings import Settings
from retail_assets.transforms.events import REASONS

SHOWN_EVENTS = 2

SHOWN_VALUES = 5

_ENDINGS = (".json", ".jsonl", ".ndjson")

_SHOWN = tuple(name for name in EventFields.model_fields if name != "currency")


@dataclass(frozen=True)
class EventFault:
    """Events that become dead letters for one reason, with their values, most frequent first.

    `position` is the line or element of the first of them in the sample.
    """

    reason: str
    field: str | None
    rows: int
    position: int
    values: Sequence[str]

    @property
    def sentence(self) -> str:
        """What is wrong, where, and the rule."""
        where = f" in {self.field}" if self.field else ""
        shown = f": {', '.join(repr(value[:80]) for value in self.values)}" if self.values else ""
        rule = REASONS.get(self.reason, "")
        events = "1 event" if self.rows == 1 else f"{self.rows:,} events"
        return f"{self.reason}{where}: {events}, first number {self.position}{shown}. {rule}"


@dataclass(frozen=True)
class EventSample:
    """What became of a sample.

    `columns` has the path of each field, and `rows` the first usable events: what stands in these
    at the paths, and what became of it.
    """

    columns: Mapping[str, str]
    rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    usable: int
    faults: Sequence[EventFault]

    @property
    def fields(self) -> Sequence[str]:
        """The fields of an event."""
        return (*_SHOWN, "extra")

    def cells(self, field: str) -> list[Any]:
        """What stands in each event for a field, and what became of it."""
        return [cell for found, event in self.rows for cell in (found.get(field, ""), event[field])]


def is_of_events(sample: Path) -> bool:
    """Whether a sample is of events, by its name or its first character."""
    if is_named(sample):
        return True
    try:
        with sample.open("rb") as file:
            return file.read(1_000).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[")
    except OSError as error:
        raise RetailAssetsError(f"{sample} cannot be read: {error.strerror}.") from error


def check_events(
    settings: Settings, sample: Path, mappings: EventMappings, source: str | None = None
) -> EventSample:
    """Read a sample of events by mappings.

    Args:
        settings: the zone.
        sample: a file of events, as an event file may be.
        mappings: those of a mapping file.
        source: where they are from, as a mapping has it; it may be left out if all have the same.

    Raises:
        UsageError: if no mapping is for the source, or it is not said which.
        RetailAssetsError: if the file as a whole cannot be read.
    """
    chosen = _chosen(mappings, source)
    with TemporaryDirectory() as folder:
        aside = _aside(settings, Path(folder))
        name = sample.name if is_named(sample) else f"{sample.name}.jsonl"
        Path(aside.events_location).mkdir()
        try:
            copyfile(sample, Path(aside.events_location, name))
        except OSError as error:
            raise RetailAssetsError(f"{sample} cannot be read: {error.strerror}.") from error
        lake = Lake.from_settings(aside)
        with lake.connect() as connection:
            done = ingest(EventSession(lake, connection, chosen), aside, [name])
            if done.failed:
                raise RetailAssetsError(*done.failed.values())
            return _result(connection, chosen)


def _aside(settings: Settings, folder: Path) -> Settings:
    """Settings of a lake of its own, whatever lake the environment names."""
    return Settings(
        data_dir=folder,
        events=None,
        lake_catalog=None,
        lake_data=None,
        timezone=settings.timezone,
        event_settle_seconds=0,
    )


def is_named(sample: Path) -> bool:
    """Whether a file is called as event files are."""
    name = sample.name.lower().removesuffix(".gz").removesuffix(".zst")
    return name.endswith(_ENDINGS)


def _chosen(mappings: EventMappings, source: str | None) -> EventMappings:
    """The mappings of a source, for events from anywhere."""
    sources = {each.source for each in mappings}
    if source is None and len(sources) > 1:
        names = ", ".join(sorted({name for each in sources for name in each}))
        raise UsageError(f"The mapping is for several sources: name one with --source ({names}).")
    chosen = [each for each in mappings if source is None or source in each.source]
    if not chosen:
        raise UsageError(
            f"The mapping has no events of a source {source}."
            if source
            else "The mapping has no section `events`, and the sample is of events."
        )
    return tuple(each.model_copy(update={"source": ()}) for each in chosen)


def _result(connection: duckdb.DuckDBPyConnection, mappings: EventMappings) -> EventSample:
    fields = ", ".join(f"e.{name}" for name in (*_SHOWN, "extra"))
    found = connection.execute(
        f"SELECT r.payload, {fields} FROM lake.enriched_events AS e"
        " JOIN lake.raw_events AS r USING (source_name, position)"
        f" ORDER BY position LIMIT {SHOWN_EVENTS}"
    ).fetchall()
    (usable,) = connection.execute("SELECT count(*) FROM lake.enriched_events").fetchone() or (0,)
    columns: dict[str, list[str]] = {}
    for mapping in mappings:
        for name, field in mapping.fields.named():
            said = " or ".join([field.source, *field.alternatives]) if field.source else ""
            columns.setdefault(name, []).append(said or repr(field.constant))
    return EventSample(
        {name: " / ".join(dict.fromkeys(paths)) for name, paths in columns.items()},
        [
            (
                {name: _shown(_values(mappings, payload, name)) for name in _SHOWN},
                dict(zip(_SHOWN, values[:-1], strict=True))
                # Its names: what they have may be long.
                | {"extra": ", ".join(json.loads(values[-1] or "{}"))},
            )
            for payload, *values in found
        ],
        int(usable),
        _faults(connection, mappings),
    )


def _faults(
    connection: duckdb.DuckDBPyConnection, mappings: Sequence[EventMapping]
) -> list[EventFault]:
    letters: dict[tuple[str, str | None], list[tuple[int, str]]] = {}
    for reason, field, position, payload in connection.execute(
        "SELECT reason, field, position, payload FROM lake.dead_letter_events ORDER BY position"
    ).fetchall():
        letters.setdefault((reason, field), []).append((position, payload))
    faults = []
    for (reason, field), some in letters.items():
        counts: dict[str, int] = {}
        for _, payload in some:
            for value in _values(mappings, payload, field or ""):
                counts[_text(value)] = counts.get(_text(value), 0) + 1
        values = sorted(counts, key=lambda value: (-counts[value], value))[:SHOWN_VALUES]
        paths = dict.fromkeys(
            found.source
            for mapping in mappings
            for name, found in mapping.fields.named()
            if name == field and found.source
        )
        shown = f"{field} (from {' / '.join(paths)})" if paths else field
        faults.append(EventFault(reason, shown, len(some), some[0][0], values))
    return sorted(faults, key=lambda fault: (-fault.rows, fault.reason))


def _values(mappings: Sequence[EventMapping], payload: str, field: str) -> list[Any]:
    """What stands in an event where mappings look for a field."""
    try:
        event = json.loads(payload)
    except ValueError:
        return []
    found = []
    for mapping in mappings:
        for name, each in mapping.fields.named():
            if name == field:
                paths = [json_path(source) for source in each.sources]
                root = json_path(mapping.root)
                found += [_at(event, path.from_root(root).parts) for path in paths]
    return [value for value in found if value is not None]


def _at(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(map(_text, values))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
