"""The bodies of messages: the events in them, or the event files that they name."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote_plus

from retail_assets.ingest.event_files.folder import is_event_file
from retail_assets.ingest.messages.bodies import BodyError, json_events, ndjson_events

NO_ENVELOPE = "no_envelope"
NO_NOTIFICATION = "no_notification"
OUTSIDE_EVENTS = "outside_events"


@dataclass(frozen=True)
class Opened:
    """A body: its events, each with its defect if it has one, and the event files that it names.

    `paths` are relative to the events folder. `ignored` says of each part that asks for nothing
    what it is.
    """

    events: tuple[tuple[bytes, str | None], ...] = ()
    paths: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


Open: TypeAlias = Callable[[bytes], Opened]


def open_events(body: bytes) -> Opened:
    """Find the events of a body: an object, several after each other, an array, or lines.

    A body that is nothing of that is one event, which is not valid: nothing of it is lost.
    """
    try:
        events = json_events(body)
    except BodyError:
        events = ndjson_events(body) if _has_objects_on_lines(body) else []
    return Opened(tuple((event, None) for event in events or [body]))


def open_sns_events(body: bytes) -> Opened:
    """Find the events of a message of Amazon SNS, in its envelope."""
    message = _sns_message(_parsed(body))
    if message is None:
        return Opened(((body, NO_ENVELOPE),))
    return open_events(message)


def open_notifications(bucket: str, prefix: str) -> Open:
    """Make a function that finds the event files which notifications of Amazon S3 name.

    They come as S3 sends them to a queue, or by EventBridge; both also in the envelope of SNS.

    Args:
        bucket: the bucket of the event files.
        prefix: the beginning of their keys, without a slash at its end.
    """

    def of_body(body: bytes) -> Opened:
        found = _parsed(body)
        message = _sns_message(found)
        if message is not None:
            found = _parsed(message)
        if isinstance(found, dict) and found.get("Event") == "s3:TestEvent":
            return Opened(ignored=("s3:TestEvent",))
        events: list[tuple[bytes, str | None]] = []
        paths: list[str] = []
        ignored: list[str] = []
        for record in _records(found):
            named = _Object.of(record)
            path = named.path(bucket, prefix) if named else None
            if named is None:
                events.append((_text(record, body), NO_NOTIFICATION))
            elif not named.is_new:
                ignored.append(named.event)
            elif path is None:
                events.append((_text(record, body), OUTSIDE_EVENTS))
            elif is_event_file(path):
                paths.append(path)
            else:
                ignored.append(f"{path} is no event file by its name")
        return Opened(tuple(events), tuple(dict.fromkeys(paths)), tuple(ignored))

    return of_body


def _has_objects_on_lines(body: bytes) -> bool:
    """Whether a body has an object on a line of its own; one that breaks off is a whole fault."""
    lines = body.split(b"\n")
    if len(lines) == 1:
        return False
    for line in lines:
        with suppress(BodyError):
            if line.lstrip().startswith(b"{") and json_events(line):
                return True
    return False


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _sns_message(found: Any) -> bytes | None:
    """The text in an envelope of SNS; None if it is none."""
    if not isinstance(found, dict) or found.get("Type") != "Notification":
        return None
    message = found.get("Message")
    return message.encode("utf-8", "backslashreplace") if isinstance(message, str) else None


def _records(found: Any) -> Iterator[Any]:
    """Each notification of a body; the body itself, if it has none."""
    records = found.get("Records") if isinstance(found, dict) else None
    if isinstance(records, list) and records:
        yield from records
    else:
        yield found


def _text(record: Any, body: bytes) -> bytes:
    # One of several stands alone; the body as a whole is kept as it came.
    return body if record is None else json.dumps(record).encode()


@dataclass(frozen=True)
class _Object:
    """An object of a bucket that something happened to."""

    event: str
    bucket: str
    key: str

    @classmethod
    def of(cls, record: Any) -> "_Object | None":
        try:
            if "detail-type" in record:
                # EventBridge writes the key as it is.
                detail = record["detail"]
                event, where, key = record["detail-type"], detail, detail["object"]["key"]
            else:
                event, where = record["eventName"], record["s3"]
                key = unquote_plus(where["object"]["key"], errors="strict")
            found = cls(event, where["bucket"]["name"], key)
            is_text = all(isinstance(text, str) for text in (event, found.bucket, key))
            key.encode()
        except (AttributeError, LookupError, TypeError, ValueError):
            return None
        return found if is_text and key and "\0" not in key else None

    @property
    def is_new(self) -> bool:
        """Whether the object was created or replaced."""
        name = self.event.removeprefix("s3:")
        return name.startswith("ObjectCreated:") or name == "Object Created"

    def path(self, bucket: str, prefix: str) -> str | None:
        """Where it lies in the events folder; None if it does not lie there."""
        if self.bucket != bucket:
            return None
        below = f"{prefix}/" if prefix else ""
        path = self.key.removeprefix(below)
        inside = self.key.startswith(below) and path
        parts = path.split("/")
        return path if inside and not path.startswith("/") and ".." not in parts else None
