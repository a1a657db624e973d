"""The I/O manager: assets get lazy frames of the lake's tables, and it publishes their results.

An asset may take and return a `pandas.DataFrame`: the annotation decides.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import dagster as dg
import duckdb
import narwhals as nw
from dagster._core.execution.context.metadata_logging import (
    AssetMetadataHandle,
    OutputMetadataAccumulator,
)
from pydantic import PrivateAttr

from retail_assets import tables
from retail_assets.defs.resource import LakeResource
from retail_assets.errors import AuditError
from retail_assets.lake import day_ledger as ledger
from retail_assets.lake.checksums import note_new_files
from retail_assets.lake.publish import SAMPLE_ROWS, Audit, Publication, publish_days, publish_table
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.tables import MASKED

OPEN_END = "retail_assets/open_end"
"""Input metadata: load all days from the first one of the run on, not only those of the run."""


@dataclass(frozen=True)
class AssetOutput:
    """The result of an asset whose rows need more than the checks of `tables/`.

    `audit` and `only_days` are those of `publish_days`, `before_swap` that of `publish_table`.
    `describe` returns more metadata for the newest day of the run, after it is published.
    """

    frame: Any
    audit: Audit | None = None
    only_days: bool = False
    describe: Callable[[duckdb.DuckDBPyConnection], Mapping[str, Any]] | None = None
    before_swap: Callable[[duckdb.DuckDBPyConnection, str], None] | None = None


class LakeIOManager(dg.ConfigurableIOManager):
    """Loads tables of the lake as narwhals frames, and publishes frames as tables of the lake.

    A step that succeeds leaves its connection to the next one: opening a lake takes longer than
    publishing a few small days. Steps that read or write the lake themselves share them as well.
    """

    lake: LakeResource
    _reads: dict[str, SnapshotRead] = PrivateAttr(default_factory=dict)
    _idle: list[duckdb.DuckDBPyConnection] = PrivateAttr(default_factory=list)
    _sources: dict[str, list[tables.Table]] = PrivateAttr(default_factory=dict)

    def load_input(self, context: dg.InputContext) -> Any:
        """Load the upstream table, or its days of the run: lazy, or as pandas if annotated so.

        All inputs of a step are read from one snapshot.
        """
        table = _table(context.asset_key)
        step = _attempt(context)
        frame = self._read(step).connection.table(f"lake.{table.name}")
        if table.day is not None and context.has_asset_partitions:
            first, last = context.asset_partition_key_range
            window = f"{table.day} >= DATE '{date.fromisoformat(first)}'"
            if not (context.definition_metadata or {}).get(OPEN_END):
                window += f" AND {table.day} <= DATE '{date.fromisoformat(last)}'"
            frame = frame.filter(window)
            self._sources.setdefault(step, []).append(table)
        if _wants_pandas(context):
            import pandas as pd

            return frame.to_arrow_table().to_pandas(types_mapper=pd.ArrowDtype)
        return nw.from_native(frame)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Stage, audit and publish the result of an asset; failed days are named."""
        table = _table(context.asset_key)
        step = _attempt(context)
        read = self._read(step)
        connection = read.connection
        try:
            output = obj if isinstance(obj, AssetOutput) else AssetOutput(obj)
            if table.day is None:
                self._publish_table(context, read, table, output)
            else:
                publication = (
                    obj
                    if isinstance(obj, Publication)
                    else self._publish_days(context, read, table, output)
                )
                _report(context, connection, publication, output)
        except AuditError as error:
            # The same rows would fail again.
            raise dg.Failure(str(error), allow_retries=False) from error
        else:
            read.end()
            self._idle.append(self._reads.pop(step).connection)
        finally:
            self._close(step)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Note the checksums of what was written, and close all connections.

        Those of steps that failed before they had a result as well.
        """
        for step in list(self._reads):
            self._close(step)
        if self._idle:
            note_new_files(self.lake.lake, self._idle[-1])
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Lend a connection that can write; it is left to the next step unless the body raises."""
        connection = self._take()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    def _take(self) -> duckdb.DuckDBPyConnection:
        return self._idle.pop() if self._idle else self.lake.lake.open()

    def _read(self, step: str) -> SnapshotRead:
        if step not in self._reads:
            self._reads[step] = SnapshotRead(self._take())
            self._reads[step].begin()
        return self._reads[step]

    def _close(self, step: str) -> None:
        self._sources.pop(step, None)
        read = self._reads.pop(step, None)
        if read is not None:
            read.connection.close()

    def _publish_table(
        self,
        context: dg.OutputContext,
        read: SnapshotRead,
        table: tables.Table,
        output: AssetOutput,
    ) -> None:
        connection = read.connection
        count, snapshot = publish_table(
            self.lake.lake,
            connection,
            table,
            output.frame,
            before_swap=output.before_swap,
            read=read,
        )
        context.add_output_metadata(
            {
                "dagster/row_count": count,
                "snapshot": snapshot,
                **_shown(connection, table, None),
                **(output.describe(connection) if output.describe else {}),
            }
        )

    def _publish_days(
        self,
        context: dg.OutputContext,
        read: SnapshotRead,
        table: tables.Table,
        output: AssetOutput,
    ) -> Publication:
        connection = read.connection
        days = [date.fromisoformat(key) for key in context.asset_partition_keys]
        not_ready: dict[date, str] = {}
        sources = self._sources.get(_attempt(context), [])
        known = ledger.entries(connection, days)
        for source in sources:
            ready = set(known.published[source.name])
            if table.feed is not None and source.feed is None:
                # Outside data enters here, and may have rows of other days than its own.
                ready.update(known.changed[table.feed])
            reasons = known.failed[source.name]
            for day in days:
                if day not in ready:
                    reason = reasons.get(day, f"{source.name} has no such day yet: materialize it")
                    not_ready.setdefault(day, reason)
        return publish_days(
            self.lake.lake,
            connection,
            table,
            output.frame,
            days,
            audit=output.audit,
            not_ready=not_ready,
            only_days=output.only_days,
            sources=sources,
            read=read,
            known=known,
        )


