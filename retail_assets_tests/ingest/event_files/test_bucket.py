"""Event files in object storage, by one setting: an S3 server (moto) of this machine."""

import gzip
import os
from collections.abc import Iterator

import boto3
import pytest
import s3fs

from retail_assets.errors import RetailAssetsError
from retail_assets.ingest.event_files.load import ingest
from retail_assets.ingest.event_files.pending import pending_event_files
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.lake.test_s3 import KEYS, endpoint  # noqa: F401  # a fixture

pytestmark = pytest.mark.processes

DAY = "2026-10-12"


class Bucket:
    """A prefix of the bucket: puts files there, as another program would."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        self.client = boto3.client("s3", endpoint_url=url)

    def put(self, path: str, lines: list[str] | bytes) -> None:
        content = lines if isinstance(lines, bytes) else "".join(f"{x}\n" for x in lines).encode()
        if path.endswith(".gz") and not isinstance(lines, bytes):
            content = gzip.compress(content)
        self.client.put_object(Bucket="shop", Key=f"{self.prefix}/{path}", Body=content)

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket="shop", Key=f"{self.prefix}/{path}")


@pytest.fixture
def bucket(endpoint, tmp_path, monkeypatch) -> Bucket:  # noqa: F811
    for name in [name for name in os.environ if name.startswith("RETAIL_")]:
        monkeypatch.delenv(name)
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    # fsspec keeps connections by everything but the endpoint.
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = Bucket(endpoint, tmp_path.name.replace("_", "-") + "/landing zone")
    monkeypatch.setenv("RETAIL_EVENTS", f"s3://shop/{bucket.prefix}/")
    monkeypatch.setenv("RETAIL_DATA_DIR", str(tmp_path))
    # What is put there is whole.
    monkeypatch.setenv("RETAIL_EVENT_SETTLE_SECONDS", "0")
    return bucket


@pytest.fixture
def loader(bucket, tmp_path, new_lake) -> Iterator[EventLoader]:
    new_lake(tmp_path)
    with EventLoader.open(Settings()) as loader:
        yield loader


def outcomes(loader: EventLoader) -> dict[str, tuple[str, int, int, int, int]]:
    return {
        path: (file.outcome, file.lines, file.accepted, file.dead_lettered, file.duplicate)
        for path, file in loader.ingest().files.items()
    }


def test_files_that_land_grow_and_are_replaced_in_a_bucket_are_ingested_once(bucket, loader):
    assert outcomes(loader) == {}, "nothing is there yet"
    bucket.put(f"{DAY}/a b.jsonl", [event(1), "null"])
    bucket.put(f"{DAY}/deep/down/ä.jsonl.gz", [event(2), event(1)])
    bucket.put("notes.txt", [event(3)])
    bucket.put(".hidden/c.jsonl", [event(3)])
    # The listing is not the one of before.
    assert outcomes(loader) == {
        f"{DAY}/a b.jsonl": ("new", 2, 1, 1, 0),
        f"{DAY}/deep/down/ä.jsonl.gz": ("new", 2, 1, 0, 1),
    }
    assert outcomes(loader) == {}
    assert loader.events("event_id, received_date::VARCHAR") == [("E1", DAY), ("E2", DAY)]

    bucket.put(f"{DAY}/a b.jsonl", [event(1), "null", event(4)])
    bucket.put(f"{DAY}/deep/down/ä.jsonl.gz", [event(5)])
    assert outcomes(loader) == {
        f"{DAY}/a b.jsonl": ("grown", 1, 1, 0, 0),
        f"{DAY}/deep/down/ä.jsonl.gz": ("replaced", 1, 1, 0, 0),
    }
    assert loader.events() == [("E1",), ("E4",), ("E5",)]

    bucket.put(f"{DAY}/a b.jsonl", [event(6)])
    assert outcomes(loader) == {f"{DAY}/a b.jsonl": ("replaced", 1, 1, 0, 0)}
    bucket.delete(f"{DAY}/a b.jsonl")
    assert outcomes(loader) == {}
    assert loader.events() == [("E5",), ("E6",)], "what was ingested stays"


def test_another_connection_sees_the_same_bucket(bucket, loader):
    bucket.put(f"{DAY}/a.jsonl", [event(1)])
    assert list(pending_event_files(loader.settings).files) == [f"{DAY}/a.jsonl"]
    bucket.put(f"{DAY}/b.jsonl", [event(2)])
    assert list(pending_event_files(loader.settings).files) == [
        f"{DAY}/a.jsonl",
        f"{DAY}/b.jsonl",
    ]


def test_a_broken_file_in_a_bucket_fails_by_name_and_alone(bucket, loader):
    bucket.put(f"{DAY}/bad.jsonl.gz", gzip.compress(event(1).encode() * 100)[:-9])
    bucket.put(f"{DAY}/good.jsonl", [event(2)])
    found = loader.ingest()
    assert list(found.failed) == [f"{DAY}/bad.jsonl.gz"]
    assert "no whole gzip file" in found.failed[f"{DAY}/bad.jsonl.gz"]
    assert loader.events() == [("E2",)]


def test_a_file_that_is_gone_again_when_it_is_read_fails_by_name_and_alone(bucket, loader):
    bucket.put(f"{DAY}/a.jsonl", [event(1)])
    bucket.put(f"{DAY}/b.jsonl", [event(2)])
    paths = list(pending_event_files(loader.settings).files)
    bucket.delete(f"{DAY}/a.jsonl")
    found = ingest(loader.session, loader.settings, paths)
    assert list(found.failed) == [f"{DAY}/a.jsonl"]
    assert loader.events() == [("E2",)]


def test_a_bucket_that_cannot_be_reached_is_one_sentence(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("RETAIL_EVENTS", "s3://shop/elsewhere")
    with pytest.raises(RetailAssetsError, match="event files at s3://shop/elsewhere cannot be"):
        pending_event_files(Settings())
