"""A session that loads the saved filter of events knows what one that reads all of them knows."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from retail_assets import tables
from retail_assets.ingest.events import cache as event_cache
from retail_assets.ingest.events.cache import SAVED, EventCache
from retail_assets.lake.connection import Lake
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.ingest.events.test_cache import accepted, batch

Opened = Callable[[], EventLoader]


@pytest.fixture
def loaders(settings, lake) -> Iterator[Opened]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(EventLoader.open(settings, cached=True))


@pytest.fixture
def loads(monkeypatch) -> list[bool]:
    """Whether each session could use the saved filter. Each batch saves it."""
    monkeypatch.setattr(event_cache, "MOST_UNSAVED", 1)
    found: list[bool] = []
    load = EventCache._load_filter

    def noted(self: EventCache, now: int) -> bool:
        found.append(load(self, now))
        return found[-1]

    monkeypatch.setattr(EventCache, "_load_filter", noted)
    return found


def saved(lake: Lake) -> Path:
    return Path(lake.spill_dir).parent / SAVED


def test_the_next_session_knows_all_events_without_reading_them(loaders, loads, lake):
    first = loaders()
    accepted(first, batch(0, event(1), event(2)))
    accepted(first, batch(2, event(3)))
    # The third batch saved what the first two had; these came after that, of it and of another.
    before = saved(lake).read_bytes()
    accepted(loaders(), batch(0, event(4), part="orders:1"))
    saved(lake).write_bytes(before)
    loads.clear()
    found = loaders()
    assert accepted(found, batch(3, *map(event, range(1, 6)))) == 1
    assert loads == [True]
    assert found.events() == [(f"E{number}",) for number in range(1, 6)]


@pytest.mark.parametrize("harm", ["damaged", "cut", "another lake", "another past", "expired"])
def test_a_file_that_is_not_true_of_the_lake_is_not_used(loaders, loads, lake, harm):
    first = loaders()
    accepted(first, batch(0, event(1)))
    accepted(first, batch(1, event(2)))
    path = saved(lake)
    line, _, data = path.read_bytes().partition(b"\n")
    about = json.loads(line)
    assert about["count"] == 1
    if harm == "damaged":
        data = data[:100] + bytes([data[100] ^ 255]) + data[101:]
    elif harm == "cut":
        data = data[:-1]
    elif harm == "another lake":
        about["lake"] = "another"
    elif harm == "another past":
        about["committed_us"] += 1
    else:
        with lake.connect() as connection:
            connection.execute("CALL ducklake_expire_snapshots('lake', older_than => now())")
    path.write_bytes(json.dumps(about).encode() + b"\n" + data)
    loads.clear()
    found = loaders()
    assert accepted(found, batch(2, event(1), event(2), event(3))) == 1
    assert loads == [False]


def test_a_saved_filter_that_the_lake_has_outgrown_is_made_again(loaders, loads, monkeypatch):
    monkeypatch.setattr(event_cache, "LEAST_EVENTS", 2)
    first = loaders()
    for number in range(3):
        accepted(first, batch(number, event(number)))
    accepted(loaders(), batch(0, *map(event, range(10, 20)), part="orders:1"))
    found = loaders()
    assert accepted(found, batch(3, *map(event, range(20)))) == 7
    filters = _filters(found)
    assert filters[tables.ENRICHED_EVENTS.name].room > 20


def test_a_folder_that_cannot_be_written_to_stops_nothing(loaders, loads, lake, caplog):
    saved(lake).with_name(f"{SAVED}.new").mkdir()
    loader = loaders()
    for number in range(3):
        assert accepted(loader, batch(number, event(number))) == 1
    assert "cannot be written" in caplog.text
    assert not saved(lake).exists()


def _filters(loader: EventLoader) -> dict[str, event_cache._Filter]:
    found = loader.session.cache
    assert isinstance(found, EventCache)
    return found._filters
