"""Order exports in object storage, by one setting: an S3 server (moto) of this machine."""

# ruff: noqa: F811  # fixtures are imported

import gzip
import time
from datetime import date, timedelta
from pathlib import Path

import pytest

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.ingest.bucket import Bucket as Files
from retail_assets.ingest.exports import load
from retail_assets.ingest.exports.load import ExportResult, ingest
from retail_assets.ingest.exports.other_files import other_exports
from retail_assets.ingest.exports.pending import pending_exports
from retail_assets.ingest.exports.split import split_exports, unsplit_exports
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import HEADER, NewLake, order_row
from retail_assets_tests.ingest.event_files.test_bucket import Bucket, bucket  # noqa: F401
from retail_assets_tests.ingest.exports.test_split import HEADER as MANY
from retail_assets_tests.ingest.exports.test_split import MAPPING
from retail_assets_tests.lake.test_s3 import endpoint  # noqa: F401  # a fixture

pytestmark = pytest.mark.processes

DAY = date(2026, 10, 20)
DAYS = [DAY + timedelta(days=n) for n in range(4)]


@pytest.fixture
def shop(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_lake: NewLake
) -> Settings:
    """Settings of an empty lake whose exports land in the bucket."""
    monkeypatch.setenv("RETAIL_EXPORTS", f"s3://shop/{bucket.prefix}/")
    monkeypatch.setenv("RETAIL_THREADS", "1")
    new_lake(tmp_path)
    return Settings()


def put(bucket: Bucket, day: date, *orders: str, name: str = "") -> None:
    bucket.put(name or f"orders_{day:%Y_%m_%d}.csv", [HEADER, *orders])


def ingested(settings: Settings, *days: date) -> ExportResult:
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        return ingest(lake, connection, settings.exports_location, days, late_days=7)


def orders(settings: Settings) -> list[tuple[str, ...]]:
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        return connection.execute(
            "SELECT order_id, export_date::VARCHAR, source_file FROM raw_orders ORDER BY ALL"
        ).fetchall()


def test_exports_that_land_and_are_replaced_in_a_bucket_are_ingested_once(
    bucket, shop, monkeypatch
):
    monkeypatch.setattr(load, "BATCH_BYTES", 1)  # each copied and ingested by itself
    put(bucket, DAYS[0], order_row("A", DAYS[0]))
    bucket.put("orders_2026_10_21.csv.gz", [HEADER, order_row("B", DAYS[1])])
    assert list(pending_exports(shop)) == DAYS[:2]
    assert dict(ingested(shop, *DAYS[:2]).raw.rows) == {DAYS[0]: 1, DAYS[1]: 1}
    first = [
        ("A", "2026-10-20", "orders_2026_10_20.csv"),
        ("B", "2026-10-21", "orders_2026_10_21.csv.gz"),
    ]
    assert orders(shop) == first
    assert pending_exports(shop) == {}, "the ledger has them as they lie there"
    assert ingested(shop, *DAYS[:2]).unchanged == tuple(DAYS[:2])

    put(bucket, DAYS[0], order_row("A", DAYS[0]), order_row("C", DAYS[0]))
    assert list(pending_exports(shop)) == [DAYS[0]]
    ingested(shop, DAYS[0])
    assert orders(shop) == sorted([*first, ("C", "2026-10-20", "orders_2026_10_20.csv")])
    assert not list((shop.lake_dir / "spill").glob("*")), "no copy stays"


