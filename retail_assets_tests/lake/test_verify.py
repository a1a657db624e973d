"""Damage to the files of a lake is found and named, its rows come back, and a backup can go on."""

import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets.consumers.framework import consume
from retail_assets.consumers.registry import all_consumers
from retail_assets.errors import RetailAssetsError
from retail_assets.lake import checksums
from retail_assets.lake import verify as work
from retail_assets.lake.checksums import last_verification, note_new_files, opened_notes
from retail_assets.lake.connection import Lake
from retail_assets.lake.files import FileStore, LakeFile, files_after
from retail_assets.lake.maintenance import maintain
from retail_assets.lake.verify import verify
from retail_assets.settings import Settings
from retail_assets_tests.cli.test_cli import Command
from retail_assets_tests.conftest import order_row, write_export_to
from retail_assets_tests.event_files import EventLoader, event
from retail_assets_tests.platform import DAGSTER_CALLS_ITSELF, DAYS, FIRST, published_platform

pytestmark = DAGSTER_CALLS_ITSELF

EVENT_DAY = "2026-10-12"
DAYS_NAMED = f"{FIRST} to {DAYS[-1]}"
DAYS_TOLD = f"--start {FIRST} --end {DAYS[-1]}"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with orders, events and consumers, all of whose rows are in files."""
    folder = tmp_path_factory.mktemp("verified")
    settings = Settings(data_dir=folder)
    with published_platform(settings, tmp_path_factory), EventLoader.open(settings) as loader:
        loader.write(f"{EVENT_DAY}/a.jsonl", [event(1), event(2, order_value_gbp=700), "no event"])
        loader.ingest()
        for consumer in all_consumers(settings):
            consume(loader.lake, loader.connection, consumer)
        maintain(loader.lake, keep_days=30)
        note_new_files(loader.lake, loader.connection)
    return folder


@pytest.fixture
def whole(settings: Settings, model: Path) -> Lake:
    """A copy of it, in another folder."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    return Lake.from_settings(settings)


def named(lake: Lake) -> list[LakeFile]:
    with lake.connect(read_only=True) as connection:
        return files_after(lake, connection, -1)


def files_of(lake: Lake, table: str) -> list[Path]:
    found = [Path(file.location(lake)) for file in named(lake) if file.table == table]
    assert found
    return found


COMPARED = (
    *("products", "raw_orders", "rejected_orders", "completed_orders", "daily_revenue"),
    *("raw_events", "enriched_events", "dead_letter_events", "live_orders", "inventory_levels"),
)


