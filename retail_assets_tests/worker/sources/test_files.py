"""The pipeline of files: each arrives, whether notified, found, compressed, or after a failure."""

import gzip
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pytest
import watchfiles

from retail_assets.ingest.event_files import pending as event_pending
from retail_assets.ingest.event_files.folder import EventFolder
from retail_assets.ingest.events.batch import BatchResult, EventBatch
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets.worker.metrics import Metrics
from retail_assets.worker.sources import files
from retail_assets.worker.sources.files import NAME, SCAN, WATCH, FilePipeline
from retail_assets_tests.event_files import EventLoader, event

HANG_SECONDS = 120
NEVER = 1e6

StartPipeline: TypeAlias = Callable[[], Metrics]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Files of tests are still, unless they are written to now."""
    return settings.model_copy(update={"event_settle_seconds": 3600})


@pytest.fixture
def seen(settings: Settings, lake: Lake) -> Iterator[EventLoader]:
    with EventLoader.open(settings) as seen:
        yield seen


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many scans, and no rest after a failure."""
    scan_every(monkeypatch, 0.1)
    monkeypatch.setattr(files, "RETRY_SECONDS", 0.01)


@pytest.fixture
def start_pipeline(seen: EventLoader) -> Iterator[StartPipeline]:
    """Starts a pipeline, waits until it has looked at the folder once, and ends it."""
    pipelines: list[FilePipeline] = []

    def start() -> Metrics:
        metrics = Metrics()
        pipelines.append(FilePipeline(seen.settings, seen.lake, metrics))
        pipelines[-1].start()
        until(lambda: "event_files_left_alone" in metrics.gauges or metrics.problems)
        return metrics

    yield start
    for pipeline in pipelines:
        pipeline.stop()


def scan_every(patch: pytest.MonkeyPatch, seconds: float) -> None:
    patch.setattr(files, "SCAN_SECONDS", seconds)
    patch.setattr(files, "SCAN_PAUSE", 0)


def until(what: Callable[[], object]) -> None:
    """Wait for something to be so; a red test instead of a stuck one."""
    deadline = time.monotonic() + HANG_SECONDS
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        # A look takes longer than a batch of the pipeline.
        time.sleep(0.1)


def test_what_lies_there_before_the_start_is_ingested(seen, start_pipeline, monkeypatch):
    scan_every(monkeypatch, NEVER)
    seen.write("a.jsonl", [event(1), "{"])
    metrics = start_pipeline()
    until(lambda: seen.events() == [("E1",)])
    until(lambda: NAME in metrics.sources)
    assert vars(metrics.sources[NAME]) == {
        "lines": 2,
        "accepted": 1,
        "dead_lettered": 1,
        "duplicate": 0,
    }
    # Nobody knows when it was offered.
    assert metrics.snapshot()["latency_p50_ms"] is None


def test_a_file_that_is_written_later_arrives_by_notification(seen, start_pipeline, monkeypatch):
    scan_every(monkeypatch, NEVER)
    metrics = start_pipeline()
    numbers = count()

    def arrives() -> bool:
        # Those from before the operating system was asked to tell are not told of.
        number = next(numbers)
        seen.write(f"{number}.jsonl", [event(number)])
        return bool(seen.events())

    until(arrives)
    until(lambda: metrics.snapshot()["latency_p50_ms"] is not None)


def test_files_that_land_with_their_folder_arrive_without_a_scan(
    seen, start_pipeline, monkeypatch, tmp_path
):
    scan_every(monkeypatch, NEVER)
    start_pipeline()
    numbers = count()

    def arrives() -> bool:
        # A folder that is moved here has its files already: nobody tells of them.
        number = next(numbers)
        made = tmp_path / f"made {number}" / "of a day"
        made.mkdir(parents=True)
        (made / f"{number}.jsonl").write_text(f"{event(number)}\n")
        made.parent.rename(Path(seen.settings.events_location, f"2026-10-{number + 1:02}"))
        return bool(seen.events())

    until(arrives)


