"""A lake that moves to PostgreSQL and a bucket, and back, by the commands of docs/cluster.md."""

# ruff: noqa: F811  # fixtures are imported

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import psycopg
import pytest
import s3fs

from retail_assets.cli import app as cli
from retail_assets.errors import UsageError
from retail_assets.lake.catalog_copy import copy_catalog
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake, order_row, write_export_to
from retail_assets_tests.faults.batch import contents, run_batch
from retail_assets_tests.lake.test_s3 import KEYS, endpoint  # noqa: F401  # a fixture
from retail_assets_tests.platform import DAYS, FIRST, write_reference

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def run_block(name: str, variables: Mapping[str, str]) -> None:
    """Run a block of the page; a client of S3 in Python stands in for the one that it names."""
    (block,) = re.findall(rf"<!-- test: {name} -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines():
        program, *arguments = shlex.split(re.sub(r"\$(\w+)", lambda m: variables[m[1]], line))
        if program == "retail-assets":
            cli.app(arguments, standalone_mode=False)
            continue
        assert [program, *arguments[:2]] == ["aws", "s3", "sync"]
        source, target = (f"{place.rstrip('/')}/" for place in arguments[2:])
        files = s3fs.S3FileSystem()
        (files.put if target.startswith("s3:") else files.get)(source, target, recursive=True)


def history(settings: Settings) -> dict[int, list[tuple[Any, ...]]]:
    """The revenue at each of the newest snapshots, with the time and the text of its commit."""
    lake = Lake.from_settings(settings)
    with lake.connect(read_only=True) as connection:
        found = connection.execute(
            "SELECT snapshot_id, snapshot_time, commit_message FROM lake.snapshots() ORDER BY 1"
        ).fetchall()
    seen: dict[int, list[tuple[Any, ...]]] = {}
    for number, *known in found[-6:]:
        with lake.connect(at=number) as connection:
            rows = connection.execute("FROM daily_revenue ORDER BY ALL").fetchall()
        seen[number] = [tuple(known), *rows]
    return seen


def test_a_lake_moves_to_many_hosts_goes_on_there_and_comes_back(
    tmp_path: Path,
    new_lake: NewLake,
    postgres: str,
    endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in [name for name in os.environ if name.startswith("RETAIL_")]:
        monkeypatch.delenv(variable)
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint, "RETAIL_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"moved_{uuid4().hex}"
    with psycopg.connect(f"{postgres} dbname=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    bucket = name.replace("_", "-")
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    monkeypatch.chdir(tmp_path)  # with the default data folder in it
    new = {
        "NEW_CATALOG": f"postgres:{postgres} dbname={name}",
        "NEW_FILES": f"s3://{bucket}/lake",
        "NEW_EXPORTS": f"s3://{bucket}/exports",
    }

    one = Settings()
    new_lake(one.data_dir)
    write_reference(one)
    for n, day in enumerate(DAYS[:3]):
        write_export_to(one.exports_dir, day, [order_row(f"O{n}", day)])
        run_batch(one, [day])
    before = contents(one)
    run_block("there", new)
    seen = history(one)
    assert len(seen) > 3
    with monkeypatch.context() as patch:
        for variable, of_page in (("LAKE_CATALOG", "CATALOG"), ("LAKE_DATA", "FILES")):
            patch.setenv(f"RETAIL_{variable}", new[f"NEW_{of_page}"])
        patch.setenv("RETAIL_EXPORTS", new["NEW_EXPORTS"])
        many = Settings()
        assert contents(many) == before
        assert history(many) == seen
        with pytest.raises(UsageError, match="already: name a catalog"):
            copy_catalog(Lake.from_settings(one), many.catalog, many.data_path)

        # There it goes on, with a correction of what it has brought along.
        rows = [order_row("new", DAYS[3]), order_row("O0", FIRST, order_value_gbp="3.00")]
        late = write_export_to(tmp_path / "aside", DAYS[3], rows)
        s3fs.S3FileSystem().put(str(late), f"{many.exports_location}/{late.name}")
        run_batch(many, DAYS)
        after = contents(many)
        assert after["daily_revenue"] != before["daily_revenue"]
        assert contents(one) == before, "the old one stays as it was"

        one.lake_dir.rename(tmp_path / "older")
        run_block("back", new)
    assert contents(one) == after
    assert not list(one.lake_dir.glob("*.copying*"))
    run_batch(one, DAYS)
    assert contents(one)["daily_revenue"] == after["daily_revenue"]