def _attempt(context: dg.InputContext | dg.OutputContext) -> str:
    """The key of this attempt at a step: earlier ones had other snapshots."""
    step = context.step_context
    return f"{step.step.key}:{step.previous_attempt_count}"


def _table(asset_key: dg.AssetKey) -> tables.Table:
    name = asset_key.path[-1]
    if name not in tables.BY_NAME:
        raise dg.DagsterInvalidDefinitionError(
            f"The lake has no table {name}: describe it in retail_assets/tables/."
        )
    return tables.BY_NAME[name]


def _wants_pandas(context: dg.InputContext) -> bool:
    annotation = context.dagster_type.typing_type
    return getattr(annotation, "__module__", "").startswith("pandas")


def _report(
    context: dg.OutputContext,
    connection: duckdb.DuckDBPyConnection,
    publication: Publication,
    output: AssetOutput,
) -> None:
    """Add metadata for each published day; leave failed days out of the materializations."""
    for problem in publication.failed.values():
        context.log.error(problem)
    if publication.failed and not publication.rows:
        raise dg.Failure(describe_failures(publication.failed), allow_retries=False)
    step = context.step_context
    days = day_metadata(connection, publication, output.describe)
    # `add_asset_metadata` copies and checks all that was added before, for each day anew: years of
    # days took longer than to publish them.
    step._metadata_accumulator = OutputMetadataAccumulator(  # noqa: SLF001
        per_output_metadata={
            **step._metadata_accumulator.per_output_metadata,  # noqa: SLF001
            **{
                AssetMetadataHandle(
                    asset_key=context.asset_key, partition_key=day.isoformat()
                ): metadata
                for day, metadata in days
            },
        }
    )
    if publication.failed:
        # Dagster has no public way to materialize only some partitions of a single run: without
        # this, days that failed would be shown as materialized.
        context._asset_partitions_subset = (  # noqa: SLF001
            context.asset_partitions_def.empty_subset().with_partition_keys(
                [day.isoformat() for day in publication.rows]
            )
        )


def day_metadata(
    connection: duckdb.DuckDBPyConnection,
    publication: Publication,
    describe: Callable[[duckdb.DuckDBPyConnection], Mapping[str, Any]] | None = None,
) -> Iterator[tuple[date, dict[str, Any]]]:
    """What Dagster shows of each published day; of the newest one also a sample of its rows."""
    newest = max(publication.rows)
    for day, count in publication.rows.items():
        metadata: dict[str, Any] = {
            "dagster/partition_row_count": count,
            "snapshot": publication.snapshot,
            **{name: _number(value) for name, value in publication.measures.get(day, {}).items()},
        }
        if day == newest:
            # Once: Dagster would store these with every day.
            sample = publication.sample if count else ()
            metadata |= describe(connection) if describe else {}
            metadata |= _shown(connection, publication.table, day, sample)
        yield day, metadata


def describe_failures(failed: Mapping[date, str]) -> str:
    """A text that names each failed day and its problem."""
    problems = "\n".join(f"{day}: {problem}" for day, problem in sorted(failed.items()))
    return f"{len(failed)} {'day' if len(failed) == 1 else 'days'} failed.\n{problems}"


def _number(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)


def _shown(
    connection: duckdb.DuckDBPyConnection,
    table: tables.Table,
    day: date | None,
    rows: Sequence[Sequence[Any]] | None = None,
) -> dict[str, Any]:
    if rows is None:
        where = "" if day is None else f" WHERE {table.day} = DATE '{day}'"
        rows = connection.execute(
            f"SELECT {', '.join(table.column_names)} FROM lake.{table.name}{where}"
            f" LIMIT {SAMPLE_ROWS}"
        ).fetchall()
    metadata: dict[str, Any] = {}
    if rows:
        records = [
            dg.TableRecord(
                {
                    column.name: MASKED if column.personal else str(value)
                    for column, value in zip(table.columns, row, strict=True)
                }
            )
            for row in rows
        ]
        metadata["sample"] = dg.MetadataValue.table(records, schema=column_schema(table))
    lineage = column_lineage(table)
    if lineage is not None:
        metadata["dagster/column_lineage"] = lineage
    return metadata


def column_schema(table: tables.Table | tables.View) -> dg.TableSchema:
    """The columns of a table as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in table.columns
        ]
    )


def column_lineage(table: tables.Table) -> dg.TableColumnLineage | None:
    """The upstream columns of each column, where `tables/` names them."""
    sources = {
        column.name: [
            dg.TableColumnDep(asset_key=dg.AssetKey(source), column_name=name)
            for source, name in (text.split(".") for text in column.derived_from)
        ]
        for column in table.columns
        if column.derived_from
    }
    return dg.TableColumnLineage(sources) if sources else None
