"""Jobs that people launch by hand: repair, upkeep and training, with a form that is filled in.

A range of days of the batch, or a replay of events, is launched from `batch` and `events`.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from retail_assets.consumers import live_orders, live_revenue
from retail_assets.consumers.registry import recompute
from retail_assets.defs.assets.fraud import FRAUD_MODEL
from retail_assets.defs.resource import LakeResource
from retail_assets.errors import UsageError
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.repair import dead_letters
from retail_assets.lake import checksums, maintenance
from retail_assets.lake import verify as verification
from retail_assets.settings import Settings
from retail_assets.transforms.events import REASONS, UNKNOWN_CURRENCY


class RedriveConfig(dg.Config):
    """Which dead letters are redriven."""

    reason: str = Field(
        default=UNKNOWN_CURRENCY,
        description="The reason code of the dead letters, all of which are redriven as they are:"
        f" {', '.join(REASONS)}.",
    )


class RewindConfig(dg.Config):
    """Which consumer is rewound."""

    consumer: str = Field(
        default=live_orders.CONSUMER.name,
        description="The consumer, as `retail-assets consumers list` shows it.",
    )


class MaintainConfig(dg.Config):
    """How much history stays."""

    keep_days: int = Field(
        default=30, ge=0, description="Days of history that stay readable as of their time."
    )


class VerifyConfig(dg.Config):
    """How closely files are looked at."""

    deep: bool = Field(
        default=False, description="Read every file whole, and compare it with its checksum."
    )


def upkeep_jobs(
    settings: Settings,
) -> Sequence[dg.JobDefinition | UnresolvedAssetJobDefinition]:
    """The jobs `redrive`, `rewind`, `maintain`, `verify` and `train`."""
    return [
        _job(
            "redrive",
            _redrive(settings),
            "Validate all open dead letters of a reason again, and ingest those that are valid.",
        ),
        _job("rewind", _rewind(settings), "Recompute all tables of a consumer from the events."),
        _job(
            "maintain",
            maintain_lake,
            "Compact small files, expire old snapshots, remove files that nothing needs.",
        ),
        _job("verify", verify_lake, "Verify that every file of the lake is there and whole."),
        dg.define_asset_job(
            "train",
            selection=dg.AssetSelection.assets(FRAUD_MODEL),
            description="Train the fraud model of a day on the events received up to it.",
        ),
    ]


def _job(name: str, op: dg.OpDefinition, description: str) -> dg.JobDefinition:
    return dg.GraphDefinition(name=name, node_defs=[op], description=description).to_job()


def _redrive(settings: Settings) -> dg.OpDefinition:
    @dg.op
    def redrive_dead_letters(
        context: dg.OpExecutionContext, config: RedriveConfig, lake: LakeResource
    ) -> None:
        if config.reason not in REASONS:
            raise dg.Failure(
                f"{config.reason!r} is no reason of dead letters: choose from"
                f" {', '.join(REASONS)}.",
                allow_retries=False,
            )
        with lake.get_connection() as connection:
            found = dead_letters.find(connection, reason=config.reason, open_only=True)
            session = EventSession(lake.lake, connection, settings.source_mapping.events)
            done = dead_letters.redrive(session, [letter["id"] for letter in found])
            live_revenue.refresh(lake.lake, connection)
        for item in done:
            context.log.info("%s: %s", item.id, item.outcome)
        accepted = sum(item.outcome == "accepted" for item in done)
        context.add_output_metadata({"redriven": accepted, "still_dead": len(done) - accepted})

    return redrive_dead_letters


def _rewind(settings: Settings) -> dg.OpDefinition:
    @dg.op
    def rewind_consumer(
        context: dg.OpExecutionContext, config: RewindConfig, lake: LakeResource
    ) -> None:
        try:
            with lake.get_connection() as connection:
                done = recompute(lake.lake, connection, settings, config.consumer)
        except UsageError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        for key, problem in done.failed.items():
            context.log.warning("%s quarantined %s: %s", config.consumer, key, problem)
        context.add_output_metadata(
            {"rows_changed": done.rows, "quarantined_keys": len(done.failed)}
        )

    return rewind_consumer


@dg.op
def maintain_lake(
    context: dg.OpExecutionContext, config: MaintainConfig, lake: LakeResource
) -> None:
    """Do the lake's upkeep."""
    done = maintenance.maintain(lake.lake, keep_days=config.keep_days)
    with lake.get_connection() as connection:
        checksums.note_new_files(lake.lake, connection)
    context.add_output_metadata(vars(done))


@dg.op
def verify_lake(context: dg.OpExecutionContext, config: VerifyConfig, lake: LakeResource) -> None:
    """Verify the lake's files; fail if one is damaged."""
    report = verification.verify(lake.lake, deep=config.deep)
    context.log.info("%s files are verified", report.summary.files)
    for damage in report.damages:
        context.log.error("%s: %s %s", damage.table, damage.location, damage.problem)
    if report.damages:
        raise dg.Failure(
            f"{len(report.damages)} of {report.summary.files} files are damaged:"
            " `retail-assets verify` says what brings their rows back.",
            allow_retries=False,
        )
