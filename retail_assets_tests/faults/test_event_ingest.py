"""Event files ingested exactly once: killed anywhere, by several at once, in any order."""

from pathlib import Path

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.event_files import event, write_events
from retail_assets_tests.faults.batch import contents
from retail_assets_tests.faults.boundaries import run_undisturbed, run_watched
from retail_assets_tests.faults.ingestion import SMALL, ingest_events, one_by_one, race
from retail_assets_tests.faults.kill import Rows, Walk, copy, do
from retail_assets_tests.processes import finish, start

pytestmark = pytest.mark.processes

RACERS = 3
BAD = ("", "null", "{", event(0, order_value_gbp=-1), event(0, region=None), "\x00")


def first_files(settings: Settings) -> None:
    """A file of several portions, one that will grow, one that will be another, a packed one."""
    write_events(settings, "2026-10-12/long.jsonl", [*map(event, range(12)), *BAD])
    write_events(settings, "2026-10-12/grows.jsonl", [event(20), BAD[0], event(21)])
    write_events(settings, "2026-10-13/replaced.jsonl", [*map(event, range(30, 36)), BAD[1]])
    write_events(settings, "2026-10-13/packed.jsonl.gz", [*map(event, range(40, 44)), event(1)])
    write_events(settings, "2026-10-13/moved.jsonl", [event(50), event(51)])
    write_events(settings, "2026-10-13/baskets.jsonl", [basket(52, P1=3, P2=4), basket(53, P1=6)])


def later_files(settings: Settings) -> None:
    """Growth, replacement, what was there under names that come first, duplicates and bad lines."""
    write_events(
        settings,
        "2026-10-12/grows.jsonl",
        [event(20), BAD[0], event(21), *map(event, range(22, 30)), *BAD, event(30)],
    )
    write_events(
        settings,
        "2026-10-13/replaced.jsonl",
        [*map(event, range(34, 38)), event(33, order_value_gbp=11), *BAD[:2], event(2)],
    )
    write_events(settings, "2026-10-13/a copy of moved.jsonl", [event(50), event(51)])
    # Received before the others: these count, and what they had already counted does not.
    write_events(
        settings,
        "2026-10-11/early.jsonl",
        [event(n, event_timestamp="2026-10-11T10:00:00Z") for n in (0, 21, 31, 41, 60, 60)],
    )
    later = {"order_id": "O52", "event_timestamp": "2026-10-15T10:00:00Z"}
    write_events(
        settings,
        "2026-10-14/baskets.jsonl",
        [basket(53, P1=6), basket(54, **later, P2=4), basket(55, P1=1, P2=2), basket(56, P1=None)],
    )
    write_events(settings, "2026-10-14/no newline.jsonl", f"{event(70)}\n{event(71)}".encode())
    write_events(settings, "2026-10-14/broken.jsonl.gz", b"\x1f\x8b\x08")
    write_events(
        settings,
        "2026-10-14/new.jsonl",
        [*map(half_a_block, range(80, 86)), event(86, surprise=1), event(99, event_id=None), *BAD],
    )


def basket(
    number: int,
    *,
    order_id: str | None = None,
    event_timestamp: str | None = None,
    **values: int | None,
) -> str:
    """An order of one item of some products, each with its value."""
    lines = [
        {"product_id": product, "quantity": 1, "order_value_gbp": value}
        for product, value in values.items()
    ]
    return event(
        number,
        order_id=order_id or f"O{number}",
        event_timestamp=event_timestamp,
        order_value_gbp=sum(value or 1 for value in values.values()),
        lines=lines,
    )


def half_a_block(number: int) -> str:
    """A line so long that portions end with a line: then none is left open to tell of the rest."""
    length = SMALL.block_bytes // 2 - 1
    return event(number, note="").replace('""', f'"{"x" * (length - len(event(number, note="")))}"')


