"""A lake with three days, and places for marts: folders of files, PostgreSQL, MariaDB."""

import shutil

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.outbound.marts.publish import publish as publish_mart
from retail_assets.settings import Settings
from retail_assets_tests.conftest import copy_data
from retail_assets_tests.lake.revenue import FIRST, SECOND, THIRD, publish
from retail_assets_tests.outbound.marts.places import FolderPlace, MariaDBPlace, PostgresPlace

DATABASES = [
    pytest.param("postgres", marks=pytest.mark.processes),
    pytest.param("mariadb", marks=pytest.mark.processes),
]


@pytest.fixture(params=["parquet", *DATABASES])
def place(request, tmp_path):
    """A place for marts, empty."""
    return new_place(request.param, request, tmp_path)


@pytest.fixture(params=DATABASES)
def database(request, tmp_path):
    """The places that are databases."""
    return new_place(request.param, request, tmp_path)


@pytest.fixture(params=["parquet", "csv"])
def folder(request, tmp_path):
    """The places that are folders."""
    return new_place(request.param, request, tmp_path)


def new_place(kind, request, tmp_path):
    if kind == "postgres":
        return PostgresPlace(request.getfixturevalue("postgres"))
    if kind == "mariadb":
        return MariaDBPlace(request.getfixturevalue("mariadb"))
    return FolderPlace(tmp_path / "mart", kind)


@pytest.fixture
def file_place(tmp_path):
    """A folder of Parquet files, for what is decided in the lake, whatever the place."""
    return FolderPlace(tmp_path / "mart", "parquet")


@pytest.fixture(scope="session")
def three_days(new_lake, tmp_path_factory):
    """A data folder with a day of two regions, one of a similar region, and one without rows."""
    folder = tmp_path_factory.mktemp("three-days")
    lake = new_lake(folder)
    publish(lake, [(FIRST, "North", "1.00"), (FIRST, "South", "2.50")], [FIRST])
    publish(lake, [(SECOND, "north", "3.00"), (SECOND, 'Nörd\n"x",', "0.01")], [SECOND, THIRD])
    change(
        lake,
        f"INSERT INTO daily_revenue_by_category VALUES ('{FIRST}', 'North', 'Kitchen', 1, 1, 1)",
    )
    return folder


@pytest.fixture
def lake(tmp_path, three_days) -> Lake:
    """The lake with three days, of the test's own."""
    return copy_lake(three_days, tmp_path)


@pytest.fixture(scope="session")
def published_files(three_days, tmp_path_factory):
    """Folders with the lake and its mart, by the format of its files."""
    found = {}
    for kind in ("parquet", "csv"):
        folder = tmp_path_factory.mktemp(kind)
        lake = copy_lake(three_days, folder)
        publish_mart(lake, target_of(lake, FolderPlace(folder / "mart", kind)))
        found[kind] = folder
    return found


@pytest.fixture
def published(lake, folder, published_files):
    """The folder with the rows of the lake."""
    shutil.copytree(published_files[folder.kind] / "mart", folder.root)
    return folder


def copy_lake(data_dir, folder) -> Lake:
    settings = Settings(data_dir=folder / "shop", threads=1)
    copy_data(data_dir, settings)
    return Lake.from_settings(settings)


def change(lake, *statements):
    with lake.connect() as connection, lake.transaction(connection, "a change"):
        for statement in statements:
            connection.execute(statement)


def target_of(lake: Lake, place):
    """The place as the settings name it."""
    from retail_assets.outbound.marts.targets import mart_targets

    data_dir = lake.spill_dir.removesuffix("/lake/spill")
    [target] = mart_targets(Settings(data_dir=data_dir, **place.settings))
    return target