def rows(lake: Lake, at: int | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of some tables, without what tells when."""
    with lake.connect(read_only=True, at=at) as connection:
        return {
            table: connection.execute(
                "SELECT COLUMNS(c -> c NOT IN ('processed_at', 'updated_at', 'ingested_at'))"
                f" FROM {table} ORDER BY ALL"
            ).fetchall()
            for table in COMPARED
        }


def test_a_whole_lake_is_verified_and_status_says_so(whole: Lake, command: Command) -> None:
    code, out, err = command("status", "--format", "csv")
    assert "last verified,never: run `retail-assets verify`" in out
    code, out, err = command("verify", "--deep")
    count, size = len(named(whole)), sum(file.size_bytes for file in named(whole))
    assert (code, err.strip()) == (0, "")
    assert out == (
        f"{count} files of {size:,} bytes are verified, {count} of them had a checksum that was"
        " compared; 0 more have one now.\n"
    )
    code, out, err = command("status", "--format", "csv")
    assert f'"last verified, checksums",{count}\n' in out
    assert "files damaged,0\n" in out
    [path] = files_of(whole, "products")
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes([content[4] ^ 1]) + content[5:])
    # Only --deep reads what is between the ends of a file.
    assert [command("verify", *option)[0] for option in ([], ["--deep"])] == [0, 1]
    path.unlink()
    command("verify")
    code, out, err = command("status", "--format", "csv")
    assert '"last verified, checksums",not compared\n' in out
    assert "files damaged,1\n" in out


KINDS: dict[str, Callable[[bytes, int], bytes | None]] = {
    "missing": lambda _, __: None,
    "empty": lambda _, __: b"",
    "cut": lambda content, n: content[: n % len(content)],
    "grown": lambda content, n: content + bytes(1 + n % 100),
    # Its footer is whole, and finds what it speaks of by counting back from the end.
    "shifted": lambda content, n: content[:4] + bytes(1 + n % 100) + content[4:],
    "zeros": lambda content, _: bytes(len(content)),
    "footer": lambda content, n: content[:-8] + bytes([n % 256] * 4) + b"PAR1",
    "bit": lambda content, n: (
        content[: n % len(content)]
        + bytes([content[n % len(content)] ^ (1 << n % 8)])
        + content[n % len(content) + 1 :]
    ),
}


@hypothesis_settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(which=st.integers(min_value=0), kind=st.sampled_from(sorted(KINDS)), n=st.integers(0, 10**6))
def test_whatever_happened_to_a_file_is_found_in_it_alone(
    whole: Lake, which: int, kind: str, n: int
) -> None:
    files = named(whole)
    file = files[which % len(files)]
    path = Path(file.location(whole))
    content = path.read_bytes()
    damaged = KINDS[kind](content, n)
    if damaged == content:
        return
    try:
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        [damage] = verify(whole, deep=True).damages
        shallow = verify(whole, deep=False)
    finally:
        path.write_bytes(content)
    assert (damage.table, damage.location, damage.file.id) == (file.table, str(path), file.id)
    assert kind == "bit" or len(shallow.damages) == 1
    last = last_verification(whole)
    assert last is not None
    assert last.damaged == len(shallow.damages)


def test_the_days_of_a_damaged_file_are_named(whole: Lake) -> None:
    for table in ("raw_orders", "enriched_events", "products"):
        for path in files_of(whole, table):
            path.unlink()
    days = {item.table: (item.first, item.last) for item in verify(whole, deep=False).damages}
    with whole.connect(read_only=True) as connection:
        [received] = connection.execute(
            "SELECT min(received_date), max(received_date) FROM raw_events"
        ).fetchall()
    assert days == {
        "raw_orders": (FIRST, DAYS[-1]),
        "enriched_events": received,
        "products": (None, None),
    }


def test_a_checksum_is_noted_for_each_new_file_and_only_for_those(
    whole: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = len(named(whole))
    opened: list[int] = []
    open_file = FileStore.open
    monkeypatch.setattr(
        FileStore, "open", lambda store, file: opened.append(file.id) or open_file(store, file)
    )
    with EventLoader.open(settings) as loader:
        loader.write(f"{EVENT_DAY}/b.jsonl", [event(n) for n in range(10, 40)])
        loader.ingest()
        fresh = len(named(whole)) - known
        assert fresh > 0
        note_new_files(whole, loader.connection)
    # Others would be read if the cost followed the lake.
    assert opened == sorted(file.id for file in named(whole))[-fresh:]
    with opened_notes(whole) as notes:
        assert notes.execute("SELECT count(*) FROM file").fetchone() == (known + fresh,)
        assert notes.execute("SELECT max(last_file_id) FROM noted").fetchone() == (
            max(file.id for file in named(whole)),
        )


def test_files_without_a_checksum_get_one_and_those_of_gone_files_are_forgotten(
    whole: Lake,
) -> None:
    checksums.checksums_path(whole).unlink()
    count = len(named(whole))
    first = verify(whole, deep=False)
    assert (first.summary.compared, first.noted) == (0, count)
    assert checksums.checksums_path(whole).stat().st_mode & 0o777 == 0o600
    with opened_notes(whole) as notes, notes:
        notes.execute("UPDATE file SET path = 'gone' WHERE path LIKE 'main/products/%'")
    second = verify(whole, deep=True)
    assert (second.summary.compared, second.noted, second.damages) == (count - 1, 1, ())
    with opened_notes(whole) as notes:
        assert notes.execute("SELECT count(*) FROM file WHERE path = 'gone'").fetchone() == (0,)


def test_what_can_be_recomputed_comes_back_by_the_commands_that_are_printed(
    whole: Lake, command: Command
) -> None:
    before = rows(whole)
    with whole.connect(read_only=True) as connection:
        [(snapshot,)] = connection.execute("SELECT id FROM lake.current_snapshot()").fetchall()
    gone = ["daily_revenue", "enriched_events", "live_orders", "products", "raw_orders"]
    for table in gone:
        for path in files_of(whole, table):
            path.unlink()

    [where] = files_of(whole, "raw_orders")
    code, out, err = command("verify")
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("raw_orders, ")] == [
        f"raw_orders, {DAYS_NAMED}: {where} is missing (comes back by: backfill --all)"
    ]
    first, *commands = [line for line in err.splitlines() if line.startswith("retail-assets ")]
    assert first == "retail-assets verify --quarantine"
    assert f"retail-assets backfill {DAYS_TOLD} --all" in commands

    code, out, err = command(*shlex.split(first)[1:])
    assert (code, f"{len(gone)} of them are taken out of the lake" in err) == (1, True)
    for line in commands:
        code, out, err = command(*shlex.split(line)[1:])
        assert (line, code, err.strip()) == (line, 0, "")
    assert rows(whole) == before
    report = verify(whole, deep=True)
    assert [(damage.table, damage.newest) for damage in report.damages] == [
        (table, False) for table in sorted(gone, key=[file.table for file in named(whole)].index)
    ]
    with pytest.raises(Exception, match="No such file"):
        rows(whole, at=snapshot)


def test_what_has_no_other_source_comes_from_the_backup_alone(
    whole: Lake, command: Command
) -> None:
    before = rows(whole)
    [path] = files_of(whole, "raw_events")
    content = path.read_bytes()
    path.write_bytes(content[:100])
    code, out, err = command("verify", "--quarantine")
    assert (code, "raw_events" in out, "comes back by: backup" in out) == (1, True, True)
    assert "can only come from a backup" in err
    path.write_bytes(content)
    code, out, err = command("verify", "--deep")
    assert (code, rows(whole)) == (0, before)


def test_nothing_is_taken_out_whose_export_is_gone(whole: Lake, settings: Settings) -> None:
    write_export_to(settings.exports_dir, DAYS[1], []).unlink()
    for path in files_of(whole, "raw_orders"):
        path.write_bytes(b"")
    count = len(named(whole))
    from retail_assets.cli import recovery

    damages = verify(whole, deep=False).damages
    with (
        whole.connect() as connection,
        pytest.raises(RetailAssetsError, match=f"The export of {DAYS[1]} is no longer in"),
    ):
        recovery.quarantine(settings, whole, connection, damages)
    assert [file.newest for file in named(whole)] == [True] * count


def test_damage_to_a_file_that_upkeep_has_replaced_meanwhile_is_none(
    whole: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    [path] = files_of(whole, "products")
    monkeypatch.setattr(work, "named_files", lambda *_: [])
    path.unlink()
    assert verify(whole, deep=False).damages == ()


@pytest.mark.parametrize("kind", ["missing", "empty", "junk", "page", "unread page"])
def test_a_damaged_catalog_is_one_sentence(whole: Lake, command: Command, kind: str) -> None:
    count = len(named(whole))
    catalog = Path(whole.catalog)
    content = catalog.read_bytes()
    if kind == "missing":
        catalog.unlink()
    else:
        page = len(content) // 4096 // 2 * 4096
        with closing(sqlite3.connect(catalog)) as opened:
            # Only upkeep reads this table.
            (number,) = opened.execute(
                "SELECT rootpage FROM sqlite_master"
                " WHERE name = 'ducklake_files_scheduled_for_deletion'"
            ).fetchone()
        unread = (number - 1) * 4096
        catalog.write_bytes(
            {
                "empty": b"",
                "junk": b"x" * len(content),
                "page": content[:page] + b"\xff" * 8192 + content[page + 8192 :],
                "unread page": content[:unread] + b"\xff" * 4096 + content[unread + 4096 :],
            }[kind]
        )
    code, out, err = command("verify")
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: The catalog {catalog} is ")
    assert "restore it from a backup (docs/operations.md" in err
    assert (err.count("\n"), "Traceback" in err) == (1, False)
    if kind in ("missing", "empty"):
        assert f"is {kind}, but {count} Parquet files of a lake lie in {whole.data_path}" in err


VACUUM = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('VACUUM INTO ?', sys.argv[2:])"


def back_up(settings: Settings, copy: Path, meanwhile: Callable[[], None]) -> None:
    """Back a lake up as docs/operations.md says; somebody writes meanwhile."""
    lake, backup = settings.lake_dir, copy / "lake"
    shutil.copytree(lake / "files", backup / "files")
    for name in ("catalog.sqlite", "catalog.sqlite.checksums"):
        # As the command `sqlite3` would, in a process of its own.
        subprocess.run([sys.executable, "-c", VACUUM, lake / name, backup / name], check=True)
    meanwhile()
    shutil.copytree(lake / "files", backup / "files", dirs_exist_ok=True)


@pytest.mark.processes
def test_a_backup_that_is_restored_elsewhere_goes_on_where_it_was(
    whole: Lake, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with EventLoader.open(settings) as loader:
        loader.write(f"{EVENT_DAY}/b.jsonl", [event(n) for n in range(10, 40)])
        loader.ingest()
        before = rows(whole)

        def meanwhile() -> None:
            loader.write(f"{EVENT_DAY}/c.jsonl", [event(n) for n in range(40, 80)])
            loader.ingest()
            maintain(whole, keep_days=30)

        elsewhere = Settings(data_dir=tmp_path_factory.mktemp("elsewhere"))
        back_up(settings, elsewhere.data_dir, meanwhile)
        newest = loader.tables()
    shutil.copytree(settings.data_dir / "events", elsewhere.data_dir / "events")
    for name in ("lake", "events"):
        shutil.rmtree(settings.data_dir / name)

    restored = Lake.from_settings(elsewhere)
    assert verify(restored, deep=True).damages == ()
    assert rows(restored) == before
    with EventLoader.open(elsewhere) as loader:
        # What came after the backup comes again, once.
        assert {path: file.outcome for path, file in loader.ingest().files.items()} == {
            f"{EVENT_DAY}/c.jsonl": "new"
        }
        assert loader.tables() == newest
        write_export_to(elsewhere.exports_dir, DAYS[0], [order_row("O9", DAYS[0])])
    maintain(restored, keep_days=30)
    assert verify(restored, deep=True).damages == ()
