"""Follows the events with lookups: asks an API about each new value, and keeps what it answers.

The ingest never waits for an API, and no event is changed by an answer. A lookup follows the events
as a consumer does: in one transaction with its offset it enters the values that it has no good
answer for (`waiting_lookups`). Outside of any transaction it asks, and then moves what was answered
to `api_lookups`. A value without an answer is asked again, later each time, so it is `unknown` now
and put right by itself.

Answers are only added. An event has the first answer that was still good when the event was
received (view `event_lookups`), so neither a later answer nor a replay changes what it had.
Enriched events stay as the rules made them: to write answers into them would rewrite their history
whenever an API is slow, and a replay would have to wait for it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from retail_assets.consumers.framework import PERSIST_AFTER, PERSIST_AGE
from retail_assets.ingest.ledgers.offsets import consumer_offset, move_consumer
from retail_assets.lake import history
from retail_assets.lake.connection import Lake, current_snapshot
from retail_assets.lake.rows import insert_columns
from retail_assets.lake.snapshot_read import SnapshotRead
from retail_assets.outbound.lookups.client import (
    REFUSED,
    Answer,
    Breaker,
    LookupClient,
    NoAnswerError,
    Pace,
)
from retail_assets.outbound.lookups.known import KnownAnswers
from retail_assets.secrets import mask
from retail_assets.tables import ENRICHED_EVENTS, WAITING_LOOKUPS
from retail_assets.tables.lookups import OWN_FIELDS

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

CHECKED_VALUES = 100_000
"""How many values of events are looked up at a time, which bounds the memory."""

_VALUES, _UNANSWERED = "temp.main.event_values", "temp.main.unanswered_values"

AT_ONCE = 500
"""How many values are asked for between two commits."""

COMMIT_SECONDS = 1.0
"""How long answers wait for others at most, so that they are committed together."""

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 10, 3600
"""When a value without an answer is asked again, first and at most; each time twice as late."""


class LookupFollower:
    """Asks about the values of one field; one iteration at a time."""

    def __init__(self, lake: Lake, client: LookupClient) -> None:
        self._lake = lake
        self._client = client
        self._lookup = client.lookup
        self.name = client.name
        self.breaker = Breaker()
        self._known = KnownAnswers(client.name)
        self._pace = Pace(self._lookup.per_second)
        self._last_problem: str | None = None

    def close(self) -> None:
        """Close the client's connections."""
        self._known.close()
        self._client.close()

    @property
    def consumer(self) -> str:
        """Its name among the consumers in the ledger of offsets."""
        return f"lookup:{self.name}:{self._lookup.field}"

    def iterate(
        self, connection: "duckdb.DuckDBPyConnection", *, stop: Callable[[], bool] = lambda: False
    ) -> Mapping[str, float]:
        """Enter new values, and ask about those that are due.

        Args:
            connection: a connection that can write, in no transaction.
            stop: whether to ask nothing more; the values are asked about another time.

        Returns:
            Metrics: how many values wait, how many of these had a failure, and whether the breaker
            is open.
        """
        self.collect(connection)
        while not stop() and not self.breaker.is_open:
            due = self._due(connection)
            if not due or not self._ask(connection, due, stop):
                break
            self.collect(connection)
        return self._measure(connection)

    def collect(self, connection: "duckdb.DuckDBPyConnection") -> None:
        """Enter the values of new events that have no good answer, with the offset."""
        with SnapshotRead(connection):
            offset, seen = consumer_offset(connection, self.consumer), current_snapshot(connection)
            if offset == seen:
                return
            kept, changed = history.changes_since(
                connection, -1 if offset is None else offset, ENRICHED_EVENTS
            )
            if (
                offset is not None
                and kept
                and not changed
                and not _is_far(connection, offset, seen)
            ):
                return
            self._known.follow(connection, seen)
            events = "lake.enriched_events"
            if kept and offset is not None:
                events = f"lake.table_insertions('enriched_events', {offset + 1}, {seen})"
            self._stage_values(connection, events)
        new = self._stage_unanswered(connection)
        # Others may have answered since: then a value is asked about twice, and nothing changes.
        with self._lake.transaction(connection, f"look up {self.name}"):
            if consumer_offset(connection, self.consumer) != offset:
                return
            if new:
                connection.execute(
                    "INSERT INTO lake.waiting_lookups BY NAME"
                    " SELECT ? AS lookup, value, now() AS since, 0 AS attempts,"
                    f" now() AS next_attempt_at, NULL AS problem FROM {_UNANSWERED}"
                    " WHERE value NOT IN (SELECT value FROM lake.waiting_lookups WHERE lookup = ?)",
                    [self.name, self.name],
                )
            move_consumer(connection, self.consumer, seen)

    def _stage_values(self, connection: "duckdb.DuckDBPyConnection", events: str) -> None:
        field = self._lookup.field
        value = field if field in OWN_FIELDS else f"extra ->> '{field}'"
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE event_values AS SELECT {value} AS value,"
            " epoch_us(max(coalesce(received_at, received_date::TIMESTAMPTZ))) AS received_us"
            f" FROM {events} WHERE value IS NOT NULL GROUP BY ALL"
        )

    def _stage_unanswered(self, connection: "duckdb.DuckDBPyConnection") -> int:
        """Stage those of the values that have no good answer; returns how many there are."""
        connection.execute("CREATE OR REPLACE TEMP TABLE unanswered_values (value VARCHAR)")
        (count,) = connection.execute(f"SELECT count(*) FROM {_VALUES}").fetchone() or (0,)
        new = 0
        for first in range(0, count, CHECKED_VALUES):
            some = self._known.unanswered(
                connection.execute(
                    f"FROM {_VALUES} WHERE rowid BETWEEN {first} AND {first + CHECKED_VALUES - 1}"
                ).fetchall()
            )
            if some:
                connection.execute(f"INSERT INTO {_UNANSWERED} SELECT unnest(?::VARCHAR[])", [some])
            new += len(some)
        return new

    def _due(self, connection: "duckdb.DuckDBPyConnection") -> list[tuple[str, int]]:
        """The values to ask about now, with the attempts before, and those without any first.

        It is one while the API may be away: whether it answers shows for all.
        """
        if not history.most_rows(connection, WAITING_LOOKUPS):
            return []
        return connection.execute(
            "SELECT value, attempts FROM lake.waiting_lookups WHERE lookup = ?"
            " AND next_attempt_at <= now() ORDER BY attempts, next_attempt_at LIMIT ?",
            [self.name, 1 if self.breaker.is_trying else AT_ONCE],
        ).fetchall()

    def _ask(
        self,
        connection: "duckdb.DuckDBPyConnection",
        due: Sequence[tuple[str, int]],
        stop: Callable[[], bool],
    ) -> bool:
        """Ask about some values, and commit what came of it; returns whether to go on."""
        until = time.monotonic() + COMMIT_SECONDS
        answers: dict[str, Answer] = {}
        failed: dict[str, tuple[int, str]] = {}

        def ask(value: str, attempts: int) -> None:
            late = time.monotonic() > until
            if late or self.breaker.is_open or not self._pace.wait(stop):
                return
            try:
                answers[value] = self._client.ask(value)
                if answers[value].state != REFUSED:
                    self.breaker.succeeded()
            except NoAnswerError as error:
                self.breaker.failed(error.rest_seconds)
                failed[value] = attempts + 1, str(error)

        with ThreadPoolExecutor(self._lookup.concurrency, f"lookup {self.name}") as threads:
            list(threads.map(ask, *zip(*due, strict=True)))
        self._say(failed)
        self._commit(connection, answers, failed)
        return bool(answers)

    def _commit(
        self,
        connection: "duckdb.DuckDBPyConnection",
        answers: Mapping[str, Answer],
        failed: Mapping[str, tuple[int, str]],
    ) -> None:
        if not answers and not failed:
            return
        now = datetime.now(timezone.utc)
        with self._lake.transaction(connection, f"answers of {self.name}"):
            # Another worker may have asked about the same values: its answers stay.
            these = "WHERE lookup = ? AND value IN (SELECT unnest(?::VARCHAR[]))"
            parameters = [self.name, [*answers, *failed]]
            since = dict(
                connection.execute(
                    f"SELECT value, since FROM lake.waiting_lookups {these}", parameters
                ).fetchall()
            )
            connection.execute(f"DELETE FROM lake.waiting_lookups {these}", parameters)
            self._enter_answers(
                connection, {value: answers[value] for value in answers if value in since}, now
            )
            again = [value for value in failed if value in since]
            if again:
                columns: dict[str, list[object]] = {
                    "value VARCHAR": [*again],
                    "since TIMESTAMPTZ": [since[value] for value in again],
                    "attempts BIGINT": [failed[value][0] for value in again],
                    "next_attempt_at TIMESTAMPTZ": [
                        now + _pause(failed[value][0]) for value in again
                    ],
                    "problem VARCHAR": [mask(failed[value][1]) for value in again],
                }
                insert_columns(connection, "waiting_lookups", columns, f"'{self.name}' AS lookup")

    def _enter_answers(
        self, connection: "duckdb.DuckDBPyConnection", answers: Mapping[str, Answer], now: datetime
    ) -> None:
        if not answers:
            return
        until = now + timedelta(hours=self._lookup.valid_hours)
        columns: dict[str, list[object]] = {
            "lookup VARCHAR": [self.name] * len(answers),
            "field VARCHAR": [self._lookup.field] * len(answers),
            "value VARCHAR": [*answers],
            "state VARCHAR": [answer.state for answer in answers.values()],
            "answer VARCHAR": [answer.answer for answer in answers.values()],
            "valid_until TIMESTAMPTZ": [until] * len(answers),
        }
        insert_columns(connection, "api_lookups", columns, "now() AS answered_at")

    def _say(self, failed: Mapping[str, tuple[int, str]]) -> None:
        """Log a problem once, not with every attempt."""
        problem = next((text for _, text in failed.values()), None)
        if problem is not None and problem != self._last_problem:
            logger.warning("%s The values wait, and are asked for again", problem)
        self._last_problem = problem

    def _measure(self, connection: "duckdb.DuckDBPyConnection") -> Mapping[str, float]:
        waiting, failing = waiting_of(connection).get(self.name, (0, 0, None))[:2]
        return {
            waiting_metric(self.name): waiting,
            f"lookup_{self.name}_failing": failing,
            f"lookup_{self.name}_open": int(self.breaker.is_open),
        }


