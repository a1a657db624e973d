"""Keeps secrets out of everything that is logged, printed, served or stored.

`protect` collects the values of the secret settings and of the environment of libpq and AWS, and
replaces them in every log record and in the tracebacks of uncaught errors of this process. `mask`
replaces them in a text that is stored or shown. Both also replace unknown passwords within
connection strings, URLs and headers.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "•••"

SHORTEST = 4
"""Shorter values are replaced only where they are a password: they occur in many words."""

_VARIABLES = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")

_PASSWORD = r"(?:ssl|sasl\.)?password|passwd|pwd|secret|(?:access_)?token|api_?key"  # noqa: S105
_VALUE = r"""'(?:\\.|''|[^'\\])*'|"(?:\\.|[^"\\])*"|[^\s,;&"']+"""
_PATTERNS = (
    # libpq, JAAS, queries of URLs; then JSON and Python's dictionaries.
    (re.compile(rf"(\b(?:{_PASSWORD})\s*=\s*)(?:{_VALUE})", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(rf"""(["'][\w.]*(?:{_PASSWORD})["']\s*:\s*)(?:{_VALUE})""", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(r"(://[^:/@\s]*:)[^@/\s]*@"), rf"\1{MASK}@"),
    (re.compile(r"\b((?:Bearer|Basic)\s+)(?=\S*[\d=])[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{MASK}"),
)
_SECRET_OPTION = re.compile(r"password|secret|token|key|jaas|credential|pem", re.IGNORECASE)
_PARTS = re.compile(r"[/:@?&=#+,\s]")
_IN_TEXT = re.compile(rf"(?:{_PASSWORD})\s*=\s*({_VALUE})|://[^:/@\s]*:([^\s]*)@", re.IGNORECASE)

_URL = re.compile(r"\w+://")

_known: re.Pattern[str] | None = None
_make_record = logging.getLogRecordFactory()


def protect(settings: Any) -> None:
    """Replace the secrets of these settings and of the environment from now on.

    Args:
        settings: a pydantic model; secret are its fields of type `SecretStr` (of a URL the
            password), fields with `repr=False`, and passwords within all other texts.
    """
    global _known  # noqa: PLW0603  # one per process, as log records are
    values = {
        form
        for value in (*_of_settings(settings), *(os.environ.get(name) for name in _VARIABLES))
        if value and len(value) >= SHORTEST
        for form in _forms(value)
    }
    longest_first = sorted(values, key=lambda value: (-len(value), value))
    _known = re.compile("|".join(map(re.escape, longest_first))) if values else None
    logging.setLogRecordFactory(_masked_record)
    sys.excepthook = _print_masked
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = lambda hook: _print_masked(
            hook.exc_type, hook.exc_value, hook.exc_traceback
        )


def mask(text: str) -> str:
    """Replace each secret in a text."""
    if _known is not None:
        text = _known.sub(MASK, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _of_settings(settings: Any) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if hasattr(value, "get_secret_value"):
            secret = value.get_secret_value()
            # People have to see which server an error is about.
            yield from _within(secret) if _URL.match(secret) else [secret]
        elif not field.repr and isinstance(value, Mapping):
            yield from (
                str(option) for key, option in value.items() if _SECRET_OPTION.search(str(key))
            )
            yield from (found for option in value.values() for found in _within(str(option)))
            for option in value.values():
                if hasattr(option, "get_secret_value"):
                    yield option.get_secret_value()
                elif hasattr(option, "model_fields_set"):
                    yield from _of_settings(option)
        elif not field.repr and value is not None:
            for text in [value] if isinstance(value, str) else value:
                yield str(text)
                yield from _parts_of_url(str(text))
        elif isinstance(value, str):
            yield from _within(value)


def _within(text: str) -> Iterator[str]:
    """The passwords within a connection string or a URL."""
    for found in _IN_TEXT.finditer(text):
        value = found[1] or found[2] or ""
        yield re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] in ("'", '"') else value


def _parts_of_url(url: str) -> Iterator[str]:
    """Any part of a URL after its scheme may be a key, except names of hosts and ports."""
    yield from _within(url)
    for part in _PARTS.split(url.partition("://")[2]):
        if len(part) > SHORTEST and "." not in part and part != "localhost" and not part.isdigit():
            yield part


def _forms(value: str) -> set[str]:
    """The spellings of a value in URLs, SQL, JSON and Python."""
    return {
        form
        for text in (value, unquote(value))
        for form in (
            text,
            quote(text, safe=""),
            quote_plus(text),
            text.replace("'", "''"),
            json.dumps(text)[1:-1],
            json.dumps(text, ensure_ascii=False)[1:-1],
            repr(text)[1:-1],
            text.replace("\\", "\\\\").replace("'", "\\'"),
        )
    }


def _masked_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make_record(*args, **kwargs)
    with suppress(Exception):  # the formatter reports it
        text = record.getMessage()
        masked = mask(text)
        if masked != text:
            _mask_message(record, masked)
    if record.exc_info and record.exc_info[0] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        masked = mask(text)
        if masked != text:
            # Formatters prefer it to exc_info.
            record.exc_text = masked
    return record


def _mask_message(record: logging.LogRecord, masked: str) -> None:
    """Mask the arguments one by one if that is enough: some formatters use them."""
    given, message = record.args, record.msg
    if isinstance(given, tuple):
        record.args = tuple(mask(value) if isinstance(value, str) else value for value in given)
    record.msg = mask(str(message))
    with suppress(TypeError, ValueError):
        if record.getMessage() == masked:
            return
    record.msg, record.args = masked, ()


def _print_masked(
    kind: type[BaseException],
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))
