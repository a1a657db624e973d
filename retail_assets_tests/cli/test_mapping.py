"""The command `retail-assets mapping check`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retail_assets.cli.app import app
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import load_settings

ROOT = Path(__file__).parents[2]
SHOPIFY = ROOT / "data" / "mappings" / "shopify-orders.yaml"
SAMPLES = ROOT / "retail_assets_tests" / "ingest" / "exports" / "foreign"


def check(*arguments: Path | str) -> str:
    result = CliRunner().invoke(app, ["mapping", "check", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_sample_is_shown_field_by_field_and_nothing_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_DATA_DIR", str(tmp_path))
    shown = check(SHOPIFY, "--sample", SAMPLES / "shopify.csv")
    assert all(text in shown for text in ("Lineitem", "12.25", "24.50", "completed"))
    assert "7 rows can be used, 0 are rejected." in shown
    assert list(tmp_path.iterdir()) == []


def test_a_mapping_alone_is_checked(tmp_path: Path) -> None:
    assert "can be used" in check(SHOPIFY)
    broken = tmp_path / "broken.yaml"
    broken.write_text("exports: {fields: {}}")
    with pytest.raises(UsageError, match=r"exports\.fields\.order_id is missing"):
        check(broken)


def test_a_sample_of_which_nothing_can_be_used_fails(tmp_path: Path) -> None:
    sample = tmp_path / "orders_export.csv"
    header = (SAMPLES / "shopify.csv").read_text().splitlines()[0]
    sample.write_text(f"{header}\n#1{',' * header.count(',')}\n")
    with pytest.raises(RetailAssetsError, match=r"No row of .*orders_export\.csv can be used"):
        check(SHOPIFY, "--sample", sample)


def test_every_command_names_a_wrong_mapping_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_MAPPING", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match=r"The mapping .*none\.yaml cannot be read"):
        load_settings()
