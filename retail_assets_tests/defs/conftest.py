"""How small arrivals of event files are kept from the sensor's thread."""

import pytest

from retail_assets.ingest.event_files import watch


@pytest.fixture
def only_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arrival is large: `test_watching` has what a tick ingests itself."""
    monkeypatch.setattr(watch, "FILES", 0)
    monkeypatch.setattr(watch.FolderWatch, "renew", lambda *_: None)
