"""Where the board, and the Dagster UI beside it, listen."""

import socket

from retail_assets.errors import UsageError


def check_free(
    host: str,
    port: int,
    service: str = "The board",
    setting: str = "--port or RETAIL_DASHBOARD_PORT",
) -> None:
    """Make sure that an address can be listened on: a page of another program is no board.

    Args:
        host: where to listen.
        port: on which port.
        service: what is to listen there.
        setting: what names another port.

    Raises:
        UsageError: naming the address, and what to do.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UsageError(
            f"{service} cannot listen on {host}:{port}: {error.strerror or error}. Name another"
            f" port with {setting}, or end the program that has this one."
        ) from error
