"""Starts a code server of Dagster again after it has died.

`dagster dev` does not: where the kernel kills one for its memory, sensors and schedules rest until
somebody presses "Reload" in the UI. So this asks the web server for the code locations, and has it
load those again that it cannot reach.
"""

import json
import logging
import threading
from typing import Any
from urllib.request import Request, urlopen

ASK_SECONDS = 10
MOST_SECONDS = 300
"""How long it waits at most after a location that fails again and again."""

TIMEOUT_SECONDS = 120
"""How long the web server may take to load a location."""

_LOCATIONS = """
    { workspaceOrError { ... on Workspace { locationEntries {
        name locationOrLoadError { ... on PythonError { message } } } } } }
"""
_RELOAD = """
    mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) {
        __typename } }
"""

logger = logging.getLogger(__name__)


class CodeServerWatch:
    """Looks after the code servers of a web server, in a thread of its own."""

    def __init__(self, host: str, port: int, ask_seconds: float = ASK_SECONDS) -> None:
        address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104  # compared
        self._url = f"http://{address}:{port}/graphql"
        self._ask_seconds = self._wait_seconds = ask_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="code_servers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; a request that waits for its answer is not waited for."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._wait_seconds):
            try:
                failed = self._reload_failed()
            except (OSError, ValueError, KeyError, TypeError):
                # It has just been started, or is stopped: whoever runs it sees to that.
                continue
            self._wait_seconds = (
                min(2 * self._wait_seconds, MOST_SECONDS) if failed else self._ask_seconds
            )

    def _reload_failed(self) -> bool:
        """Load again what cannot be reached; returns whether there was any."""
        entries = self._ask(_LOCATIONS)["workspaceOrError"]["locationEntries"]
        failed = {
            entry["name"]: entry["locationOrLoadError"]["message"]
            for entry in entries
            if "message" in (entry["locationOrLoadError"] or {})
        }
        for name, message in failed.items():
            logger.warning(
                "The code location %s has failed, it is loaded again: %s", name, message.strip()
            )
            self._ask(_RELOAD, name=name)
        return bool(failed)

    def _ask(self, query: str, **variables: str) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310
        with urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310  # http, above
            return json.load(response)["data"]