def test_what_is_not_told_of_arrives_by_a_later_scan(seen, start_pipeline, monkeypatch):
    monkeypatch.setattr(FilePipeline, "_watch", lambda _: None)
    metrics = start_pipeline()
    for number in range(3):
        seen.write(f"{number}.jsonl", [event(number)])
        until(lambda number=number: len(seen.events()) == number + 1)
    assert metrics.problems == {}


def test_a_compressed_file_arrives_once_it_is_settled(seen, start_pipeline):
    compressed = gzip.compress(f"{event(1)}\n".encode())
    seen.write("a.jsonl.gz", compressed[:-9], modified_ns=time.time_ns())
    start_pipeline()
    seen.write("b.jsonl", [event(2)])
    until(lambda: seen.events() == [("E2",)])
    seen.write("a.jsonl.gz", compressed)
    until(lambda: seen.events() == [("E1",), ("E2",)])
    assert seen.rows("FROM failed_event_files") == []


def test_a_last_line_without_newline_arrives_once_its_file_is_settled(seen, start_pipeline):
    content = f"{event(1)}\n{event(2)}".encode()
    seen.write("a.jsonl", content, modified_ns=time.time_ns())
    start_pipeline()
    until(lambda: seen.events() == [("E1",)])
    seen.write("a.jsonl", content)
    until(lambda: seen.events() == [("E1",), ("E2",)])


@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        (NAME, Lake, "transaction"),
        (SCAN, event_pending, "pending_event_files"),
        (WATCH, watchfiles, "watch"),
    ],
)
def test_an_iteration_that_fails_is_noted_and_the_pipeline_goes_on(
    name, owner, attribute, seen, start_pipeline, monkeypatch, caplog
):
    work = getattr(owner, attribute)
    mended = threading.Event()

    def failing(*arguments: Any, **options: Any) -> Any:
        if not mended.is_set():
            raise duckdb.IOException("disk full")
        return work(*arguments, **options)

    seen.write("a.jsonl", [event(1)])
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, failing)
        metrics = start_pipeline()
        until(lambda: "disk full" in metrics.problems.get(name, ""))
        assert "disk full" in caplog.text
        mended.set()
        until(lambda: not metrics.problems)
        seen.write("b.jsonl", [event(2)])
        until(lambda: seen.events() == [("E1",), ("E2",)])


def test_a_file_that_fails_each_transaction_stops_no_other_and_is_logged(
    seen, start_pipeline, monkeypatch, caplog
):
    apply = EventBatch.apply

    def breaking(batch: EventBatch) -> BatchResult:
        if ("odd.jsonl",) in batch._connection.execute(
            "SELECT source_name FROM temp.main.staged_lines"
        ).fetchall():
            raise duckdb.InternalException("it met something odd")
        return apply(batch)

    monkeypatch.setattr(EventBatch, "apply", breaking)
    for name in ("a", "odd", "z"):
        seen.write(f"{name}.jsonl", [event(ord(name[0]))])
    metrics = start_pipeline()
    until(lambda: seen.events() == [("E122",), ("E97",)])
    until(lambda: metrics.gauges["event_files_left_alone"] == 1)
    [(path, attempts)] = seen.rows("SELECT path, attempts FROM failed_event_files")
    # A scan may have been on its way when it failed for the last time.
    assert (path, attempts >= event_pending.MAX_ATTEMPTS) == ("odd.jsonl", True)
    assert "odd.jsonl cannot be ingested: it met something odd" in caplog.text
    assert metrics.problems == {}


@pytest.fixture
def pipeline(seen: EventLoader) -> FilePipeline:
    """A pipeline that has not begun: the test takes its iterations, over `seen`'s connection."""
    return FilePipeline(seen.settings, seen.lake, Metrics())


def test_a_new_field_is_warned_about_once(seen, pipeline, caplog):
    for number, changed in enumerate(({}, {"note": "x"}, {"note": "y"})):
        seen.write(f"{number}.jsonl", [event(number, **changed)])
        pipeline._notice([f"{number}.jsonl"], time.time())
        pipeline._ingest_once(seen.session)
    assert [record.getMessage() for record in caplog.records] == [
        "Fields that no event had before: note (VARCHAR)"
    ]


def notice(pipeline: FilePipeline, seen: EventLoader, *numbers: int) -> None:
    for number in numbers:
        seen.write(f"{number}.jsonl", [event(number)])
        pipeline._notice([f"{number}.jsonl"], time.time())


