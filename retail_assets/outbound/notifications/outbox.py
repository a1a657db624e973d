"""The outbox: messages are written here in one transaction with the ledger of what was told.

So nothing is told twice because two processes look, and nothing is forgotten because one is killed.
There are only so many messages in a minute: whatever comes above that stays unwritten until there
is room, and then shares one message.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

import duckdb

from retail_assets.lake.connection import Lake
from retail_assets.lake.rows import insert_columns
from retail_assets.outbound.notifications import findings
from retail_assets.outbound.notifications.findings import ALERTS, FAILURES, Finding
from retail_assets.outbound.notifications.services import Message, Severity, services
from retail_assets.settings import Settings

MINUTE = timedelta(minutes=1)

KEPT = timedelta(days=30)
"""How long messages, and what they were about, are remembered after they are over."""

SHOWN = 20
"""How many of many are named in a message."""


@dataclass(frozen=True)
class Draft:
    """A message, and what the ledger will know of it: what it tells of, or that it tells is over.

    `told` are findings that are new; `over` the subjects of a kind that hold no more.
    """

    kind: str
    message: Message
    told: Sequence[Finding] = ()
    over: Sequence[str] = ()


def collect(
    lake: Lake,
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    now: datetime | None = None,
) -> int:
    """Write messages about what is new since the last time; there may be none.

    Args:
        lake: the lake that the connection is to.
        connection: a connection that can write, in no transaction.
        settings: to whom, and how many.
        now: the time, with a time zone; by default that of the clock.

    Returns:
        How many messages were written.
    """
    now = now or datetime.now(timezone.utc)
    if not settings.notify_urls:
        return 0
    room = settings.notify_per_minute - _written_since(connection, now - MINUTE)
    if room <= 0:
        return 0
    state = _state(connection)
    drafts = _about_failures(connection, settings, now)[:room]
    drafts += _about_alerts(connection, settings, now, room - len(drafts))
    if not drafts:
        return 0
    crowded = _has_old(connection, now - KEPT)
    with lake.transaction(connection, "write notifications"):
        if _state(connection) != state:
            # Somebody else was faster: look again next time.
            return 0
        if crowded:
            _forget_old(connection, settings, now)
        _write(connection, settings, drafts, now)
    return len(drafts)


def _about_failures(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> list[Draft]:
    """New findings and resolved ones, one message for each kind."""
    known: dict[str, list[str]] = {kind: [] for kind in FAILURES}
    for kind, subject in connection.execute(
        "SELECT kind, subject FROM lake.notified WHERE resolved_at IS NULL ORDER BY ALL"
    ).fetchall():
        known.setdefault(kind, []).append(subject)
    holding: dict[str, list[Finding]] = {kind: [] for kind in FAILURES}
    for finding in findings.failures(connection, settings, now, known[findings.MISSING_DAY]):
        holding[finding.kind].append(finding)
    drafts: list[Draft] = []
    for kind, (title, plural) in FAILURES.items():
        told = [finding for finding in holding[kind] if finding.subject not in known[kind]]
        if told:
            message = _message(kind, "failure", title, plural, told, now)
            drafts.append(Draft(kind, message, told=told))
        subjects = {finding.subject for finding in holding[kind]}
        over = [subject for subject in known[kind] if subject not in subjects]
        if over:
            resolved = [Finding(kind, subject, subject) for subject in over]
            message = _message(
                f"{kind}-resolved",
                "success",
                f"Resolved: {title}",
                f"resolved {plural}",
                resolved,
                now,
            )
            drafts.append(Draft(kind, message, over=over))
    return drafts


def _about_alerts(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime, room: int
) -> list[Draft]:
    """A message each while there is room; the last one is about all others."""
    if room <= 0:
        return []
    found = findings.new_alerts(connection, settings, now)
    alone = len(found) if len(found) <= room else room - 1
    titles = {alert.kind: alert.title for alert in ALERTS}
    drafts = [
        Draft(
            finding.kind,
            Message(
                f"{finding.kind}:{finding.subject}", "warning", titles[finding.kind], finding.text
            ),
            told=[finding],
        )
        for finding in found[:alone]
    ]
    if others := found[alone:]:
        counts = ", ".join(
            f"{count} {alert.plural}"
            for alert in ALERTS
            if (count := sum(finding.kind == alert.kind for finding in others))
        )
        more = "more " if alone else ""
        lines = [Finding(f.kind, f.subject, f"{titles[f.kind]}: {f.text}") for f in others]
        message = _message("alerts", "warning", "", f"{more}alerts: {counts}", lines, now)
        drafts.append(Draft("alerts", message, told=others))
    return drafts


def _message(
    kind: str,
    severity: Severity,
    title: str,
    plural: str,
    about: Sequence[Finding],
    now: datetime,
) -> Message:
    lines = [finding.text for finding in about[:SHOWN]]
    if len(about) > SHOWN:
        lines.append(f"… and {len(about) - SHOWN} more.")
    content = "\n".join([now.isoformat(), *(f"{each.kind} {each.subject}" for each in about)])
    key = f"{kind}:{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    several = f"{len(about)} {plural}"
    return Message(key, severity, title if len(about) == 1 else several, "\n".join(lines))


def _written_since(connection: duckdb.DuckDBPyConnection, since: datetime) -> int:
    row = connection.execute(
        "SELECT count(DISTINCT key) FROM lake.notifications WHERE created_at > ?", [since]
    ).fetchone()
    return int(row[0]) if row else 0


def _state(connection: duckdb.DuckDBPyConnection) -> tuple[object, ...] | None:
    """Changes whenever somebody writes messages."""
    return connection.execute(
        "SELECT count(*), count(resolved_at), max(opened_at), max(resolved_at) FROM lake.notified"
    ).fetchone()


def _write(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    drafts: Sequence[Draft],
    now: datetime,
) -> None:
    rows = [
        # So that they are sent in this order.
        (draft, now + timedelta(microseconds=number), service)
        for number, draft in enumerate(drafts)
        for service in services(settings)
    ]
    insert_columns(
        connection,
        "notifications",
        {
            "key VARCHAR": [draft.message.key for draft, _, _ in rows],
            "service VARCHAR": [service.name for _, _, service in rows],
            "kind VARCHAR": [draft.kind for draft, _, _ in rows],
            "severity VARCHAR": [draft.message.severity for draft, _, _ in rows],
            "title VARCHAR": [draft.message.title for draft, _, _ in rows],
            "body VARCHAR": [draft.message.body for draft, _, _ in rows],
            "created_at TIMESTAMPTZ": [time for _, time, _ in rows],
            "next_attempt_at TIMESTAMPTZ": [now for _ in rows],
        },
        "0 AS attempts",
    )
    told = [(draft, finding) for draft in drafts for finding in draft.told]
    if told:
        insert_columns(
            connection,
            "notified",
            {
                "kind VARCHAR": [finding.kind for _, finding in told],
                "subject VARCHAR": [finding.subject for _, finding in told],
                "message VARCHAR": [draft.message.key for draft, _ in told],
                "resolved_at TIMESTAMPTZ": [
                    None if finding.kind in FAILURES else now for _, finding in told
                ],
            },
            f"TIMESTAMPTZ '{now.isoformat()}' AS opened_at",
        )
    for kind, subjects in _over(drafts).items():
        connection.execute(
            "UPDATE lake.notified SET resolved_at = ? WHERE kind = ? AND resolved_at IS NULL"
            " AND subject IN (SELECT unnest(?::VARCHAR[]))",
            [now, kind, subjects],
        )


def _over(drafts: Sequence[Draft]) -> Mapping[str, list[str]]:
    return {draft.kind: list(draft.over) for draft in drafts if draft.over}


def _has_old(connection: duckdb.DuckDBPyConnection, since: datetime) -> bool:
    return bool(
        connection.execute(
            "SELECT 1 FROM lake.notifications WHERE created_at < ?"
            " UNION ALL SELECT 1 FROM lake.notified WHERE resolved_at < ? LIMIT 1",
            [since, since],
        ).fetchone()
    )


def _forget_old(connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> None:
    """Bound both tables. An alert that is still young enough to be told of stays told of."""
    since = now - KEPT
    connection.execute(
        "DELETE FROM lake.notifications WHERE created_at < ?"
        " AND (sent_at IS NOT NULL OR given_up_at IS NOT NULL)",
        [since],
    )
    young = {alert.kind: findings.recent_alerts(alert, settings) for alert in ALERTS}
    for kind in (*FAILURES, *young):
        query, parameters = young.get(kind), [kind, since]
        still = ""
        if query is not None:
            still = f" AND subject NOT IN (SELECT subject FROM ({query}))"
            parameters.append(findings.oldest(settings, now))
        connection.execute(
            f"DELETE FROM lake.notified WHERE kind = ? AND resolved_at < ?{still}", parameters
        )
