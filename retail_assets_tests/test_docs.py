"""What the documentation says is what the code does."""

import re
from pathlib import Path

from typer.testing import CliRunner

from retail_assets.cli import app as cli
from retail_assets.consumers.registry import all_consumers
from retail_assets.definitions import build_definitions
from retail_assets.settings import Settings
from tools.data_dictionary import data_dictionary
from tools.settings_page import settings_page

ROOT = Path(__file__).parents[1]


def text(*names: str) -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def test_the_data_dictionary_is_the_one_that_the_tables_give():
    assert text("docs/data-dictionary.md") == data_dictionary(), "run `make docs`"


def test_the_page_of_settings_is_the_one_that_the_settings_give():
    assert text("docs/settings.md") == settings_page(), "run `make docs`"


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
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_test_that_a_promise_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", text("docs/promises.md"))
    assert len(named) > len(
        re.findall(r"^\| (?!promise|---)", text("docs/promises.md"), re.MULTILINE)
    )
    for module, name in named:
        source = (ROOT / "retail_assets_tests" / module).read_text(encoding="utf-8")
        assert f"def {name}(" in source, f"{module} has no {name}"


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.MULTILINE))

    assert set(re.findall(r"`make ([a-z]+)`", text("README.md"))) <= targets


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
    # Of itself an asset starts through the sensor `automation`.
    assert "05:00" in page
    assert "`fraud_model`" in page


def test_every_consumer_is_documented_with_what_it_follows_and_keeps(settings: Settings):
    page, lane = text("docs/consumers.md"), text("docs/stream.md")

    for consumer in all_consumers(settings):
        sources = ", ".join(f"`{table.name}`" for table in consumer.sources)
        kept = ", ".join(f"`{table.name}`" for table in consumer.tables)
        assert f"| `{consumer.name}` | `{consumer.key}` | {sources} | {kept}" in page
        assert f"| {consumer.name} |" in lane
