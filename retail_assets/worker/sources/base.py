"""The interface of a source of events."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from retail_assets.worker.inbox import Inbox


class Source(Protocol):
    """Puts what it receives into the inbox, from threads of its own."""

    name: str

    def start(self, inbox: "Inbox") -> None:
        """Begin.

        Raises:
            RetailAssetsError: with one sentence, if it cannot work.
        """

    def stop(self) -> None:
        """Receive nothing new; returns when no put is under way. The inbox is still committed."""

    def close(self) -> None:
        """Release everything, after the inbox was drained."""

    def metrics(self) -> Mapping[str, float]:
        """Metrics by name, such as `kafka_lag`."""

    def problem(self) -> str | None:
        """The current problem, if there is one."""
