"""Whether the lake can be read, as a condition and a sentence that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

import duckdb

from retail_assets.errors import RetailAssetsError
from retail_assets.explain import explain_text
from retail_assets.lake import history
from retail_assets.lake.connection import NoLakeError
from retail_assets.secrets import mask
from retail_assets.tables import ENRICHED_EVENTS, RAW_EVENTS, RAW_ORDERS, REJECTED_ORDERS


class Condition(str, Enum):
    """What can be said of a lake before its rows."""

    reading = "reading"
    ready = "ready"
    empty = "empty"
    missing = "missing"
    locked = "locked"
    older = "older"
    newer = "newer"
    unavailable = "unavailable"


@dataclass(frozen=True)
class LakeState:
    """The condition of the lake, and a sentence on it; blank where there is nothing to say."""

    condition: Condition
    sentence: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether there are rows to show."""
        return self.condition is Condition.ready


class LakeStateError(RetailAssetsError):
    """The lake cannot be read; `state` says why."""

    def __init__(self, state: LakeState) -> None:
        super().__init__(state.sentence)
        self.state = state


READY = LakeState(Condition.ready)

EMPTY = LakeState(
    Condition.empty,
    "The lake has no orders and no events yet: put order exports into the folder exports/ or event"
    " files into events/, or try it with `retail-assets generate`.",
)


def state_of(connection: duckdb.DuckDBPyConnection) -> LakeState:
    """Whether a lake that is open has any order or event."""
    landed = (RAW_ORDERS, REJECTED_ORDERS, RAW_EVENTS, ENRICHED_EVENTS)
    return READY if history.most_rows(connection, *landed) else EMPTY


def failed_state(error: BaseException) -> LakeState:
    """The state of a lake that could not be opened or read, by the error."""
    if isinstance(error, LakeStateError):
        return error.state
    if isinstance(error, NoLakeError):
        return LakeState(
            Condition.missing,
            f"{str(error).split(':')[0]}. It is made with the first orders or events: run"
            " `retail-assets backfill`, or start the worker.",
        )
    text = f"{type(error).__name__}: {error}"
    lower = text.lower()
    # As SQLite says it, or as `explain` does where the lake was to be opened.
    if "database is locked" in lower or "another process holds the database" in lower:
        return LakeState(
            Condition.locked,
            "Another process holds the lake's catalog. The board reads it again by itself as soon"
            " as it is free.",
        )
    if "ducklake" in lower and "version" in lower and "no snapshot" not in lower:
        return LakeState(
            Condition.newer,
            "The lake was written by a newer release: install that release for the board as well.",
        )
    if isinstance(error, (duckdb.CatalogException, duckdb.BinderException)):
        return LakeState(
            Condition.older,
            "The lake has not been brought up to date with this release: run `retail-assets init`,"
            " which adds what is missing and changes no row.",
        )
    sentence = str(error) if isinstance(error, RetailAssetsError) else explain_text(text)
    return LakeState(
        Condition.unavailable, mask(sentence or f"The lake cannot be read: {str(error)[:300]}")
    )


@contextmanager
def naming_state() -> Iterator[None]:
    """Turn errors of reading into a `LakeStateError` that says what to do.

    Raises:
        LakeStateError: in place of an error of DuckDB, of the platform or of the system.
    """
    try:
        yield
    except (RetailAssetsError, duckdb.Error, OSError) as error:
        raise LakeStateError(failed_state(error)) from error
