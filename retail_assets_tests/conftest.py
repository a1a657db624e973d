"""What many tests need: settings of a data folder of their own, its lake, and order exports."""

import fcntl
import gc
import gzip
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from retail_assets import business_days
from retail_assets.ingest.events import staging
from retail_assets.ingest.events.compiled_sql import CompiledSql, compiled_sql
from retail_assets.lake import schema
from retail_assets.lake.connection import Lake
from retail_assets.mapping.model import EventMappings
from retail_assets.settings import Settings
from retail_assets.transforms import events
from retail_assets_tests import migrations, outside, servers

if TYPE_CHECKING:
    from retail_assets_tests.platform import Platform

# The outcome of a build depends on the code alone; `--hypothesis-profile explore` goes further.
_any_speed = hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.register_profile("repeatable", _any_speed, derandomize=True)
hypothesis_settings.register_profile("explore", _any_speed, max_examples=1000, print_blob=True)
hypothesis_settings.load_profile("repeatable")


def examples(few: int) -> int:
    """So many examples of a property, where each takes long; the profile `explore` has its own."""
    most = hypothesis_settings().max_examples
    return most if most > hypothesis_settings.get_profile("default").max_examples else few


HEADER = "order_id,customer_id,product_id,region,status,order_value_gbp,order_timestamp"

NewLake: TypeAlias = Callable[[Path], Lake]
WriteExport: TypeAlias = Callable[..., Path]


