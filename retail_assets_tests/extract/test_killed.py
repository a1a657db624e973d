"""Extractions that end in the middle: the server, the connection, or the process itself."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from retail_assets import business_days
from retail_assets.errors import RetailAssetsError
from retail_assets.extract.run import extract
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.extract.shops import (
    ORDERS,
    Shop,
    declare,
    ids,
    mariadb_shop,
    postgres_shop,
    query,
    rows_of,
)
from retail_assets_tests.faults.boundaries import run_watched
from retail_assets_tests.processes import finish, start
from retail_assets_tests.servers import postgres_server

pytestmark = pytest.mark.processes

DAY = date(2026, 10, 12)
DAYS = [DAY + timedelta(days=n) for n in range(3)]
ROWS = 4000


@pytest.fixture(scope="module")
def mortal() -> Iterator[str]:
    """A PostgreSQL server that may be killed."""
    with postgres_server() as connection_string:
        yield connection_string


def slow(shop: Shop) -> dict[str, Any]:
    """A declaration whose rows take 10 seconds to read."""
    sleep = "pg_sleep(0.01)::text" if shop.kind == "postgres" else "SLEEP(0.01)"
    return {"orders": query(f"SELECT orders.*, {sleep} AS slept FROM orders")}


def kill_backend(connection_string: str, began: threading.Event) -> None:
    """SIGKILL the process of the server that reads the orders: then all of it falls."""
    assert began.wait(60)
    found = []
    while not found:
        with psycopg.connect(connection_string, dbname="postgres", autocommit=True) as admin:
            found = admin.execute(
                "SELECT pid FROM pg_stat_activity WHERE state = 'active'"
                " AND application_name = 'retail-assets extract' AND query LIKE '%slept%c0%'"
            ).fetchall()
        time.sleep(0.02)
    os.kill(found[0][0], signal.SIGKILL)


def kill_connection(shop: Shop, began: threading.Event) -> None:
    """Have the server end the connection that reads the orders."""
    assert began.wait(60)
    found: list[tuple[int]] = []
    while not found:
        with shop._connection() as admin, admin.cursor() as cursor:
            cursor.execute(
                "SELECT id FROM information_schema.processlist WHERE info LIKE '%slept%c0%'"
                " AND id <> connection_id()"
            )
            found = list(cursor.fetchall())
            for (number,) in found:
                cursor.execute(f"KILL {number}")
        time.sleep(0.02)


def wait_until_it_is_up(connection_string: str) -> None:
    while True:
        try:
            psycopg.connect(connection_string, dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_a_server_that_dies_leaves_all_files_as_they_were(
    settings: Settings, lake: Lake, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "postgres":
        server = request.getfixturevalue("mortal")
        shop = postgres_shop(server)
    else:
        shop = mariadb_shop(request.getfixturevalue("mariadb"))
    shop.create()
    shop.order("1", f"{DAY} 10:00:00")
    declared = declare(settings, shop, {"orders": ORDERS})
    extract(declared, DAYS)
    many = [
        f"('N{n}', 'C1', 'P1', 'North', 'completed', 1, '{DAY} 11:00:00', '{DAY}')"
        for n in range(ROWS)
    ]
    shop.execute(f"INSERT INTO orders VALUES {', '.join(many)}")
    before = {path.name: path.read_bytes() for path in declared.exports_dir.iterdir()}

    began = threading.Event()
    killer = (
        threading.Thread(target=kill_backend, args=(server, began))
        if kind == "postgres"
        else threading.Thread(target=kill_connection, args=(shop, began))
    )
    dying = declare(settings, shop, slow(shop))
    killer.start()
    with pytest.raises(RetailAssetsError, match="No file was changed") as raised:
        extract(dying, DAYS, say=lambda text: began.set() if text == "reading orders" else None)
    killer.join()
    assert {path.name: path.read_bytes() for path in declared.exports_dir.iterdir()} == before
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        failed = connection.execute("SELECT day, problem FROM failed_days ORDER BY day").fetchall()
    assert failed == [(day, str(raised.value)) for day in DAYS]

    if kind == "postgres":
        wait_until_it_is_up(server)
    extract(declare(settings, shop, {"orders": ORDERS}), DAYS)
    assert len(rows_of(declared, DAY)) == ROWS + 1
    with Lake.from_settings(settings).connect(read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM failed_days").fetchall() == [(0,)]


def run_extraction(settings: Settings, days: list[date]) -> None:
    """Extract, in a process of its own."""
    extract(settings, days)


def die_at_a_name(settings: Settings, days: list[date], named: int) -> None:
    """Extract, and get SIGKILL when so many files have their names."""
    done, rename = 0, os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal done
        if done == named:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]
    extract(settings, days)


@pytest.fixture
def corrected(settings: Settings, lake: Lake, postgres: str) -> tuple[Settings, Shop]:
    """Three extracted days whose orders have all changed since, the first on the second day."""
    shop = postgres_shop(postgres)
    shop.create()
    for n, day in enumerate(DAYS):
        shop.order(f"O{n}", f"{day} 10:00:00")
    declared = declare(settings, shop, {"orders": ORDERS})
    extract(declared, DAYS)
    for n, day in enumerate(DAYS):
        shop.order(f"O{n}", f"{day} 10:00:00", f"{DAYS[min(n + 1, 2)]} 11:00:00", total="20.00")
    return declared, shop


def values(settings: Settings) -> list[list[str]]:
    return [[row[5] for row in rows_of(settings, day)] for day in DAYS]


@pytest.mark.parametrize("named", [0, 1, 2])
def test_killed_between_two_files_each_is_whole_and_the_newest_come_first(
    corrected: tuple[Settings, Shop], named: int
) -> None:
    settings, _ = corrected
    old, new = [["10.00"]] * 3, [["20.00"], ["20.00", "20.00"], ["20.00", "20.00"]]
    killed = start(die_at_a_name, settings, DAYS, named)
    assert finish([killed]) == [-signal.SIGKILL]
    assert values(settings) == [*old[: 3 - named], *new[3 - named :]]
    # Files of hidden names are none of the platform's until the next run has tidied up.
    assert len(list(settings.exports_dir.glob(".extracting.*"))) == 3 - named
    found = extract(settings, DAYS)
    assert found.failed == {}
    assert values(settings) == new
    assert sorted(path.name for path in settings.exports_dir.iterdir()) == [
        business_days.export_paths(settings.exports_dir, day)[0].name for day in DAYS
    ]


@pytest.mark.parametrize("boundary", ["before BEGIN", "before COMMIT", "after COMMIT"])
def test_killed_at_the_commit_of_the_ledger_the_next_run_is_right(
    corrected: tuple[Settings, Shop], boundary: str
) -> None:
    settings, _ = corrected
    name = f"{boundary} of note extracted files"
    killed = start(run_watched, run_extraction, settings.model_dump(), (DAYS,), None, name)
    assert finish([killed]) == [-signal.SIGKILL]
    assert values(settings) == [["10.00"]] * 3
    assert extract(settings, DAYS).failed == {}
    assert ids(settings, DAYS[2]) == ["O1", "O2"]