@pytest.fixture(scope="module")
def first_day(tmp_path_factory, new_lake) -> Settings:
    """A lake without a row, and the first files."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("first"), threads=1)
    new_lake(settings.data_dir)
    first_files(settings)
    return settings


@pytest.fixture(scope="module")
def next_day(tmp_path_factory, first_day) -> Settings:
    """The lake with the first files ingested, and the later ones."""
    settings = copy(first_day, tmp_path_factory.mktemp("next") / "data")
    do(ingest_events, settings)
    later_files(settings)
    return settings


def without_versions(found: Rows) -> Rows:
    """All tables; how often a day was changed depends on who took what in when."""
    found = dict(found)
    found["changed_days"] = [row[:2] for row in found["changed_days"]]
    found["published_days"] = [(row[0], row[1], row[3]) for row in found["published_days"]]
    return found


def assert_balanced(settings: Settings) -> None:
    """Every line of every file is accepted, dead-lettered or a duplicate, and the tables agree."""
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        files = connection.execute(
            "SELECT (path, version), lines, accepted, dead_lettered, duplicate, copy_of"
            " FROM event_files WHERE retracted_at IS NULL"
        ).fetchall()
        held = {
            table: dict(
                connection.execute(
                    f"SELECT (source_name, version), count(*) FROM {table} GROUP BY 1"
                ).fetchall()
            )
            for table in ("raw_events", "enriched_events", "dead_letter_events")
        }
        (twins,) = connection.execute(
            "SELECT count(*) - count(DISTINCT event_id) FROM enriched_events"
        ).fetchone() or (None,)
    assert files
    for path, lines, accepted, dead, duplicate, copy_of in files:
        assert lines == accepted + dead + duplicate, path
        assert min(lines, accepted, dead, duplicate) >= 0, path
        assert held["raw_events"].get(path, 0) == (lines if copy_of is None else 0), path
        assert held["enriched_events"].get(path, 0) == accepted, path
        assert held["dead_letter_events"].get(path, 0) == dead, path
    assert twins == 0


@pytest.fixture(scope="module")
def walk(tmp_path_factory, next_day) -> Walk:
    return Walk.of(ingest_events, (), next_day, tmp_path_factory.mktemp("walk"))


@pytest.mark.slow
def test_killed_at_any_commit_boundary_the_next_ingest_gives_the_same_tables(walk):
    followed = ["publish live_orders", "publish live_revenue"]
    assert walk.commits() == [*["ingest event files"] * 4, *followed]
    assert len(walk.boundaries) == 3 * len(walk.commits())
    assert walk.wrong_after_a_kill_at_a_boundary() == {}


@pytest.mark.slow
def test_killed_in_the_middle_of_a_commit_all_of_it_is_there_or_nothing(walk, tmp_path):
    assert walk.wrong_after_a_kill_in_a_commit(tmp_path) == {}


def test_a_second_ingest_commits_nothing_but_that_a_file_still_cannot_be_read(walk, tmp_path):
    settings = copy(walk.calm, tmp_path / "twice")
    assert_balanced(settings)
    report = tmp_path / "boundaries"
    values = settings.model_dump()
    assert finish([start(run_watched, ingest_events, values, (), str(report))]) == [0]
    assert {name.partition(" of ")[2] for name in report.read_text().splitlines()} == {
        "ingest event files"
    }
    assert contents(settings) == walk.expected


@pytest.mark.slow
def test_several_that_take_the_same_files_in_at_once_give_the_tables_of_one(
    walk, next_day, tmp_path
):
    busy = copy(next_day, tmp_path / "busy")
    started = tmp_path / "started"
    started.mkdir()
    values = busy.model_dump()
    racers = [
        start(run_undisturbed, race, values, (str(started), name, RACERS)) for name in range(RACERS)
    ]
    assert finish(racers) == [0] * RACERS
    assert without_versions(contents(busy)) == without_versions(walk.expected)
    assert_balanced(busy)


def test_files_ingested_backwards_one_by_one_give_the_tables_of_all_at_once(first_day, tmp_path):
    together = copy(first_day, tmp_path / "together")
    later_files(together)
    Path(together.events_location, "2026-10-14/broken.jsonl.gz").unlink()
    backwards = copy(together, tmp_path / "backwards")
    do(ingest_events, together)
    assert_balanced(together)
    files = [
        str(path.relative_to(together.events_location))
        for path in sorted(Path(together.events_location).rglob("*.jsonl*"))
    ]
    # Each file comes before those that it came after.
    ingesting = start(run_undisturbed, one_by_one, backwards.model_dump(), files[::-1])
    assert finish([ingesting]) == [0]
    assert without_versions(contents(backwards)) == without_versions(contents(together))
    assert_balanced(backwards)