def pytest_configure(config: pytest.Config) -> None:
    """Watch that a run which leaves out tests that start processes or servers starts none."""
    migrations.read_once()
    if "not processes" in config.getoption("markexpr"):
        config.pluginmanager.register(outside.Watch())


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by this mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tests; where several processes share the tests, begin with the longest."""
    outside.mark_slow(items)
    if hasattr(config, "workerinput"):
        outside.longest_first(items)


def pytest_collection_finish() -> None:
    """Leave what the tests have imported to itself: it would be searched for garbage each time."""
    gc.freeze()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The default settings with `tmp_path` as data folder, in the environment as well.

    DuckDB has one thread: with more, tables as small as those of tests take longer.
    """
    for name in [name for name in os.environ if name.startswith("RETAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RETAIL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("RETAIL_THREADS", "1")
    return Settings()


@pytest.fixture
def lake(settings: Settings, new_lake: NewLake) -> Lake:
    """An empty lake with all its tables, at the place that `settings` names."""
    new_lake(settings.data_dir)
    return Lake.from_settings(settings)


@pytest.fixture
def published(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Platform"]:
    """The platform with four published days: `DAYS` of platform.py, whose import takes long."""
    from retail_assets_tests.platform import published_platform

    with published_platform(settings, tmp_path_factory) as platform:
        yield platform


@pytest.fixture
def rules_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile the rules of events for each batch whose rules differ, not once a process."""

    def compiled(mappings: EventMappings = ()) -> CompiledSql:
        rules = repr(
            {name: rule for name, rule in vars(events).items() if name[:2] != "__"} | {"": mappings}
        )
        if rules not in _compiled:
            _compiled[rules] = compiled_sql.__wrapped__(mappings)
        return _compiled[rules]

    monkeypatch.setattr(staging, "REUSED_ROWS", 0)
    monkeypatch.setattr(staging, "compiled_sql", compiled)


_compiled: dict[str, CompiledSql] = {}
"""The rules of events as SQL, by what the module of the rules has."""


@pytest.fixture(scope="session")
def new_lake(tmp_path_factory: pytest.TempPathFactory) -> NewLake:
    """Make an empty lake in a data folder, from a copy: creating tables takes over a second."""
    model = Settings(data_dir=made_once(tmp_path_factory, "empty", _make_empty_lake))
    # This process finds its tables complete, which `_move` hands on to the copies.
    Lake.from_settings(model).create()

    def make(data_dir: Path) -> Lake:
        copy = Settings(data_dir=data_dir, threads=1)
        copy.lake_dir.mkdir(parents=True)
        shutil.copyfile(model.catalog, copy.catalog)
        _move(copy, model)
        return Lake.from_settings(copy)

    return make


def _make_empty_lake(data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir)
    Lake.from_settings(settings).create()
    with closing(sqlite3.connect(settings.catalog)) as catalog, catalog:
        note_empty_tables(catalog)


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that one worker of pytest-xdist makes for all of them."""
    base = folders.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_name(f"{name}, all of it")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The connection string of the run's PostgreSQL server, as a superuser."""
    with servers.postgres_server() as connection_string:
        yield connection_string


@pytest.fixture(scope="session")
def mariadb() -> Iterator[int]:
    """The port of the run's MariaDB server; without MariaDB the test is skipped."""
    with servers.mariadb_server() as port:
        yield port


def copy_data(model: Path, settings: Settings) -> None:
    """Copy a data folder with its lake into that of `settings`."""
    shutil.copytree(model, settings.data_dir, dirs_exist_ok=True)
    _move(settings, Settings(data_dir=model))


def _move(settings: Settings, model: Settings) -> None:
    """Have the catalog know that its files lie in the data folder of these settings.

    What this process has found complete in the model is so in its copy: to look costs 40 ms.
    """
    if model.catalog in schema._complete:
        schema._complete[settings.catalog] = schema._complete[model.catalog]
    with closing(sqlite3.connect(settings.catalog)) as catalog, catalog:
        catalog.execute("PRAGMA synchronous = OFF")
        catalog.execute(
            "UPDATE ducklake_metadata SET value = ? WHERE key = 'data_path'",
            [settings.data_path + "/"],
        )


def note_empty_tables(catalog: sqlite3.Connection) -> None:
    """Enter the statistics of tables without rows, which DuckLake does with the first row.

    Until then it looks for those of each column in each query: a fifth of the time of an ingest.
    """
    catalog.execute(
        "INSERT INTO ducklake_table_stats (table_id, record_count, next_row_id, file_size_bytes)"
        " SELECT table_id, 0, 0, 0 FROM ducklake_table"
    )
    catalog.execute(
        "INSERT INTO ducklake_table_column_stats (table_id, column_id, contains_null, contains_nan)"
        " SELECT table_id, column_id, 0, CASE WHEN column_type LIKE 'float%' THEN 0 END"
        " FROM ducklake_column WHERE parent_column IS NULL"
    )


@pytest.fixture
def write_export(settings: Settings) -> WriteExport:
    """Write a day's export into the exports folder of `settings`; see `write_export_to`."""

    def write(
        day: date,
        rows: Sequence[str] | str | bytes,
        *,
        header: str = HEADER,
        compressed: bool = False,
    ) -> Path:
        return write_export_to(
            settings.exports_dir, day, rows, header=header, compressed=compressed
        )

    return write


def write_export_to(
    folder: Path,
    day: date,
    rows: Sequence[str] | str | bytes,
    *,
    header: str = HEADER,
    compressed: bool = False,
) -> Path:
    """Write a day's export, in place of what lies there: rows under a header, or a whole file."""
    if isinstance(rows, bytes):
        content = rows
    elif isinstance(rows, str):
        content = rows.encode()
    else:
        content = "".join(f"{row}\n" for row in (header, *rows)).encode()
    path = business_days.export_paths(folder, day)[compressed]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compressed else content)
    return path


def order_row(order_id: str, day: date, **changed: str) -> str:
    """A row under `HEADER`: an order taken at half past nine, save what is changed."""
    fields = {
        "order_id": order_id,
        "customer_id": "C1",
        "product_id": "P1",
        "region": "North",
        "status": "completed",
        "order_value_gbp": "10.00",
        "order_timestamp": f"{day} 09:30:00",
    }
    assert changed.keys() <= fields.keys()
    return ",".join((fields | changed).values())
