"""What the documentation says is what the code does."""

import dataclasses
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import duckdb
import jsonschema
import narwhals as nw
import pytest
import yaml
from typer.testing import CliRunner

from retail_assets import connect, tables
from retail_assets.cli import app as cli
from retail_assets.consumers.framework import Consumer, consume
from retail_assets.consumers.registry import all_consumers
from retail_assets.definitions import build_definitions
from retail_assets.defs.assets.daily import daily_asset
from retail_assets.defs.io_manager import LakeIOManager
from retail_assets.defs.partitions import daily_partitions
from retail_assets.defs.resource import LakeResource
from retail_assets.ingest.messages.load import Received
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_days
from retail_assets.settings import Settings
from retail_assets.tables import Table
from retail_assets.worker.inbox import Inbox
from retail_assets.worker.sources.base import Source
from retail_assets.worker.worker import Worker
from retail_assets_tests.defs.test_io_manager import completed
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish
from tools.data_dictionary import data_dictionary
from tools.mapping_schema import mapping_schema
from tools.settings_page import settings_page

ROOT = Path(__file__).parents[1]


def text(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def test_the_data_dictionary_is_the_one_that_the_tables_give():
    assert text("docs/data-dictionary.md") == data_dictionary(), "run `make docs`"


def test_the_page_of_settings_is_the_one_that_the_settings_give():
    assert text("docs/settings.md") == settings_page(), "run `make docs`"


def test_the_schema_of_mappings_is_the_one_that_the_models_give():
    assert text("docs/mapping.schema.json") == mapping_schema(), "run `make docs`"


@pytest.mark.parametrize("name", sorted((ROOT / "data" / "mappings").glob("*.yaml")))
def test_every_ready_mapping_fits_the_schema(name):
    # As editors read it.
    found = yaml.safe_load(name.read_text(encoding="utf-8"))
    jsonschema.validate(found, json.loads(mapping_schema()))


def test_every_command_is_documented_and_has_help():
    documented = text("README.md", "docs/operations.md")
    commands = {f"retail-assets {_name(command)}": [_name(command)] for command in _of(cli.app)}
    for group in cli.app.registered_groups:
        (row,) = re.findall(rf"^\| `retail-assets {group.name}` \|.*", documented, re.MULTILINE)
        for command in _of(group.typer_instance):
            assert f"`{_name(command)}`" in row
            commands[f"retail-assets {group.name}"] = [group.name, _name(command)]
    for documented_as, names in commands.items():
        assert documented_as in documented
        shown = CliRunner().invoke(cli.app, [*names, "--help"])
        assert shown.exit_code == 0
        assert "Usage" in shown.output


def _of(app):
    return app.registered_commands


def _name(command):
    return command.name or command.callback.__name__


def test_links_between_pages_lead_somewhere():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
        for link, anchor in links:
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in _anchors(target), f"{page.name} links to {link}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_test_that_a_promise_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", text("docs/promises.md"))
    assert len(named) > len(
        re.findall(r"^\| (?!promise|---)", text("docs/promises.md"), re.MULTILINE)
    )
    for module, name in named:
        source = (ROOT / "retail_assets_tests" / module).read_text(encoding="utf-8")
        assert f"def {name}(" in source, f"{module} has no {name}"


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), flags=re.MULTILINE))
    pages = text("README.md", "CONTRIBUTING.md", "docs/operations.md")

    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, re.MULTILINE)) <= targets


def test_the_makefiles_own_settings_are_in_the_readme():
    names = re.findall(r"^(RETAIL_\w+) \?=", text("Makefile"), flags=re.MULTILINE)

    assert names
    assert [name for name in names if name not in text("README.md")] == []


def test_everything_that_starts_by_itself_is_in_the_table_of_it(settings: Settings):
    page = text("docs/operations.md")
    definitions = build_definitions(settings)

    started = [
        *(f"sensor `{sensor.name}`" for sensor in definitions.sensors),
        *(f"schedule `{schedule.name}`" for schedule in definitions.schedules),
    ]
    assert [name for name in started if f"| {name} |" not in page] == []
    # Assets that start by themselves do so through the sensor `automation`.
    assert "05:00" in page
    assert "`fraud_model`" in page


def test_every_consumer_is_documented_with_what_it_follows_and_keeps(settings: Settings):
    page, worker = text("docs/consumers.md"), text("docs/stream.md")

    for consumer in all_consumers(settings):
        sources = ", ".join(f"`{table.name}`" for table in consumer.sources)
        kept = ", ".join(f"`{table.name}`" for table in consumer.tables)
        assert f"| `{consumer.name}` | `{consumer.key}` | {sources} | {kept}" in page
        assert f"| {consumer.name} |" in worker


