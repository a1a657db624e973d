"""The event pipeline: event files to enriched events and dead letters."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg
import duckdb
from pydantic import Field

from retail_assets import tables
from retail_assets.defs.assets.daily import RETRIES, table_spec
from retail_assets.defs.assets.outside import EVENT_STREAMS, EVENTS_FOLDER
from retail_assets.defs.resource import LakeResource
from retail_assets.ingest.event_files import load as event_files
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.exports.reference import REFERENCE
from retail_assets.ingest.repair import replay
from retail_assets.lake.connection import current_snapshot
from retail_assets.lake.publish import Publication, day_facts
from retail_assets.settings import Settings

EVENT_TABLES = (tables.RAW_EVENTS, tables.ENRICHED_EVENTS, tables.DEAD_LETTER_EVENTS)

OUTSIDE = (EVENTS_FOLDER, EVENT_STREAMS)

INGEST = "event_ingest"
"""The name of the step that ingests event files."""

SHOWN_FILES = 20


class EventFilesConfig(dg.Config):
    """The event files of a run; without files, the run recomputes its days."""

    files: list[str] = Field(
        default=[],
        description="Event files, relative to the events folder. None: recompute the days of the"
        " run from raw_events.",
    )


def event_assets(
    settings: Settings, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    """`raw_events`, `enriched_events` and `dead_letter_events`: one ingest, one transaction."""

    @dg.multi_asset(
        name=INGEST,
        outs={
            table.name: dg.AssetOut(**table_spec(table, code_version="1"), io_manager_key="lake_io")
            for table in EVENT_TABLES
        },
        deps=[*(table.name for table in REFERENCE), *OUTSIDE],
        internal_asset_deps={
            tables.RAW_EVENTS.name: {*OUTSIDE},
            tables.ENRICHED_EVENTS.name: {
                dg.AssetKey(table.name) for table in (tables.RAW_EVENTS, *REFERENCE)
            },
            tables.DEAD_LETTER_EVENTS.name: {
                dg.AssetKey(table.name) for table in (tables.RAW_EVENTS, tables.CURRENCY_RATES)
            },
        },
        partitions_def=partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRIES,
    )
    def ingest_events(
        context: dg.AssetExecutionContext, config: EventFilesConfig, lake: LakeResource
    ) -> Iterator[dg.Output[object]]:
        days = [date.fromisoformat(key) for key in context.partition_keys]
        with lake.get_connection() as connection:
            session = EventSession(lake.lake, connection, settings.source_mapping.events)
            if config.files:
                found = event_files.ingest(session, settings, config.files)
                about = ingest_metadata(found)
                context.log.info(describe_ingest(found))
                for problem in found.failed.values():
                    context.log.error(problem)
                if found.new_fields:
                    context.log.warning(
                        "Fields that no event had before: %s",
                        ", ".join(f"{name} ({kind})" for name, kind in found.new_fields),
                    )
            else:
                for day in replay.event_days(connection, min(days), max(days)):
                    replay.replay_day(session, day)
                    context.log.info("%s is recomputed from its raw events", day)
                about = {"replayed": True}
            for table in EVENT_TABLES:
                context.add_output_metadata(about, output_name=table.name)
                yield dg.Output(event_publication(connection, table, days), output_name=table.name)

    return ingest_events


def event_publication(
    connection: duckdb.DuckDBPyConnection, table: tables.Table, days: Sequence[date]
) -> Publication:
    """What a table has of a range of days now."""
    window = f"received_date BETWEEN DATE '{min(days)}' AND DATE '{max(days)}'"
    source = f"(SELECT * FROM lake.{table.name} WHERE {window})"
    rows, measures = day_facts(connection, table, source, days)
    # A day without events has no measures, not zeros.
    measures = {day: values for day, values in measures.items() if rows[day]}
    return Publication(table, rows, {}, current_snapshot(connection), measures)


def describe_ingest(found: event_files.IngestResult) -> str:
    """How many files and lines were ingested, in a few words."""
    return (
        "{files} files: {lines} lines, {accepted} accepted, {dead_lettered} dead-lettered,"
        " {duplicate} duplicate".format_map(ingest_metadata(found))
    )


def ingest_metadata(found: event_files.IngestResult) -> dict[str, Any]:
    """What Dagster shows of the files that were ingested."""
    results = found.files.values()
    outcomes = Counter(file.outcome for file in results)
    return {
        "files": len(found.files),
        "lines": sum(file.lines for file in results),
        "accepted": sum(file.accepted for file in results),
        "dead_lettered": sum(file.dead_lettered for file in results),
        "duplicate": sum(file.duplicate for file in results),
        "outcomes": dict(outcomes),
        **({"failed_files": found.failed} if found.failed else {}),
        **({"new_fields": dict(found.new_fields)} if found.new_fields else {}),
        "file_names": sorted(found.files)[:SHOWN_FILES],
    }
