"""What was committed is on the disk: files and folders are synced before the catalog names them."""

import ctypes
import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from retail_assets.lake import compaction, durability
from retail_assets.lake import connection as lake_connection
from retail_assets.lake.connection import Lake
from retail_assets.lake.maintenance import maintain
from retail_assets_tests.lake import work
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish, read
from retail_assets_tests.processes import finish, start

IMAGE_BYTES = 64_000_000


def write_on_every_path(lake: Lake) -> None:
    """Write files by inserts, deletes, flush, rewrite, merge and the whole upkeep."""
    for value in ("1.00", "2.00"):
        for day in (FIRST, SECOND):
            publish(lake, [(day, f"r{n:02}", value) for n in range(30)], [day])
    with lake.connect() as connection:
        with lake.transaction(connection, "delete"):
            connection.execute("DELETE FROM daily_revenue WHERE region < 'r25'")
        with lake.transaction(connection, "delete a little"):
            connection.execute("DELETE FROM daily_revenue WHERE region = 'r26'")
        actions = {step.action for step in compaction.flush(lake, connection, 1)}
        actions |= {step.action for step in compaction.rewrite(lake, connection, min_files=1)}
        for day in (FIRST, THIRD):
            publish(lake, [(day, f"r{n:02}", "3.00") for n in range(30)], [day])
        merged = compaction.merge(lake, connection, compaction.TIERS, min_files=2)
        actions |= {step.action for step in merged}
    assert actions >= {"flush", "rewrite", "merge"}
    maintain(lake, keep_days=30)


def files(lake: Lake) -> dict[Path, int]:
    return {path: path.stat().st_size for path in Path(lake.data_path).rglob("*.parquet")}


def test_every_file_that_is_there_at_a_commit_was_synced_before_it(lake, monkeypatch):
    commit, sync = lake_connection.commit, lake_connection.sync_files
    synced: list[dict[Path, int]] = []
    commits: list[dict[Path, int]] = []

    def watched_sync(folder: str) -> None:
        assert folder == lake.data_path
        sync(folder)
        synced.append(files(lake))

    def watched_commit(connection) -> None:
        commits.append(files(lake))
        assert not commits[-1] or commits[-1].items() <= synced[-1].items()
        commit(connection)

    monkeypatch.setattr(lake_connection, "sync_files", watched_sync)
    monkeypatch.setattr(lake_connection, "commit", watched_commit)
    write_on_every_path(lake)
    assert 0 < len(synced) <= len(commits)
    with lake.connect(read_only=True) as connection:
        # Nothing has committed in another way.
        assert commits[-1] == files(lake)
        assert connection.execute("FROM lake.snapshots()").fetchall()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel counts no bytes here")
def test_rows_that_the_catalog_keeps_cost_no_sync_of_files(lake, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(lake_connection, "sync_files", synced.append)
    with lake.connect() as connection:
        with lake.transaction(connection, "a row"):
            connection.execute("INSERT INTO changed_days VALUES ('t', ?, 1, now())", [FIRST])
        assert synced == []
        with lake.transaction(connection, "many rows"):
            connection.execute(
                "INSERT INTO changed_days SELECT 't' || n, ?, 1, now() FROM range(100) AS t(n)",
                [FIRST],
            )
    assert synced == [lake.data_path]


def test_what_the_disk_could_not_keep_is_not_committed(lake, monkeypatch):
    publish(lake, [(FIRST, f"r{n:02}", "1.00") for n in range(30)], [FIRST])
    before = read(lake)

    def syncfs(_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    with monkeypatch.context() as patch:
        patch.setattr(durability, "_syncfs", lambda: syncfs)
        with pytest.raises(OSError, match="Input/output error"):
            publish(lake, [(FIRST, f"r{n:02}", "2.00") for n in range(30)], [FIRST])
    assert read(lake) == before


TRACED = """
import sys
from retail_assets_tests.lake.test_durability import write_on_every_path
from retail_assets_tests.lake.work import lake_in
write_on_every_path(lake_in(sys.argv[1]))
"""


@pytest.mark.processes
def test_the_kernel_sees_a_sync_between_each_file_and_the_catalog_that_names_it(lake, tmp_path):
    trace = tmp_path / "trace"
    strace = shutil.which("strace")
    calls = "trace=openat,fsync,fdatasync,syncfs"
    command = [str(strace), "-f", "--seccomp-bpf", "-y", "-s", "512", "-e", calls, "-o", str(trace)]
    probe = [*command, "true"]
    if strace is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed here, or may not trace")
    subprocess.run(
        [*command, sys.executable, "-c", TRACED, str(Path(lake.catalog).parent.parent)], check=True
    )
    unsynced: set[str] = set()
    written = syncs = 0
    for line in trace.read_text().splitlines():
        made = re.search(r'openat\(.*"([^"]+\.parquet)", O_WRONLY', line)
        if made:
            unsynced.add(made[1])
            written += 1
        elif "syncfs(" in line and f"<{lake.data_path}>" in line:
            unsynced.clear()
            syncs += 1
        elif re.search(r"f(data)?sync\(\d+<[^>]*/catalog\.sqlite", line):
            assert unsynced == set()
    assert written > syncs > 4


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


@pytest.mark.processes
def test_a_machine_that_loses_power_has_all_that_was_committed(tmp_path, new_lake):
    """The image of a mounted file system, copied as it is, is what a power cut leaves."""
    disk, after = tmp_path / "disk.img", tmp_path / "after.img"
    with disk.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    try:
        if os.geteuid() != 0:
            pytest.skip("a file system of one's own can be mounted by root only")
        subprocess.run(["mkfs.ext4", "-q", disk], check=True, capture_output=True)
        with mounted(disk, tmp_path / "probe"):
            pass
    except (OSError, AttributeError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system of one's own can be mounted here: {error}")
    with mounted(disk, tmp_path / "disk") as folder:
        data_dir = folder / "data"
        new_lake(data_dir)
        subprocess.run(["sync", "--file-system", folder], check=True)
        # A process of its own, lest this one keeps files of the disk open.
        assert finish([start(work.write_and_stay_there, str(data_dir))]) == [0]
        expected = read(work.lake_in(str(data_dir)))
        shutil.copyfile(disk, after)
    with mounted(after, tmp_path / "after") as folder:
        lake = work.lake_in(str(folder / "data"))
        assert all(size > 0 for size in files(lake).values())
        assert len(files(lake)) > 4
        assert read(lake) == expected != []
        maintain(lake, keep_days=30)
        assert read(lake) == expected
