"""Event files of tests: lines, and files that nobody writes to any more."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retail_assets.settings import Settings

STILL_NS = 1_791_800_000 * 10**9
"""When files of tests were last written to, unless told otherwise: 12 October 2026."""


def event(number: int, **changed: Any) -> str:
    """A line: a valid event of ten pounds, save what is changed; None leaves a field out."""
    fields = {
        "event_id": f"E{number}",
        "order_id": f"O{number}",
        "customer_id": "C1",
        "product_id": "P1",
        "order_value_gbp": 10,
        "region": "North",
    } | changed
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def write_events(
    settings: Settings, path: str, lines: Sequence[str] | bytes, *, modified_ns: int | None = None
) -> Path:
    """Write an event file in place of what lies there, as of long ago: lines, or a whole file.

    Lines are packed if the file is so named. By default its time goes with its size.
    """
    if isinstance(lines, bytes):
        content = lines
    else:
        content = "".join(f"{line}\n" for line in lines).encode()
        if path.endswith(".gz"):
            content = gzip.compress(content, mtime=0)
    file = Path(settings.events_location, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    time = STILL_NS + len(content) * 10**9 if modified_ns is None else modified_ns
    os.utime(file, ns=(time, time))
    return file
