"""Recovery of damaged files: the commands that bring their rows back, and the quarantine."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from retail_assets import tables
from retail_assets.consumers.registry import all_consumers
from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.ingest.ledgers.offsets import rewind_consumer
from retail_assets.lake import verify as lake_verify
from retail_assets.lake.connection import Lake
from retail_assets.lake.verify import Damage
from retail_assets.outbound.kafka import outbound_topics

if TYPE_CHECKING:
    from datetime import date

    import duckdb

    from retail_assets.settings import Settings

_REPLAYED = (tables.ENRICHED_EVENTS.name, tables.DEAD_LETTER_EVENTS.name)
_EXPORTED = (tables.RAW_ORDERS.name, tables.REJECTED_ORDERS.name)
_BATCH = tuple(table.name for table in tables.ALL if table.group in ("batch", "reference"))


def way_back(settings: "Settings", damage: Damage) -> str:
    """How the rows of one file come back: by a command, or from the backup."""
    if not damage.newest:
        return "nothing to do: only the history reads it"
    if damage.table in _REPLAYED:
        return "replay"
    if damage.table in _BATCH:
        return "backfill --all"
    for consumer in all_consumers(settings):
        if damage.table in (table.name for table in consumer.tables):
            return f"consumers rewind {consumer.name}"
    return "backup"


def is_recomputable(settings: "Settings", damage: Damage) -> bool:
    """Whether the rows can be computed again from other tables and files."""
    return damage.newest and way_back(settings, damage) != "backup"


def commands(settings: "Settings", damages: Sequence[Damage]) -> list[str]:
    """The commands that bring all rows back that can be computed, in their order."""
    found = [damage for damage in damages if is_recomputable(settings, damage)]
    names = {damage.table for damage in found}
    lines = []
    if names & set(_REPLAYED):
        lines.append(_over_days("replay", "", _of(found, _REPLAYED), settings))
    if names & set(_BATCH):
        lines.append(_over_days("backfill", " --all", _of(found, _BATCH), settings))
    consumers = {consumer.name for consumer in all_consumers(settings)}
    return lines + [
        f"retail-assets consumers rewind {name}"
        for name in _followers(settings, names)
        if name in consumers
    ]


def _followers(settings: "Settings", names: set[str]) -> list[str]:
    """The consumers and Kafka topics that write or follow one of some tables."""
    return [
        *(
            consumer.name
            for consumer in all_consumers(settings)
            if names & {table.name for table in (*consumer.tables, *consumer.sources)}
        ),
        *(
            topic.name
            for topic in outbound_topics(settings)
            if names & {table.name for table in topic.tables}
        ),
    ]


def quarantine(
    settings: "Settings",
    lake: Lake,
    connection: "duckdb.DuckDBPyConnection",
    damages: Sequence[Damage],
) -> int:
    """Take the damaged files of tables that can be recomputed out of the newest snapshot.

    Exports whose rows are concerned count as changed afterwards. Consumers of these tables compute
    everything again, and all rows are produced to Kafka again: without the files, the changes
    since their offset cannot be read.

    Returns:
        How many files were taken out.

    Raises:
        RetailAssetsError: if one of the files can only come from a backup, or if an export that
            would be needed is gone; nothing is changed then.
    """
    lost = [damage for damage in damages if damage.newest and not is_recomputable(settings, damage)]
    if lost:
        raise RetailAssetsError(
            f"{lost[0].location} of {lost[0].table} can only come from a backup, and others may be"
            " computed from it: put it back first. Nothing was taken out of the lake."
        )
    found = [damage for damage in damages if damage.newest]
    if not found:
        return 0
    exports = _of(found, _EXPORTED)
    with lake.transaction(connection, "quarantine damaged files"):
        for damage in exports:
            _expect_again(settings, connection, damage)
        for name in _followers(settings, {damage.table for damage in found}):
            rewind_consumer(connection, name)
    lake_verify.quarantine(lake, connection, found)
    return len(found)


def _of(damages: Iterable[Damage], names: Sequence[str]) -> list[Damage]:
    return [damage for damage in damages if damage.table in names]


def _over_days(command: str, option: str, damages: Sequence[Damage], settings: "Settings") -> str:
    days = [day for damage in damages for day in (damage.first, damage.last) if day is not None]
    first, last = min(days, default=settings.start_date), max(days, default=settings.start_date)
    return f"retail-assets {command} --start {first} --end {last}{option}"


def _expect_again(
    settings: "Settings", connection: "duckdb.DuckDBPyConnection", damage: Damage
) -> None:
    """Mark the exports of a file's days as changed, if all of them are there."""
    days: list[date] = [
        day
        for (day,) in connection.execute(
            "SELECT export_date FROM lake.export_files WHERE export_date BETWEEN ? AND ?"
            " ORDER BY ALL",
            [damage.first, damage.last],
        ).fetchall()
    ]
    location, name = ExportsLocation(settings.exports_location), settings.export_mapping.file_name
    there = {name.day(file.path) for file in location.files(lambda path: name.day(path) in days)}
    for day in days:
        if day not in there:
            raise RetailAssetsError(
                f"The export of {day} is no longer in {location.location}, and {damage.location}"
                " has rows of it: put the export, or the file from a backup, back first."
                " Nothing was taken out of the lake."
            )
    connection.execute(
        "UPDATE lake.export_files SET content_hash = 'damaged', modified_ns = 0"
        " WHERE export_date BETWEEN ? AND ?",
        [damage.first, damage.last],
    )
