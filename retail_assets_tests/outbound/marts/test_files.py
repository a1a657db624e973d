"""Marts as files: their names, what somebody did to them, and what readers make of them."""

import json
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from retail_assets.lake import replacement
from retail_assets.outbound.marts import stores
from retail_assets.outbound.marts.model import MartError
from retail_assets.outbound.marts.publish import publish as publish_mart
from retail_assets.outbound.marts.stores import ASIDE, FolderStore
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish
from retail_assets_tests.lake.test_s3 import KEYS, endpoint  # noqa: F401  # a fixture
from retail_assets_tests.outbound.marts.conftest import target_of
from retail_assets_tests.outbound.marts.places import FolderPlace, rows_of
from retail_assets_tests.outbound.marts.test_publish import (
    NAMES,
    assert_equal,
    days_of,
    reasons,
    rows_in_lake,
)

WATERMARK = "_retail_assets_watermark.json"


def test_a_day_is_a_file_and_a_day_without_rows_none(lake, published):
    kind = published.kind
    files = [path for path in published.root.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(published.root)) for path in files) == [
        WATERMARK,
        f"daily_revenue/year=2026/month=10/2026-10-05.{kind}",
        f"daily_revenue/year=2026/month=10/2026-10-06.{kind}",
        f"daily_revenue_by_category/year=2026/month=10/2026-10-05.{kind}",
        f"revenue_now/year=2026/month=10/2026-10-05.{kind}",
        f"revenue_now/year=2026/month=10/2026-10-06.{kind}",
    ]


def test_duckdb_and_pandas_read_a_table_by_its_folder_with_the_types_of_the_lake(lake, tmp_path):
    place = FolderPlace(tmp_path / "mart", "parquet")
    publish_mart(lake, target_of(lake, place))
    table = place.root / "daily_revenue"
    columns = "order_date, region, total_revenue, order_count, avg_order_value"
    relation = duckdb.sql(f"SELECT {columns} FROM read_parquet('{table}/**/*.parquet')")
    assert [str(kind) for kind in relation.types] == [
        *("DATE", "VARCHAR", "DECIMAL(18,2)", "BIGINT", "DECIMAL(12,2)")
    ]
    assert sorted(relation.fetchall(), key=repr) == rows_in_lake(lake, "daily_revenue")
    frame = pd.read_parquet(table)
    assert list(frame["year"].astype(int).unique()) == [2026]
    assert len(frame) == 4


def test_files_that_somebody_deleted_damaged_or_wrote_are_repaired(lake, published):
    folder = published.root / "daily_revenue" / "year=2026" / "month=10"
    first, second = sorted(folder.iterdir())
    first.unlink()
    second.write_bytes(b"order_date,region\n1,2\n")
    (folder / f"2026-10-09.{published.kind}").write_bytes(second.read_bytes())
    (folder / f"2026-10-10.{published.kind}").write_bytes(
        next((published.root / "revenue_now").rglob("2026*")).read_bytes()
    )
    done = publish_mart(lake, target_of(lake, published), everything=True)
    assert len(days_of(done)["daily_revenue"]) == 4
    assert_equal(lake, published)


def test_a_table_whose_folder_is_gone_is_written_again(lake, published, caplog):
    path = published.root / "daily_revenue"
    path.rename(published.root / "elsewhere")
    done = publish_mart(lake, target_of(lake, published))
    assert reasons(done) == {None, "its files are gone"}
    assert "its files are gone. All days are compared." in caplog.text
    assert_equal(lake, published)


def test_files_without_a_watermark_are_left_alone_until_somebody_says_so(lake, published):
    (published.root / WATERMARK).unlink()
    publish(lake, [], [FIRST])
    before = published.rows("daily_revenue")
    target = target_of(lake, published)
    with pytest.raises(MartError, match=r"There are files of daily_revenue in .* says whose they"):
        publish_mart(lake, target)
    assert published.rows("daily_revenue") == before
    publish_mart(lake, target, everything=True)
    assert_equal(lake, published)


def test_a_watermark_that_was_written_by_somebody_else_is_refused(lake, published):
    (published.root / WATERMARK).write_text(json.dumps({"daily_revenue": 1}))
    with pytest.raises(MartError, match="is not what the platform wrote"):
        publish_mart(lake, target_of(lake, published))


