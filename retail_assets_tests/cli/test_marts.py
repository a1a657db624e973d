"""`publish-marts`, and what `status` and `backfill` say of marts."""

import json

import pytest

from retail_assets_tests.cli.test_cli import Command
from retail_assets_tests.lake.revenue import FIRST, SECOND, publish
from retail_assets_tests.outbound.marts.places import FolderPlace

GONE = "postgresql://shop:very%20secret@127.0.0.1:1/shop"


@pytest.fixture
def command(monkeypatch, capfd):
    return Command(monkeypatch, capfd)


@pytest.fixture
def place(lake, tmp_path, monkeypatch):
    publish(lake, [(FIRST, "North", "1.00"), (SECOND, "North", "2.00")], [FIRST, SECOND])
    monkeypatch.setenv("RETAIL_MART_FILES", str(tmp_path / "mart"))
    return FolderPlace(tmp_path / "mart", "parquet")


def status(command):
    code, out, _ = command("status", "--format", "json")
    assert code == 0
    return {row["figure"]: row["value"] for row in json.loads(out) if "mart" in row["figure"]}


def test_it_publishes_and_prints_what_was_written_and_status_says_how_far_it_is(
    command, lake, place
):
    assert status(command)["mart_files behind, commits"].startswith("never published: run")
    code, out, err = command("publish-marts")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if "mart_files" in line]
    assert [(line[3], line[5], line[7]) for line in lines] == [
        ("daily_revenue", "2", "2"),
        ("daily_revenue_by_category", "0", "0"),
        ("revenue_now", "2", "2"),
    ]
    assert len(place.rows("revenue_now")) == 2
    assert status(command)["mart_files behind, commits"] == 0
    publish(lake, [(SECOND, "North", "3.00")], [SECOND])
    found = status(command)
    assert (found["mart_files behind, commits"], found["mart_files behind, days"]) == (1, 1)
    assert found["mart_files"] == str(place.root)


def test_a_mart_that_is_away_is_one_sentence_without_its_password_and_the_other_is_published(
    command, place, monkeypatch
):
    monkeypatch.setenv("RETAIL_MART_URL", GONE)
    code, out, err = command("publish-marts")
    assert code == 1
    assert "The mart at postgresql://shop:•••@127.0.0.1:1/shop, schema public could not be" in err
    assert "secret" not in out + err
    assert len(place.rows("revenue_now")) == 2
    found = status(command)
    assert "could not be published: connection" in found["mart_tables's problem"]
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "There is no mart: set RETAIL_MART_URL to a database"),
        ({"URL": "oracle://scott:tiger@db/x"}, "RETAIL_MART_URL cannot be used: Value error, it"),
        ({"URL": "mysql://u:p@db"}, "names no database of a server"),
        ({"URL": "mysql://u:p@db/x?charset=x"}, "has charset, which there is not: its options"),
        ({"URL": "mysql://u:p@db/x?ssl-mode=MAYBE"}, "has ssl-mode=MAYBE, which there is not"),
        ({"URL": "mysql://u:p/q@db/x"}, "a password with special characters is written with %"),
        ({"URL": "mysql://u:p@db/x", "SCHEMA": "s"}, "RETAIL_MART_SCHEMA is for PostgreSQL"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_sentence(command, lake, monkeypatch, values, said):
    for name, value in values.items():
        monkeypatch.setenv(f"RETAIL_MART_{name}", value)
    code, _, err = command("publish-marts")
    assert (code, said in err, "tiger" in err) == (2, True, False), err


def test_a_file_of_authorities_that_is_gone_stops_the_mart_alone(command, place, monkeypatch):
    monkeypatch.setenv("RETAIL_MART_URL", "mysql://u:p@127.0.0.1:1/x?ssl-ca=/no/such")
    code, _, err = command("publish-marts")
    assert code == 1
    assert "the file ssl-ca=/no/such cannot be used: No such file or directory" in err
    assert len(place.rows("revenue_now")) == 2
