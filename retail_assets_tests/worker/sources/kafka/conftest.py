"""Sources that join no group, for tests of what else they do."""

import confluent_kafka
import pytest

from retail_assets_tests.worker.sources.kafka.kafka_topics import Alone


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each source have all partitions at once."""
    monkeypatch.setattr(confluent_kafka, "Consumer", Alone)