def test_another_format_takes_the_place_of_the_files_of_the_first(lake, tmp_path):
    for kind in ("csv", "parquet", "csv"):
        place = FolderPlace(tmp_path / "mart", kind)
        publish_mart(lake, target_of(lake, place))
        assert_equal(lake, place)
        suffixes = {path.suffix for path in place.root.rglob("2026*") if path.is_file()}
        assert suffixes == {f".{kind}"}


def test_files_of_others_are_named_and_stay(lake, published, caplog):
    copy = published.root / "daily_revenue" / "copy of 2026-10-05.parquet"
    copy.write_bytes(b"x")
    publish_mart(lake, target_of(lake, published), everything=True)
    assert "1 files that are not the platform's, such as daily_revenue/copy of" in caplog.text
    assert copy.exists()


def test_what_a_killed_round_left_aside_is_deleted(lake, published):
    (published.root / ASIDE).mkdir(exist_ok=True)
    (published.root / ASIDE / "half").write_bytes(b"x")
    publish_mart(lake, target_of(lake, published))
    assert list((published.root / ASIDE).iterdir()) == []


def test_files_are_on_the_disk_before_they_are_named_and_all_of_them_before_the_watermark(
    lake, tmp_path, monkeypatch
):
    place = FolderPlace(tmp_path / "mart", "parquet")
    done: list[tuple[str, set[Path]]] = []
    sync_paths, rename = replacement.sync_paths, Path.replace

    def sync(paths):
        done.append(("synced", set(paths)))
        sync_paths(paths)

    def replace(path, target):
        done.append(("named", {path, target}))
        return rename(path, target)

    monkeypatch.setattr(replacement, "sync_paths", sync)
    monkeypatch.setattr(stores, "sync_files", lambda _: done.append(("all synced", set())))
    monkeypatch.setattr(Path, "replace", replace)
    publish_mart(lake, target_of(lake, place))
    steps = [step for step, _ in done]
    watermarks = 0
    for n, (step, paths) in enumerate(done):
        if step != "named":
            continue
        [(draft, target)] = [sorted(paths, key=lambda path: ASIDE not in path.parts)]
        assert any(step == "synced" and draft in found for step, found in done[:n])
        assert any(step == "synced" and target.parent in found for step, found in done[n:])
        if target.name.endswith(".json"):
            watermarks += 1
            earlier = done[: n - steps[:n][::-1].index("all synced")]
            assert not [each for each in done[len(earlier) : n] if each[0] == "named"]
    assert watermarks > 3


def test_a_folder_that_cannot_be_written_to_is_a_sentence(lake, tmp_path):
    (tmp_path / "mart").write_text("no folder")
    place = FolderPlace(tmp_path / "mart", "parquet")
    with pytest.raises(MartError, match=r"The mart in .*mart could not be published: .*directory"):
        publish_mart(lake, target_of(lake, place))


def test_a_write_that_fails_leaves_the_day_as_it_was(lake, published, monkeypatch):
    publish(lake, [(SECOND, "North", "4.00"), (THIRD, "North", "4.00")], [SECOND, THIRD])
    before = [published.rows(name) for name in NAMES]

    def full(self, contents, **_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", full)
        with pytest.raises(MartError, match="could not be published: No space left on device"):
            publish_mart(lake, target_of(lake, published))
    assert [published.rows(name) for name in NAMES] == before
    publish_mart(lake, target_of(lake, published))
    assert_equal(lake, published)


class Bucket:
    """A prefix of the bucket `shop`."""

    kind = "parquet"

    def __init__(self, prefix):
        self.root = f"s3://shop/{prefix}"
        self.settings = {"mart_files": self.root}

    def rows(self, table):
        import fsspec

        files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        found = files.find(f"{self.root}/{table}")
        return sorted((row for p in found for row in rows_of(table, p, files.cat(p))), key=repr)


@pytest.mark.processes
def test_a_bucket_has_the_rows_of_the_lake_after_each_change(
    lake,
    endpoint,  # noqa: F811
    monkeypatch,
):
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    place = Bucket("marts")
    target = target_of(lake, place)
    publish_mart(lake, target)
    assert_equal(lake, place)
    publish(lake, [(SECOND, "North", "4.00")], [FIRST, SECOND])
    assert days_of(publish_mart(lake, target))["daily_revenue"] == [FIRST, SECOND]
    assert_equal(lake, place)
    assert days_of(publish_mart(lake, target)) == {}
    nowhere = target_of(lake, type("", (), {"settings": {"mart_files": "s3://no-such-bucket/m"}}))
    with pytest.raises(MartError, match="The mart in s3://no-such-bucket/m could not be published"):
        publish_mart(lake, nowhere)
