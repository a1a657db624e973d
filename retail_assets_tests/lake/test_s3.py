"""Parquet files in object storage, by one setting: an S3 server (moto) of this machine."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from urllib.request import urlopen

import pytest

from retail_assets.errors import RetailAssetsError
from retail_assets.lake import maintenance
from retail_assets.lake.connection import Lake
from retail_assets.lake.files import files_after
from retail_assets.lake.maintenance import maintain
from retail_assets.lake.verify import verify
from retail_assets.settings import Settings
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish, read

pytestmark = pytest.mark.processes

SERVER = """
import sys
import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="shop")
print(f"http://{host}:{port}", flush=True)
sys.stdin.read()  # until the tests are over
"""

KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "it's a test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[str]:
    """The URL of an S3 server with the bucket `shop`."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=KEYS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as server,
    ):
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert url, log.read_text()
        yield url
        server.kill()


@pytest.fixture
def lake(endpoint, tmp_path, monkeypatch, new_lake) -> Lake:
    """A lake whose files are in the bucket."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    new_lake(tmp_path)
    prefix = tmp_path.name.replace("_", "-")
    return Lake.from_settings(Settings(data_dir=tmp_path, lake_data=f"s3://shop/{prefix}/lake"))


def objects(endpoint: str) -> str:
    with urlopen(f"{endpoint}/shop?list-type=2") as answer:  # noqa: S310 - of this machine
        return answer.read().decode()


def rows(day, value):
    return [(day, f"r{n:02}", value) for n in range(30)]


def expected(day, value):
    return [(day, region, Decimal(text)) for day, region, text in rows(day, value)]


def test_days_are_published_read_travelled_to_and_maintained(lake, endpoint, tmp_path):
    first = publish(lake, rows(FIRST, "1.00"), [FIRST]).snapshot
    publish(lake, rows(SECOND, "2.00"), [SECOND])
    publish(lake, rows(FIRST, "3.00"), [FIRST])
    now = expected(FIRST, "3.00") + expected(SECOND, "2.00")
    assert read(lake) == now
    assert objects(endpoint).count(f"{lake.data_path.removeprefix('s3://shop/')}/main/") == 3
    done = maintain(lake, keep_days=30)
    assert done.files_deleted == 0
    assert read(lake) == now
    assert read(lake, first) == expected(FIRST, "1.00")
    assert list(tmp_path.rglob("*.parquet")) == []


def test_files_in_use_are_not_taken_for_orphans(lake, monkeypatch):
    publish(lake, rows(FIRST, "1.00"), [FIRST])
    monkeypatch.setattr(maintenance, "GRACE", timedelta(days=-1))
    maintain(lake, keep_days=30)
    assert read(lake) == expected(FIRST, "1.00")


def test_files_that_no_catalog_knows_stay_where_they_are_many_and_no_new_one_is_made_beside_them(
    lake, monkeypatch, endpoint
):
    publish(lake, rows(FIRST, "1.00"), [FIRST])
    without = replace(lake, catalog=f"{lake.catalog}.new")
    with pytest.raises(RetailAssetsError, match=r"files of a lake, such as s3://shop/"):
        publish(without, rows(FIRST, "2.00"), [FIRST])
    assert without.create(beside_files=True)
    before = objects(endpoint)
    monkeypatch.setattr(maintenance, "GRACE", timedelta(days=-1))
    monkeypatch.setattr(maintenance, "_MADE_AT", re.compile("no name tells"))
    monkeypatch.setattr(maintenance, "ORPHANS", 0)
    publish(without, rows(SECOND, "2.00"), [SECOND])
    with pytest.raises(RetailAssetsError, match=r"1 files .* are not in the catalog"):
        maintain(without, keep_days=30)
    assert set(re.findall("<Key>.*?</Key>", before)) <= set(
        re.findall("<Key>.*?</Key>", objects(endpoint))
    )
    assert read(lake) == expected(FIRST, "1.00")


def test_a_bucket_that_cannot_be_reached_fails_the_publication_and_names_the_file(
    lake, monkeypatch
):
    publish(lake, rows(FIRST, "1.00"), [FIRST])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9/shop") as caught:
        publish(lake, rows(FIRST, "2.00"), [FIRST])
    assert "it's a test" not in str(caught.value)


def test_a_file_of_a_bucket_that_was_replaced_or_lost_is_found(lake, endpoint):
    import boto3

    publish(lake, [(FIRST, f"r{n}", "10.00") for n in range(20)], [FIRST])
    publish(lake, [(SECOND, f"r{n}", "10.00") for n in range(20)], [SECOND])
    first = verify(lake, deep=False)
    assert (first.damages, first.noted) == ((), first.summary.files)
    assert verify(lake, deep=False).summary.compared == first.summary.files

    with lake.connect(read_only=True) as connection:
        lost, replaced, *_ = [
            file.location(lake).removeprefix("s3://shop/")
            for file in files_after(lake, connection, -1)
            if file.table == "daily_revenue"
        ]
    bucket = boto3.resource(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    ).Bucket("shop")
    content = bytearray(bucket.Object(replaced).get()["Body"].read())
    content[50] ^= 1
    bucket.Object(replaced).put(Body=bytes(content))
    bucket.Object(lost).delete()
    assert [(item.location, item.problem) for item in verify(lake, deep=False).damages] == [
        (f"s3://shop/{lost}", "is missing"),
        (f"s3://shop/{replaced}", "has other bytes than when it was written"),
    ]
