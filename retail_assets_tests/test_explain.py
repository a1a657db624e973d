"""Every outage is one sentence: what happened, where, and what to do; never a traceback."""

import logging
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from retail_assets.cli import app as cli
from retail_assets.cli.dagster_home import check_dagster_home
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.explain import SentenceFormatter, explain
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.cli.test_cli import NOBODY, Command
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish

BACKFILL = ("backfill", "--start", "2026-10-05", "--end", "2026-10-06")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def published(lake: Lake) -> Path:
    """A Parquet file of `daily_revenue` in a lake."""
    publish(lake, [(FIRST, f"r{n}", "10.00") for n in range(30)], [FIRST])
    [path] = Path(lake.data_path).rglob("*.parquet")
    return path


def sentence(outcome: tuple[int, str, str], code: int = 1) -> str:
    """What an outcome says, if it is one line on standard error and nothing else."""
    exit_code, _, err = outcome
    [line] = err.strip().splitlines()
    assert (exit_code, line[:7], "Traceback" in err) == (code, "Error: ", False)
    return line.removeprefix("Error: ")


QUERY = ("query", "SELECT sum(total_revenue) FROM daily_revenue")


@pytest.mark.parametrize("arguments", [QUERY, (*BACKFILL, "--all")])
def test_a_missing_file_of_the_lake(
    published: Path, command: Command, arguments: tuple[str, ...]
) -> None:
    published.unlink()
    said = sentence(command(*arguments))
    assert f"A file of the lake is missing ({published}). `retail-assets verify` says" in said


@pytest.mark.parametrize("size", [0, 3, 300])
def test_a_damaged_file_of_the_lake(published: Path, command: Command, size: int) -> None:
    published.write_bytes(published.read_bytes()[:size])
    said = sentence(command(*QUERY))
    assert f"A file of the lake is damaged ({published}). `retail-assets verify` says" in said


@pytest.mark.parametrize("arguments", [("status",), ("maintain",), QUERY, ("ingest-events",)])
def test_a_catalog_that_is_no_database(
    lake: Lake, command: Command, arguments: tuple[str, ...]
) -> None:
    Path(lake.catalog).write_bytes(b"junk" * 4096)
    said = sentence(command(*arguments))
    assert said.startswith(f"The lake at {lake.catalog} cannot be opened: The catalog of the lake")
    assert "restore it from a backup" in said


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "history").mkdir(parents=True)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home


@pytest.mark.parametrize(
    ("name", "content", "said", "code"),
    [
        (".", "a file", "must be the absolute path of a folder that exists", 2),
        ("history/runs.db", "junk" * 4096, "runs.db, Dagster's history, is damaged", 2),
        ("dagster.yaml", "a: [", "The Dagster instance in DAGSTER_HOME=", 1),
        ("dagster.yaml", "nonsense: 5", "The Dagster instance in DAGSTER_HOME=", 1),
    ],
)
def test_an_unusable_dagster_home(
    lake: Lake, home: Path, command: Command, name: str, content: str, said: str, code: int
) -> None:
    if name == ".":
        shutil.rmtree(home)
    (home / name).write_text(content)
    found = sentence(command(*BACKFILL), code=code)
    assert said in found
    assert str(home) in found


@pytest.mark.processes
def test_the_services_do_not_start_on_a_damaged_history(lake: Lake, home: Path) -> None:
    (home / "history/runs.db").write_bytes(b"junk" * 4096)
    done = subprocess.run(
        [sys.executable, "-m", "retail_assets.cli.services"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {home}/history/runs.db, Dagster's history, is damaged")
    assert done.stderr.count("\n") == 1


def test_a_dagster_home_without_permission(lake: Lake, home: Path) -> None:
    home.chmod(0o500)
    # Nothing is forbidden to root.
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        with pytest.raises(UsageError, match="may not be written to: change its owner or mode"):
            check_dagster_home(str(home))
    finally:
        os.seteuid(user)


@contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    """A file system of 2 MB, where this user may mount one."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.processes
@pytest.mark.parametrize("arguments", [("maintain",), ("generate", "--days", "2"), BACKFILL])
def test_a_full_disk(
    published: Path,
    lake: Lake,
    settings: Settings,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
    arguments: tuple[str, ...],
) -> None:
    publish(lake, [(SECOND, f"r{n}", "10.00") for n in range(30)], [SECOND])
    disk = tmp_path_factory.mktemp("disk")
    with tiny_disk(disk):
        shutil.copytree(settings.data_dir, disk / "data")
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        assert shutil.disk_usage(disk).free == 0
        monkeypatch.setenv("RETAIL_DATA_DIR", str(disk / "data"))
        said = sentence(command(*arguments))
    assert "The disk is full" in said or "The disk failed to read or write" in said


@pytest.mark.processes
def test_a_file_that_may_not_grow(published: Path, settings: Settings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retail_assets", "maintain"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "The disk failed to read or write, or is full: make room" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_nobody_expected_is_a_sentence_too_and_a_traceback_with_debug(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    @cli.app.command("break")
    def break_() -> None:
        raise ZeroDivisionError("by nought\nsecond line")

    assert sentence(command("break")) == (
        "ZeroDivisionError: by nought. This is a fault of the platform: please report it, with what"
        " `retail-assets --debug` and the same command print."
    )
    monkeypatch.setattr(sys, "argv", ["retail-assets", "--debug", "break"])
    with pytest.raises(ZeroDivisionError):
        cli.run()


def test_a_command_that_is_stopped_says_so(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.app, "registered_commands", list(cli.app.registered_commands))

    @cli.app.command("stop")
    def stop() -> None:
        raise KeyboardInterrupt

    code, _, err = command("stop")
    assert (code, err.strip()) == (
        130,
        "Stopped: what was committed stays. Run it again to go on.",
    )


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_the_reason_is_found_below_what_wraps_it() -> None:
    full = OSError(28, "No space left on device", "/data/x")
    assert explain(caused(RuntimeError("It did not work"), full))[0].startswith(
        "The disk is full (/data/x): make room"
    )
    assert explain(caused(ValueError("wrapped"), RetailAssetsError("Do this.")))[0] == "Do this."


@pytest.mark.parametrize("debug", [False, True])
def test_a_log_has_a_sentence_for_an_error_and_a_traceback_with_debug(
    monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["retail-assets", *(["--debug"] if debug else [])])
    with pytest.raises(OSError, match="Input/output") as caught:
        Path("/proc/self/mem").read_bytes()
    record = logging.getLogger("x").makeRecord(
        "x", logging.ERROR, "x", 1, "The lake\n\x1b cannot be opened", (), caught._excinfo
    )
    text = SentenceFormatter("%(message)s").format(record)
    assert text.startswith("The lake" + ("\n\x1b" if debug else "\\n\\u001b") + " cannot be opened")
    assert ("Traceback" in text, text.count("\n") > 0) == (debug, debug)
    assert debug or "The disk failed to read or write" in text
