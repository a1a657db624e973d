"""A webhook that several tests share."""

import os
from collections.abc import Iterator

import pytest

from retail_assets_tests.worker.sources.webhook.webhooks import (
    Webhook,
    running_webhook,
)


@pytest.fixture(scope="module")
def idle_webhook() -> Iterator[Webhook]:
    """A webhook for all tests that leave nothing in its inbox."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RETAIL_")]:
            patch.delenv(name)
        with running_webhook() as webhook:
            yield webhook