def blocks(page: str) -> list[str]:
    """The examples in Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", text(page), re.DOTALL | re.MULTILINE)


def run_block(code: str, **names: Any) -> SimpleNamespace:
    """Run an example with some names given; returns all that there are afterwards."""
    exec(code, names)  # noqa: S102  # of this repository's own pages
    return SimpleNamespace(**names)


@pytest.fixture
def with_table(monkeypatch: pytest.MonkeyPatch) -> Callable[[Table], None]:
    """Have the platform know one more table."""

    def add(table: Table) -> None:
        monkeypatch.setattr(tables, "ALL", (*tables.ALL, table))
        monkeypatch.setitem(tables.BY_NAME, table.name, table)  # type: ignore[arg-type]

    return add


def test_what_the_page_on_python_names_is_there_and_has_a_docstring(settings: Settings, lake: Lake):
    page = text("docs/python.md")
    named = re.findall(r"`(retail_assets[\w.]+)[`(]", page)
    named += [
        f"{module}.{name}"
        for name, module in re.findall(r"`(\w+)[^`]*` \(`(retail_assets[\w.]+)`\)", page)
    ]
    assert "retail_assets.lake.compaction.reliable_since" in named
    assert [name for name in named if not resolve_name(name).__doc__] == []

    reading, _, following = page.partition("## Your own assets")
    with connect() as reader:
        for member in re.findall(r"(?:^\| |, )`(\w+)\(.*?\)`(?=.*\|)", reading, re.MULTILINE):
            assert callable(getattr(reader, member))
    fields = re.findall(r"^\| `(\w+)(?:`|\()", following.partition("consumers")[2], re.MULTILINE)
    assert fields[0] == "name"
    assert set(fields) <= {field.name for field in dataclasses.fields(Consumer)}


def test_the_examples_of_the_page_on_python_run(settings: Settings, lake: Lake):
    publish(lake, [(FIRST, "North", "10.50"), (FIRST, "South", "2.00")], [FIRST])
    publish(lake, [(SECOND, "North", "1.00")], [SECOND])
    names: dict[str, Any] = {}
    for block in blocks("docs/python.md"):
        names = vars(run_block(block, **names))

    assert list(names["revenue"]["region"]) == ["North", "South", "North"]
    assert names["beside_target"] == [("North", Decimal("11.50"), 100), ("South", Decimal(2), 200)]
    assert names["days"] == 2
    assert names["behind"].keys() == {each.name for each in all_consumers(settings)}
    assert ("insert", "North", Decimal("10.50")) in names["changes"]
    with dg.DagsterInstance.ephemeral() as instance:
        run = names["definitions"].resolve_job_def("reports").execute_in_process(instance=instance)
    shown = {
        asset: run.asset_materializations_for_node(asset)[0].metadata
        for asset in ("best_region", "revenue_report")
    }
    assert shown["best_region"]["region"].value == "North"
    assert shown["revenue_report"]["revenue"].value == 13.5


def test_a_table_is_added_as_contributing_says(settings, lake, with_table):
    found = run_block(
        blocks("CONTRIBUTING.md")[0],
        Table=Table,
        Column=tables.Column,
        DAILY_REVENUE=tables.DAILY_REVENUE,
        daily_asset=daily_asset,
        nw=nw,
    )
    with_table(found.REGION_CUSTOMERS)
    orders = completed([(FIRST, "A1", "1.50"), (FIRST, "A2", "2.50"), (SECOND, "B1", "10.00")])
    with lake.connect() as connection:
        publish_days(lake, connection, tables.COMPLETED_ORDERS, orders, [FIRST, SECOND])
    days = daily_partitions(settings)
    upstream = dg.AssetSpec("completed_orders", partitions_def=days)
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(
            [
                upstream.with_io_manager_key("lake_io"),
                found.region_customers.build(days, settings.timezone),
            ],
            instance=instance,
            resources={"lake_io": LakeIOManager(lake=LakeResource.from_settings(settings))},
            partition_key=str(FIRST),
        )
    with lake.connect(read_only=True) as connection:
        rows = connection.execute("SELECT * FROM region_customers").fetchall()
    assert rows == [(FIRST, "x", 2)]


def test_a_consumer_is_added_as_contributing_says(settings, lake, with_table):
    found = run_block(
        blocks("CONTRIBUTING.md")[1],
        Table=Table,
        Column=tables.Column,
        Consumer=Consumer,
        duckdb=duckdb,
    )
    with_table(found.CUSTOMER_EVENTS)
    with EventLoader.open(settings) as loader:
        loader.write("2026-10-12/a.jsonl", [event(1), event(2), event(3, customer_id="C2"), "{"])
        loader.ingest()
        consume(lake, loader.connection, found.CONSUMER)
        assert sorted(loader.rows("FROM customer_events")) == [("C1", 2), ("C2", 1)]
        loader.write("2026-10-12/b.jsonl", [event(4, customer_id="C2")])
        loader.ingest()
        consume(lake, loader.connection, found.CONSUMER)
        assert sorted(loader.rows("FROM customer_events")) == [("C1", 2), ("C2", 2)]


def test_a_source_is_added_as_contributing_says(settings, lake):
    found = run_block(
        blocks("CONTRIBUTING.md")[2],
        Source=Source,
        Inbox=Inbox,
        Received=Received,
        Mapping=Mapping,
        datetime=datetime,
        ZoneInfo=ZoneInfo,
        time=time,
    )
    worker = Worker(settings, files=False)
    worker.sources.append(found.Till())
    stop = threading.Event()
    stop.set()  # what a source has put in by then is committed
    worker.run(stop)
    with lake.connect(read_only=True) as connection:
        rows = connection.execute(
            "SELECT source, source_name, position, order_id FROM enriched_events"
        ).fetchall()
    assert rows == [("till", "till 7", 1, "T1")]
