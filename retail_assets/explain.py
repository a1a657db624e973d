"""Sentences for errors of other libraries: what happened, where, and what to do.

Known outages, such as a full disk, a damaged file or a lost server, have a sentence each. Their
text identifies them, because DuckDB, SQLAlchemy and Dagster wrap them into errors of their own, and
a run stores only texts.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from retail_assets.errors import RetailAssetsError
from retail_assets.secrets import mask

if TYPE_CHECKING:
    import threading

_AGAIN = "What was committed stays."
_VERIFY = "`retail-assets verify` says whose rows are in it and what brings them back."


def _rule(pattern: str, sentence: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE | re.DOTALL), sentence


_RULES = (
    _rule(
        r"no space left on device|disk is full|disk quota exceeded|could not write all bytes",
        "The disk is full{where}: make room and run it again. " + _AGAIN,
    ),
    _rule(
        r"file too large|filesize limit",
        "A file would be larger than this process may write{where}: raise the limit"
        " (`ulimit -f`) and run it again. " + _AGAIN,
    ),
    _rule(
        r"read-only file system|attempt to write a readonly database",
        "The disk or file is read-only{where}: make it writable and run it again. " + _AGAIN,
    ),
    _rule(
        r"input/output error|disk i/o error",
        "The disk failed to read or write{where}, or is full: make room, or look into the system's"
        " log, then run `retail-assets verify --deep`. " + _AGAIN,
    ),
    _rule(
        r"too many open files",
        "This process may not open as many files{where}: raise the limit (`ulimit -n`).",
    ),
    _rule(
        r"permission denied|permissionerror|operation not permitted",
        "Permission is missing{where}: run it as the owner of these files.",
    ),
    _rule(
        r"(?=.*\.parquet)(?=.*(no such file|does not exist|not found|404))",
        "A file of the lake is missing{where}. " + _VERIFY,
    ),
    _rule(
        r"(?=.*\.parquet)(?=.*(magic bytes|too small|parquet file|thrift|tprotocol|decompress"
        r"|snappy|zstd|corrupt|footer|could not read|out of range))",
        "A file of the lake is damaged{where}. " + _VERIFY,
    ),
    _rule(
        r"magic bytes|tprotocolexception|don't know what type|snappy decompression"
        r"|zstd decompression",
        "A file of the lake is damaged{where}. " + _VERIFY,
    ),
    _rule(
        r"(?=.*(sqlalchemy|sqlite3\.))(?=.*(not a database|malformed|unable to open database"
        r"|no such table))",
        "Dagster's history in DAGSTER_HOME={home} cannot be used ({reason}): move its *.db"
        " files away, or set DAGSTER_HOME to another folder. The lake is not affected.",
    ),
    _rule(
        r"not a database|disk image is malformed",
        "The catalog of the lake is damaged{where}: restore it from a backup"
        " (docs/operations.md, Backup and restore).",
    ),
    _rule(
        r"database is locked",
        "Another process holds the database{where}: wait until it has ended, and run it again.",
    ),
    _rule(
        r"dagster\w*configerror|dagster\.yaml|dagsterinstance|dagster_home|dagsterinvariant",
        "The Dagster instance in DAGSTER_HOME={home} cannot be used ({reason}): correct it, or set"
        " DAGSTER_HOME to another folder.",
    ),
    _rule(
        r"(?=.*(postgres|psycopg|server closed the connection|terminating connection"
        r"|connection failed))(?=.*(unable to connect|connection|server|could not))",
        "The database server of the catalog cannot be reached ({reason}): start it, or correct"
        " RETAIL_LAKE_CATALOG, and run it again. " + _AGAIN,
    ),
    _rule(
        r"(?=.*(\bs3\b|https?:|httperror|botocore|endpoint|bucket))(?=.*(could not|connect"
        r"|timed? ?out|forbidden|access ?denied|nosuchbucket|unable to locate credentials))",
        "The object storage cannot be used ({reason}): check the AWS_* variables and the"
        " network, and run it again. " + _AGAIN,
    ),
    _rule(
        r"outofmemory|out of memory|memoryerror|cannot allocate memory",
        "There is not enough memory: raise RETAIL_MEMORY_LIMIT (if the machine has as much), or"
        " run fewer processes. " + _AGAIN,
    ),
    _rule(
        r"interrupted|keyboardinterrupt",
        "It was stopped before it had finished. " + _AGAIN + " Run it again to go on.",
    ),
)

_PATH = re.compile(r"""["'“]((?:/|s3://)[^"'”]+)["'”]|(?<![\w:/])((?:/|s3://)[\w./=@%+-]+\.\w+)""")

_SERVER_SAID = re.compile(
    r"FATAL: [^\n]*|could not translate host name [^\n:]*|connection refused|timeout expired"
    r"|server closed the connection unexpectedly|connection timed out",
    re.IGNORECASE,
)


def debugging() -> bool:
    """Whether `--debug` asks for tracebacks."""
    return "--debug" in sys.argv


def explain(error: BaseException) -> list[str]:
    """The lines of an error of the platform, or one sentence for another one, without secrets."""
    for each in _chain(error):
        if isinstance(each, RetailAssetsError):
            return each.lines
        known = explain_text(_text(each))
        if known:
            return [known]
    return [_unknown(type(error).__name__, str(error))]


def told(error: BaseException) -> str:
    """The sentence for a known outage, or else the error's own text."""
    known = None if isinstance(error, RetailAssetsError) else explain_text(_text(error))
    return known or mask(str(error))


def _text(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__name__}: {error}"


def explain_dagster(error: Any) -> str:
    """The same for an error that a Dagster run has stored (`SerializableErrorInfo`)."""
    each = error
    while each is not None:
        if any(f".{name}" in each.message for name in _own()) or each.cls_name in _own():
            return mask(each.message.partition(": ")[2].strip() or each.message.strip())
        known = explain_text(f"{each.cls_name}: {each.message}")
        if known:
            return known
        each = each.cause or each.context
    while error.cause is not None:
        error = error.cause
    return _unknown(str(error.cls_name), error.message.partition(": ")[2])


def explain_text(text: str) -> str | None:
    """The sentence for a known outage, or None."""
    for pattern, sentence in _RULES:
        if pattern.search(text):
            return mask(
                sentence.format(
                    where=_where(text),
                    home=os.environ.get("DAGSTER_HOME", ""),
                    reason=_reason(text.partition(": ")[2]),
                )
            )
    return None


def _one_line(text: str) -> str:
    from retail_assets.visible_text import visible

    return visible(text)


def tell_of_threads(hook: "threading.ExceptHookArgs") -> None:
    """Print an error that ended a thread as a sentence, its traceback only with `--debug`."""
    if hook.exc_value is None or hook.exc_type is SystemExit:
        return
    if debugging():
        text = "".join(traceback.format_exception(hook.exc_value))
    else:
        text = f"Error in {hook.thread.name if hook.thread else 'a thread'}: "
        text += _one_line(" ".join(explain(hook.exc_value))) + "\n"
    sys.stderr.write(mask(text))


class SentenceFormatter(logging.Formatter):
    """Formats an error in a log as one sentence, its traceback only with `--debug`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, in one line."""
        if debugging():
            return super().format(record)
        if not record.exc_info or record.exc_info[1] is None:
            return _one_line(super().format(record))
        error, given, text = record.exc_info[1], record.exc_info, record.exc_text
        record.exc_info = record.exc_text = None
        try:
            return _one_line(f"{super().format(record)}: {' '.join(explain(error))}")
        finally:
            record.exc_info, record.exc_text = given, text


def _own() -> set[str]:
    names, found = [RetailAssetsError], set()
    while names:
        each = names.pop()
        found.add(each.__name__)
        names += each.__subclasses__()
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _where(text: str) -> str:
    found = _PATH.search(text)
    return f" ({found[1] or found[2]})" if found else ""


def _reason(text: str) -> str:
    """The answer of a server, or else the first line."""
    found = _SERVER_SAID.search(text)
    return found[0].strip().rstrip(".") if found else _first_line(text)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:300].rstrip(".")


def _unknown(kind: str, text: str) -> str:
    return mask(
        f"{kind}: {_first_line(text)}. This is a fault of the platform: please report it, with what"
        " `retail-assets --debug` and the same command print."
    )
