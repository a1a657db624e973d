"""On keyed state all tables are those of a rebuild, row by row, whatever happens in between."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from retail_assets.consumers import framework
from retail_assets.settings import Settings
from retail_assets_tests.consumers.keyed.shop import SOLD, Event, Shop, events, opened

STEP = st.one_of(
    events().map(lambda some: ("events", some)),
    events().map(lambda some: ("events", some)),
    st.integers(0, 7).map(lambda order: ("retracted", order)),
    st.integers(1, 4).map(lambda count: ("dead letters", count)),
    st.sampled_from([("restart", 0), ("others follow", 0), ("others start", 0), ("products", 0)]),
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, new_lake: Any) -> Iterator[Shop]:
    """One lake for all examples: each has orders, customers and products of its own."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("shop"))
    new_lake(settings.data_dir)
    with opened(settings) as shop:
        yield shop


@pytest.mark.slow
@hypothesis_settings(
    max_examples=4,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=st.lists(STEP, min_size=3, max_size=8), opening=st.integers(0, 12))
def test_what_follows_the_events_is_what_a_rebuild_makes_of_them(
    shop: Shop, history: list[tuple[str, Any]], opening: int
) -> None:
    name = f"x{shop.number}:"
    shop.number += 1
    shop.change(
        "INSERT INTO lake.products SELECT ? || unnest(['A', 'B']), 'n', unnest(['Food', 'Toys']),"
        " NULL, ?",
        name,
        opening,
    )
    for what, content in history:
        step(shop, name, what, content)
        shop.follow()
    followed = shop.tables()
    assert followed == shop.rebuilt()
    shop.follow()
    assert shop.tables() == followed


def step(shop: Shop, name: str, what: str, content: Any) -> None:
    if what == "events":
        some: list[Event] = content
        shop.insert(name, some)
    elif what == "retracted":
        shop.retract(name, content)
    elif what == "dead letters":
        shop.letters(f"{name}{shop.number}", content)
        shop.number += 1
    elif what == "restart":
        shop.stop()
        shop.start()
    elif what == "others follow":
        shop.insert(name, [dict(ONE)])
        shop.consume()
    elif what == "others start":
        # Orders are followed, and nothing that follows them.
        shop.insert(name, [dict(ONE, order=6, value=7)])
        framework.consume(shop.loader.lake, shop.loader.connection, shop.slow[0])
    else:
        shop.change("UPDATE lake.products SET stock_on_hand = 9 WHERE product_id = ?", name + "A")


ONE: Event = {**SOLD, "order": 5}
