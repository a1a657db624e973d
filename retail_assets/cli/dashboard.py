"""The sub-command that serves the board."""

from importlib.util import find_spec
from typing import Annotated

import typer

from retail_assets.cli.base import tell
from retail_assets.dashboard.address import check_free
from retail_assets.errors import RetailAssetsError
from retail_assets.settings import load_settings


def dashboard(
    host: Annotated[
        str | None, typer.Option(help="Where it listens; default: RETAIL_DASHBOARD_HOST.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="On which port; default: RETAIL_DASHBOARD_PORT.")
    ] = None,
) -> None:
    """Serve the board: revenue live and of any period, and the health of the platform."""
    settings = load_settings()
    if find_spec("nicegui") is None:
        raise RetailAssetsError(
            "The board needs the extra `dashboard`: install retail-assets[dashboard]."
        )
    host, port = host or settings.dashboard_host, port or settings.dashboard_port
    check_free(host, port)
    from retail_assets.dashboard.server import run

    run(settings, host, port, tell)