def test_what_is_wrong_with_an_export_in_a_bucket_names_it_there_and_fails_its_day_alone(
    bucket, shop
):
    place = f"s3://shop/{bucket.prefix}"
    bucket.put("orders_2026_10_20.csv", ["order_id,region", "A,North"])
    bucket.put("orders_2026_10_21.csv.gz", gzip.compress(b"x" * 5000)[:-9])
    put(bucket, DAYS[2], order_row("C", DAYS[2]))
    put(bucket, DAYS[3], order_row("D", DAYS[3]), name="old/orders-2026-10-23.csv")
    found = ingested(shop, *DAYS)
    assert list(found.raw.rows) == [DAYS[2]]
    assert found.raw.failed[DAYS[0]].startswith(f"{place}/orders_2026_10_20.csv lacks the columns")
    assert f"{place}/orders_2026_10_21.csv.gz is not a whole gzip" in found.raw.failed[DAYS[1]]
    assert f"neither {place}/orders_2026_10_23.csv nor" in found.raw.failed[DAYS[3]]
    assert "'old/orders-2026-10-23.csv'" in found.raw.failed[DAYS[3]]
    with Lake.from_settings(shop).connect(read_only=True) as connection:
        noted = connection.execute("SELECT DISTINCT problem FROM failed_days").fetchall()
    assert not [text for (text,) in noted if str(shop.data_dir) in text]
    assert list(other_exports(shop)) == ["old/orders-2026-10-23.csv"]


def test_an_export_that_is_replaced_while_it_is_copied_is_of_one_version(bucket, shop, monkeypatch):
    put(bucket, DAYS[0], order_row("A", DAYS[0]))
    opened = Files.open
    versions = iter(("B", "C"))

    def open_late(self, path):
        stream = opened(self, path)
        for order in versions:
            put(bucket, DAYS[0], order_row(order, DAYS[0]), order_row("X", DAYS[0]))
            break
        return stream

    monkeypatch.setattr(Files, "open", open_late)
    ingested(shop, DAYS[0])
    assert [order for order, *_ in orders(shop)] == ["C", "X"]


def test_a_bucket_that_cannot_be_reached_is_one_sentence(shop, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    elsewhere = shop.model_copy(update={"exports": "s3://shop/elsewhere"})
    with pytest.raises(RetailAssetsError, match="order exports at s3://shop/elsewhere cannot be"):
        pending_exports(elsewhere)
    with pytest.raises(UsageError, match="is a bucket, and this needs a folder"):
        _ = elsewhere.exports_dir


def test_exports_of_many_days_are_split_within_the_bucket_whichever_host_does_it(
    bucket, shop, tmp_path
):
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(MAPPING)
    hosts = [
        shop.model_copy(update={"mapping": mapping, "data_dir": tmp_path / name})
        for name in ("one", "two")
    ]
    for host in hosts:  # they share the catalog, where the lock is
        host.__dict__["catalog"] = shop.catalog

    def row(order: str, price: str, day: str) -> str:
        return f"{order};a@b;S1;paid;{price};{day}/10/2026 10:00"

    def day_file(day: str) -> list[str]:
        text = bucket.client.get_object(
            Bucket="shop", Key=f"{bucket.prefix}/orders_2026_10_{day}.csv"
        )["Body"].read()
        return [line.split(";")[0].split(",")[0] for line in text.decode().splitlines()[1:]]

    bucket.put("orders_export_1.csv", [MANY, row("A", "1", "20"), row("B", "2", "21")])
    assert split_exports(hosts[0]).rows == {"orders_export_1.csv": 2}
    assert (day_file("20"), day_file("21")) == (["A"], ["B"])
    assert split_exports(hosts[1]).rows == {}, "another host knows what is split"
    time.sleep(1.1)  # the times of objects are in seconds
    bucket.put("orders_export_2.csv", [MANY, row("A", "3", "22")])
    assert split_exports(hosts[1]).rows == {"orders_export_2.csv": 1}
    assert (day_file("20"), day_file("22")) == ([], ["A"]), "an order is in one file"
    time.sleep(1.1)
    bucket.put("orders_export_3.csv", [MANY, row("A", "4", "21"), "no order"])
    split_exports(hosts[0])
    assert (day_file("22"), sorted(day_file("21"))) == ([], ["A", "B"])
    assert unsplit_exports(hosts[0]) == unsplit_exports(hosts[1])
