"""What `deploy/` starts is what the command knows, and what an image is not to have stays out."""

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from typer.main import get_group

from retail_assets.cli import app as cli
from retail_assets.settings import Settings
from retail_assets.worker.build import Options, build_worker
from retail_assets.worker.worker import Worker
from tools.ports import free_port

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "deploy/container/Dockerfile").read_text(encoding="utf-8")
UNIT = (ROOT / "deploy/systemd/retail-assets-stream.service").read_text(encoding="utf-8")
BIN = PurePosixPath("/opt/retail_assets/.venv/bin")
START_SECONDS = 60

REST_BYTES = 2 * 10**9
"""What a worker has besides DuckDB's buffers: Python, what was received and waits, librdkafka."""


def service() -> configparser.SectionProxy:
    """The section of the unit that says how to run the worker."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(UNIT)
    return parser["Service"]


def instruction(name: str) -> list[str]:
    """The arguments of an instruction of the Dockerfile that are written as a JSON array."""
    found = re.search(rf"^{name} .*?(\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    assert found, f"there is no {name}"
    return list(json.loads(found[1]))


def unit_command() -> list[str]:
    return shlex.split(service()["ExecStart"])


def image_command() -> list[str]:
    return [*instruction("ENTRYPOINT"), *instruction("CMD")]


def options(arguments: list[str]) -> dict[str, Any]:
    """What the command makes of its arguments; it raises for one that it does not know."""
    name, *rest = arguments
    return get_group(cli.app).commands[name].make_context(name, rest).params


@pytest.mark.parametrize("command", [unit_command(), image_command()], ids=["unit", "image"])
def test_the_command_is_installed_there_and_its_options_make_a_worker(
    settings: Settings, command: list[str]
) -> None:
    program, *arguments = command
    assert program == str(BIN / "retail-assets")
    worker = build_worker(settings, Options(**options(arguments)))
    assert [source.name for source in worker.sources] == ["webhook"]


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"\bRETAIL_[A-Z_]+", DOCKERFILE + UNIT))
    assert named == {
        "RETAIL_DATA_DIR",
        "RETAIL_WEBHOOK_TOKEN",
        "RETAIL_MEMORY_LIMIT",
        "RETAIL_STOP_SECONDS",
        "RETAIL_UMASK",
    }
    assert {name.removeprefix("RETAIL_").lower() for name in named} <= set(Settings.model_fields)


@pytest.mark.processes
def test_the_health_check_asks_where_the_worker_of_the_image_answers(settings: Settings) -> None:
    program, *check = instruction("HEALTHCHECK")
    assert program == str(BIN / "python")
    port = options(instruction("CMD"))["http"].rpartition(":")[2]
    assert f"http://127.0.0.1:{port}/" in check[-1]
    # On a port that is free here.
    free = str(free_port())
    check[-1] = check[-1].replace(f":{port}/", f":{free}/")
    arguments = [text.replace(f":{port}", f":{free}") for text in instruction("CMD")]

    def is_healthy() -> bool:
        done = subprocess.run([sys.executable, *check], capture_output=True, check=False)
        return done.returncode == 0

    assert not is_healthy()
    worker = subprocess.Popen(
        [sys.executable, "-m", "retail_assets", *arguments],
        env=os.environ | {"RETAIL_WEBHOOK_TOKEN": "a-long-random-text"},
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + START_SECONDS
        while not is_healthy():
            assert worker.poll() is None, "the worker has ended"
            assert time.monotonic() < until, "the worker never was well"
            time.sleep(0.2)
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.processes
def test_wrong_usage_is_not_started_again(settings: Settings) -> None:
    # There is no token.
    done = subprocess.run(
        [sys.executable, "-m", "retail_assets", *unit_command()[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "RETAIL_WEBHOOK_TOKEN" in done.stderr
    assert str(done.returncode) == service()["RestartPreventExitStatus"]


def test_the_worker_has_time_to_commit_what_it_has_received() -> None:
    (of_container,) = re.findall(r"--stop-timeout (\d+)", DOCKERFILE)
    for seconds in (service()["TimeoutStopSec"], of_container):
        assert int(seconds) > Settings().stop_seconds


def connections(worker: Worker) -> int:
    """How many it has: its own, intake, files, scan, building the state, and one of each loop."""
    return 5 + len(worker._loops)


def test_files_of_the_worker_are_its_user_s_alone() -> None:
    assert "\nUMask=0077\n" in UNIT


def test_the_unit_leaves_room_for_every_connection(settings: Settings) -> None:
    everything = settings.model_copy(
        update={
            "notify_urls": ("json://127.0.0.1:1",),
            "publish_bootstrap": "127.0.0.1:1",
            "publish_events_topic": "events",
            "publish_alerts_topic": "alerts",
        }
    )
    worker = build_worker(everything, Options())
    assert connections(worker) == 10
    assert "Ten connections" in UNIT
    limit = int(settings.memory_limit.removesuffix("MB")) * 10**6
    most = int(service()["MemoryMax"].removesuffix("G")) * 2**30
    assert connections(worker) * limit + REST_BYTES <= most


def is_left_out(path: str) -> bool:
    """Whether the builder leaves a file out: the last pattern that fits it or a folder decides."""
    left_out = False
    places = [path, *map(str, PurePosixPath(path).parents)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        if pattern and not line.startswith("#") and any(fits(pattern, place) for place in places):
            left_out = not line.startswith("!")
    return left_out


def fits(pattern: str, path: str) -> bool:
    """As Docker matches: a `*` does not reach across folders, a leading `**/` stands for any."""
    anywhere = pattern.startswith("**/")
    wanted, parts = pattern.removeprefix("**/").split("/"), path.split("/")
    if anywhere:
        parts = parts[-len(wanted) :]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@pytest.mark.parametrize(
    "path",
    [
        "settings.env",
        ".env",
        "deploy/container/shop.env",
        "data/lake/catalog.sqlite",
        "data/exports/orders_2026_10_05.csv",
        "deploy/dagster/history/runs/index.db",
        "deploy/dagster/storage/run/compute_logs/step.err",
        ".venv/ready",
        ".git/config",
    ],
)
def test_secrets_data_and_history_stay_out_of_the_image(path: str) -> None:
    assert is_left_out(path)


@pytest.mark.parametrize(
    "path",
    [
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "workspace.yaml",
        "deploy/dagster/dagster.yaml",
        "retail_assets/cli/app.py",
        "retail_assets/samples/event_files.py",
    ],
)
def test_the_image_has_what_it_is_made_of(path: str) -> None:
    assert (ROOT / path).is_file()
    assert not is_left_out(path)


def test_no_other_file_says_what_is_left_out() -> None:
    # One beside the Dockerfile would count instead, for some builders.
    assert not list((ROOT / "deploy").rglob("*.dockerignore"))


def test_the_files_for_a_cluster_name_what_exists() -> None:
    folder = ROOT / "deploy" / "cluster"
    variables = dict(
        line.split("=", 1)
        for line in (folder / "retail-assets.env").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    settings = {name for name in variables if name.startswith("RETAIL_")}
    assert {name.removeprefix("RETAIL_").lower() for name in settings} <= set(Settings.model_fields)
    instance = (folder / "dagster.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"env: (\w+)", instance)) <= set(variables)
    assert variables["DAGSTER_HOME"] == str(BIN.parents[1] / "deploy" / "cluster")
    unit = (folder / "retail-assets-runs@.service").read_text(encoding="utf-8")
    (program, module) = re.findall(r"^ExecStart=(\S+) -m (\S+)", unit, flags=re.MULTILINE)[0]
    assert PurePosixPath(program) == BIN / "python"
    assert find_spec(module) is not None
    assert f"module: {module}" in instance
