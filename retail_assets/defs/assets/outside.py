"""The ends of the lineage that no run makes: the sources on the left, the views on the right.

Dagster calls them external. They say where data come from, and what people query in the end.
"""

import dagster as dg

from retail_assets import tables
from retail_assets.defs.assets.daily import OWNERS, table_spec
from retail_assets.ingest.exports.reference import REFERENCE
from retail_assets.settings import Settings

EXPORTS_FOLDER = dg.AssetKey("exports_folder")
REFERENCE_FOLDER = dg.AssetKey("reference_folder")
EVENTS_FOLDER = dg.AssetKey("events_folder")
EVENT_STREAMS = dg.AssetKey("event_streams")
SHOP_DATABASE = dg.AssetKey("shop_database")

VIEWS = (
    (tables.REVENUE_NOW, (tables.DAILY_REVENUE, tables.LIVE_REVENUE)),
    (
        tables.REVENUE_BY_CATEGORY_NOW,
        (tables.DAILY_REVENUE_BY_CATEGORY, tables.LIVE_REVENUE_BY_CATEGORY),
    ),
    (tables.REVENUE_BY_MINUTE, (tables.LIVE_REVENUE_MINUTES,)),
    (tables.ORDER_CHARGES, (tables.COMPLETED_ORDERS, tables.RAW_ORDERS)),
)
"""Each view, and the tables that it reads."""


def sources(settings: Settings) -> list[dg.AssetSpec]:
    """Where data come from: folders, the shop's database, and what a worker receives."""
    database = settings.source_mapping.database
    found = [
        _source(
            EVENTS_FOLDER,
            f"Event files as they land in {settings.events_location}: one JSON object a line.",
            {"json"},
        ),
        _source(
            EVENT_STREAMS,
            "What the resident worker receives: Kafka topics, queues, and the webhook."
            " `retail-assets stream` names them; [stream_worker](/assets/stream_worker) says"
            " whether it is alive.",
            {"kafka", "sqs"},
        ),
    ]
    if database is None:
        found.append(
            _source(
                EXPORTS_FOLDER,
                f"The shop's nightly order exports as they land in {settings.exports_location}.",
                {"csv"},
            )
        )
    else:
        found.append(
            _source(
                SHOP_DATABASE,
                "The shop's own database, of which each night's orders are extracted.",
                {"database"},
            )
        )
    if database is None or len(database.reference) < len(REFERENCE):
        found.append(
            _source(
                REFERENCE_FOLDER,
                f"Products, customers and rates of exchange as files in {settings.reference_dir}.",
                {"csv"},
            )
        )
    return found


def views() -> list[dg.AssetSpec]:
    """What people query in the end: views of the lake, which are always as new as their tables."""
    return [
        dg.AssetSpec(
            **{
                **table_spec(view, code_version="1"),
                "description": f"{view.description}\n\nA view: no run makes it.",
            },
            deps=[dg.AssetKey(table.name) for table in read],
        )
        for view, read in VIEWS
    ]


def _source(key: dg.AssetKey, description: str, kinds: set[str]) -> dg.AssetSpec:
    return dg.AssetSpec(
        key, description=description, group_name="sources", owners=OWNERS, kinds=kinds
    )