def waiting_metric(name: str) -> str:
    """The metric that a worker has of a lookup that it asks for."""
    return f"lookup_{name}_waiting"


def waiting_of(
    connection: "duckdb.DuckDBPyConnection",
) -> dict[str, tuple[int, int, str | None]]:
    """By lookup, how many values wait, how many of these failed before, and the newest problem."""
    if not history.most_rows(connection, WAITING_LOOKUPS):
        return {}
    rows = connection.execute(
        "SELECT lookup, count(*), count(*) FILTER (attempts > 0),"
        " arg_max(problem, next_attempt_at) FROM lake.waiting_lookups GROUP BY lookup"
    ).fetchall()
    return {name: (waiting, failing, problem) for name, waiting, failing, problem in rows}


def _is_far(connection: "duckdb.DuckDBPyConnection", offset: int, seen: int) -> bool:
    """Whether an offset is to be moved though nothing has changed: its snapshot may expire."""
    return seen - offset >= PERSIST_AFTER or history.is_kept(
        connection, offset, older_than=PERSIST_AGE
    )


def _pause(attempts: int) -> timedelta:
    seconds = FIRST_RETRY_SECONDS * 2 ** min(attempts - 1, 20)
    return timedelta(seconds=min(seconds, LONGEST_RETRY_SECONDS))
