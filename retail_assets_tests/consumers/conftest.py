"""A lake whose live tables follow its events."""

from collections.abc import Iterator
from itertools import count

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.consumers.followers import Followers
from retail_assets_tests.event_files import EventLoader


@pytest.fixture
def followers(lake: Lake, settings: Settings) -> Iterator[Followers]:
    with EventLoader.open(settings) as loader:
        yield Followers(loader, count())
