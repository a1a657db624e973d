"""The token, and what it allows."""

import pytest
from pydantic import SecretStr

from retail_assets.dashboard import actions
from retail_assets.errors import UsageError
from retail_assets_tests.event_files import EventLoader, event


@pytest.mark.parametrize(
    ("token", "entered", "may"),
    [
        (None, "", False),
        ("", "", False),
        ("ä-secret", "ä-secret", True),
        ("ä-secret", "a-secret", False),
        ("ä-secret", "", False),
    ],
)
def test_only_the_token_that_is_set_lets_people_write(settings, token, entered, may):
    secret = None if token is None else SecretStr(token)
    board = settings.model_copy(update={"dashboard_token": secret})
    assert actions.may_write(board, entered) is may


def test_a_redrive_says_what_became_of_the_dead_letter(lake, settings):
    with EventLoader.open(settings) as loader:
        loader.write("2026-10-12/a.jsonl", [event(1, order_value_gbp=-1)])
        loader.ingest()
        (letter,) = loader.letters()
    same = actions.redrive(settings, letter, None)
    assert (same.done, same.sentence) == (False, f"{letter}: still not_positive (order_value_gbp).")
    assert actions.redrive(settings, letter, event(1)).done
    with lake.connect(read_only=True) as connection:
        found = connection.execute("SELECT total_revenue FROM live_revenue").fetchall()
    assert found == [(10,)]


def test_a_consumer_is_rewound_by_name(lake, settings):
    with EventLoader.open(settings) as loader:
        loader.write("2026-10-12/a.jsonl", [event(1)])
        loader.ingest()
    assert "is recomputed" in actions.rewind(settings, "live_orders").sentence
    with pytest.raises(UsageError, match="no consumer x"):
        actions.rewind(settings, "x")
