"""A port that another program has is an error at once, not a page of that program."""

import socket

import pytest

from retail_assets.cli import services
from retail_assets.cli.dashboard import dashboard
from retail_assets.errors import UsageError


def test_a_port_that_is_taken_is_one_sentence(lake):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError) as error:
            dashboard(port=port)
    assert f"The board cannot listen on 127.0.0.1:{port}: " in str(error.value)
    assert "RETAIL_DASHBOARD_PORT" in str(error.value)


def test_make_ui_refuses_a_port_before_it_starts_anything(settings, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"The Dagster UI cannot listen on .*{port}.*UI_PORT"):
            services.run("127.0.0.1", port)
