"""A platform with a lake, its event files, and whom notifications are sent to."""

from collections.abc import Iterator

import pytest

from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.defs.automation.offices import Office
from retail_assets_tests.platform import Platform, open_platform, write_reference
from retail_assets_tests.receiver import Receiver, running_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def office(settings: Settings, lake: Lake, receiver: Receiver) -> Iterator[Office]:
    settings = settings.model_copy(update={"notify_urls": (receiver.url(),), "threads": 1})
    with lake.connect() as connection:
        yield Office(settings, lake, connection)


@pytest.fixture
def platform(settings: Settings, new_lake: NewLake) -> Iterator[Platform]:
    new_lake(settings.data_dir)
    write_reference(settings)
    with open_platform(settings) as platform:
        yield platform
