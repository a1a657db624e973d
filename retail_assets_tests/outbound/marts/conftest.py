"""Places for marts: a folder of Parquet or CSV files, PostgreSQL, MariaDB."""

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
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
def lake(tmp_path, new_lake) -> Lake:
    """An empty lake of the test's own."""
    return new_lake(tmp_path / "shop")


def target_of(lake: Lake, place):
    """The place as the settings name it."""
    from retail_assets.outbound.marts.targets import mart_targets

    data_dir = lake.spill_dir.removesuffix("/lake/spill")
    [target] = mart_targets(Settings(data_dir=data_dir, **place.settings))
    return target
