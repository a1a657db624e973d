"""The files that are extracted from the shop's database, left of what is ingested from them.

They exist only where the mapping declares a database. A run logs a materialization for each file
that is in its place, so that days whose file is not are not shown as materialized, and then fails.
"""

from collections.abc import Iterator
from datetime import date

import dagster as dg

from retail_assets import tables
from retail_assets.defs.assets.daily import OWNERS, RETRIES, freshness
from retail_assets.defs.assets.outside import EXPORTS_FOLDER, REFERENCE_FOLDER, SHOP_DATABASE
from retail_assets.defs.io_manager import describe_failures
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.extract.files import ExtractedFile
from retail_assets.extract.run import ExtractResult, extract
from retail_assets.settings import Settings

ORDER_EXPORT_FILES = dg.AssetKey("order_export_files")
REFERENCE_FILES = dg.AssetKey("reference_files")

GROUP = "extract"


class ExtractConfig(dg.Config):
    """What a run may be asked for."""

    replace: bool = False
    """Replace files that somebody else wrote or changed, too."""


def files_behind(settings: Settings, table: tables.Table) -> list[dg.AssetKey]:
    """The files that a table is loaded from: those extracted, or else the folder they land in."""
    declared = settings.source_mapping.database
    if table in (tables.RAW_ORDERS, tables.REJECTED_ORDERS):
        return [ORDER_EXPORT_FILES if declared else EXPORTS_FOLDER]
    extracted = declared is not None and table.name in declared.reference
    return [REFERENCE_FILES if extracted else REFERENCE_FOLDER]


def extract_assets(
    settings: Settings, partitions_def: dg.PartitionsDefinition[str]
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """`order_export_files` and `reference_files`; none, where no database is declared."""
    declared = settings.source_mapping.database
    if declared is None:
        return []
    found: list[dg.AssetsDefinition | dg.AssetSpec] = [
        _order_export_files(settings, partitions_def)
    ]
    if declared.reference:
        names = ", ".join(f"`{name}.csv`" for name in declared.reference)
        found.append(
            dg.AssetSpec(
                REFERENCE_FILES,
                description=f"{names} as the shop's database had them; each run of"
                " `order_export_files` writes them, from its snapshot.",
                group_name=GROUP,
                deps=[SHOP_DATABASE],
                owners=OWNERS,
                kinds={"csv"},
            )
        )
    return found


def _order_export_files(
    settings: Settings, partitions_def: dg.PartitionsDefinition[str]
) -> dg.AssetsDefinition:
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    kind = "postgres" if url.startswith("postgres") else "mysql"

    @dg.multi_asset(
        name="extract_orders",
        specs=[
            dg.AssetSpec(
                ORDER_EXPORT_FILES,
                description="Export of each day's orders, from the shop's database: those placed"
                " on that day, and those of earlier days that changed on it. All files of a run are"
                " from one snapshot.",
                group_name=GROUP,
                deps=[SHOP_DATABASE],
                owners=OWNERS,
                kinds={"csv", *([kind] if url else [])},
                tags={"domain": "orders"},
                skippable=True,
                partitions_def=partitions_def,
                freshness_policy=freshness(settings.timezone),
            )
        ],
        partitions_def=partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRIES,
    )
    def extract_orders(
        context: dg.AssetExecutionContext, config: ExtractConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        days = [date.fromisoformat(key) for key in context.partition_keys]
        try:
            result = extract(
                settings,
                days,
                may_replace=config.replace,
                say=context.log.info,
                progress=lambda done: _tell(context, done, len(days)),
            )
        except RetailAssetsError as error:
            wrong = isinstance(error, UsageError)
            raise dg.Failure(str(error), allow_retries=not wrong) from error
        _report(context, result)
        # Nothing to yield: a result would be one of all days.
        yield from ()

    return extract_orders


def _tell(context: dg.AssetExecutionContext, done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        context.log.info("%s of %s files are written", done, total)


def _report(context: dg.AssetExecutionContext, result: ExtractResult) -> None:
    for file in (*result.reference, *result.orders):
        context.log_event(_materialization(file, result))
    for note in result.notes:
        context.log.warning(note)
    if result.failed or result.problems:
        raise dg.Failure(
            "\n".join([*result.problems, describe_failures(result.failed)]), allow_retries=False
        )


def _materialization(file: ExtractedFile, result: ExtractResult) -> dg.AssetMaterialization:
    is_order = file.day is not None
    metadata = {
        "dagster/partition_row_count" if is_order else "dagster/row_count": file.rows,
        "file": file.path.name,
        "result": file.result,
        "content_hash": file.content_hash,
        "size_bytes": file.size_bytes,
        **{f"source_{name}": value for name, value in result.origin.items()},
    }
    if file.day is None:
        return dg.AssetMaterialization(REFERENCE_FILES, metadata=metadata)
    return dg.AssetMaterialization(
        ORDER_EXPORT_FILES,
        partition=file.day.isoformat(),
        metadata=metadata | {"rows_of_earlier_days": file.late_rows},
    )
