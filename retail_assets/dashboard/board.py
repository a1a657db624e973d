"""What all pages share: the settings, the newest view, and who is told when it changes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nicegui import Event, app, run

from retail_assets.dashboard.poller import Poller
from retail_assets.dashboard.readers import Readers
from retail_assets.dashboard.render import Renderer
from retail_assets.dashboard.watch import View, Watch
from retail_assets.settings import Settings


async def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in one of NiceGUI's threads, off the event loop.

    Raises:
        asyncio.CancelledError: if the board is stopping, so that it was not run.
    """
    found = await run.io_bound(function)
    if found is None and app.is_stopping:
        raise asyncio.CancelledError
    return found


@dataclass
class Board:
    """The board of one lake; `changed` tells open pages of each new view."""

    settings: Settings
    watch: Watch
    render: Renderer
    readers: Readers
    changed: "Event[View]"
    poller: Poller
    _rendered: dict[str, tuple[int, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, watch: Watch | None = None) -> "Board":
        """The board of the lake that the settings name; another watch is for tests."""
        watch = watch or Watch(settings)
        changed: Event[View] = Event()
        return cls(
            settings=settings,
            watch=watch,
            render=Renderer(settings),
            readers=Readers(settings, in_thread),
            changed=changed,
            poller=Poller(watch.read, changed.emit, in_thread, seconds=settings.dashboard_seconds),
        )

    @property
    def dagster_url(self) -> str | None:
        """The address of the Dagster UI, without a slash at its end."""
        url = self.settings.dashboard_dagster_url
        return url.rstrip("/") if url else None

    def once(self, name: str, view: View, make: Callable[[View], Any]) -> Any:
        """What is made of a view: once for all pages that show it."""
        known = self._rendered.get(name)
        if known is None or known[0] != view.version:
            known = self._rendered[name] = (view.version, make(view))
        return known[1]