def take(seen: EventLoader, pipeline: FilePipeline) -> set[int]:
    """Take a turn; returns the numbers of all events that are there then."""
    pipeline._ingest_once(seen.session)
    return {int(name.removeprefix("E")) for (name,) in seen.events()}


def test_what_was_noticed_first_is_ingested_first(seen, pipeline, monkeypatch):
    monkeypatch.setattr(files, "FILES_AT_ONCE", 2)
    notice(pipeline, seen, 1, 2, 3)
    notice(pipeline, seen, 4, 1)
    assert take(seen, pipeline) == {1, 2}
    assert take(seen, pipeline) == {1, 2, 3, 4}


def test_pipes_and_links_are_left_alone_and_keep_nobody_waiting(seen, pipeline, tmp_path):
    seen.write("a.jsonl", [event(1)])
    folder = Path(seen.settings.events_location)
    os.mkfifo(folder / "pipe.jsonl")
    (tmp_path / "secret.jsonl").write_text(event(2))
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    pipeline._notice(["pipe.jsonl", "link.jsonl", "a.jsonl"], time.time())
    assert take(seen, pipeline) == {1}
    assert seen.rows("SELECT path FROM failed_event_files") == []
    pipeline._scan_once(seen.connection)
    assert pipeline._metrics.gauges["event_files_left_alone"] == 2


def test_the_end_does_not_wait_for_a_disk_that_does_not_answer(seen, monkeypatch, caplog):
    monkeypatch.setattr(files, "STOP_SECONDS", 0.1)
    asked, answers = threading.Event(), threading.Event()

    def open_never(*_: object) -> None:
        asked.set()
        answers.wait(HANG_SECONDS)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(EventFolder, "open", open_never)
    seen.write("a.jsonl", [event(1)])
    pipeline = FilePipeline(seen.settings, seen.lake, Metrics())
    pipeline.start()
    try:
        assert asked.wait(HANG_SECONDS)
        pipeline.stop()
        assert [thread.is_alive() for thread in pipeline._threads].count(True) >= 1
        assert all(thread.daemon for thread in pipeline._threads)
        assert "still being read or committed" in caplog.text
    finally:
        answers.set()
        for thread in pipeline._threads:
            thread.join(HANG_SECONDS)
    assert seen.events() == []


def test_what_a_scan_found_is_ingested_though_notices_do_not_end(seen, pipeline, monkeypatch):
    monkeypatch.setattr(files, "SHARE_FILES", 2)
    seen.write("before.jsonl", [event(1)])
    seen.write("packed.jsonl.gz", [event(2)])
    seen.write("without newline.jsonl", event(3).encode())
    seen.write("large.jsonl", [event(4, note="x" * 1000)])
    pipeline._scan_once(seen.connection)
    numbers = count(10)
    results: set[int] = set()

    def all_found_are_taken() -> bool:
        notice(pipeline, seen, next(numbers))
        results.update(take(seen, pipeline))
        return results >= {1, 2, 3, 4}

    until(all_found_are_taken)
    assert max(results) >= 10, "those that are noticed arrive meanwhile"


@pytest.mark.parametrize(("limit", "value"), [("SHARE_FILES", 2), ("SHARE_BYTES", 200)])
def test_what_is_noticed_waits_for_a_small_share_of_what_a_scan_found(
    limit, value, seen, pipeline, monkeypatch
):
    monkeypatch.setattr(files, limit, value)
    monkeypatch.setattr(files, "SHARE_PAUSE", NEVER)
    for number in range(5):
        seen.write(f"{number}.jsonl", [event(number)])
    pipeline._scan_once(seen.connection)
    notice(pipeline, seen, 10)
    assert take(seen, pipeline) == {0, 1}
    assert pipeline._metrics.snapshot()["latency_p50_ms"] is None
    assert take(seen, pipeline) == {0, 1, 10}
    assert pipeline._metrics.snapshot()["latency_p50_ms"] is not None
    notice(pipeline, seen, 11)
    assert take(seen, pipeline) == {0, 1, 10, 11}
    assert take(seen, pipeline) == {0, 1, 2, 3, 4, 10, 11}
