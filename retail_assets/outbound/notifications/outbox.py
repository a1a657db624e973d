"""The outbox: messages are written in one transaction with the ledger of what they report.

So two processes do not report the same twice, and a killed one loses nothing. Messages are limited
per minute: findings above the limit wait until there is room, and then share one message.
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
"""How long messages, and findings that are over, are kept."""

SHOWN = 20
"""How many findings a message names."""


@dataclass(frozen=True)
class PendingMessage:
    """A message to be written: `told` are new findings, `over` the subjects that ended."""

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
    """Write messages about new findings and those that ended; there may be none.

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
    pending = _about_failures(connection, settings, now)[:room]
    pending += _about_alerts(connection, settings, now, room - len(pending))
    if not pending:
        return 0
    crowded = _has_old(connection, now - KEPT)
    with lake.transaction(connection, "write notifications"):
        if _state(connection) != state:
            # Another process was faster: look again next time.
            return 0
        if crowded:
            _delete_old(connection, settings, now)
        _write(connection, settings, pending, now)
    return len(pending)


def _about_failures(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime
) -> list[PendingMessage]:
    """New findings and resolved ones, one message for each kind."""
    known: dict[str, list[str]] = {kind: [] for kind in FAILURES}
    for kind, subject in connection.execute(
        "SELECT kind, subject FROM lake.notified WHERE resolved_at IS NULL ORDER BY ALL"
    ).fetchall():
        known.setdefault(kind, []).append(subject)
    holding: dict[str, list[Finding]] = {kind: [] for kind in FAILURES}
    for finding in findings.failures(connection, settings, now, known[findings.MISSING_DAY]):
        holding[finding.kind].append(finding)
    pending: list[PendingMessage] = []
    for kind, (title, plural) in FAILURES.items():
        told = [finding for finding in holding[kind] if finding.subject not in known[kind]]
        if told:
            message = _message(kind, "failure", title, plural, told, now)
            pending.append(PendingMessage(kind, message, told=told))
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
            pending.append(PendingMessage(kind, message, over=over))
    return pending


def _about_alerts(
    connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime, room: int
) -> list[PendingMessage]:
    """One message for each alert while there is room; the last one is about all others."""
    if room <= 0:
        return []
    found = findings.new_alerts(connection, settings, now)
    alone = len(found) if len(found) <= room else room - 1
    titles = {alert.kind: alert.title for alert in ALERTS}
    pending = [
        PendingMessage(
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
        pending.append(PendingMessage("alerts", message, told=others))
    return pending


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
    """A value that changes whenever somebody writes messages."""
    return connection.execute(
        "SELECT count(*), count(resolved_at), max(opened_at), max(resolved_at) FROM lake.notified"
    ).fetchone()


def _write(
    connection: duckdb.DuckDBPyConnection,
    settings: Settings,
    pending: Sequence[PendingMessage],
    now: datetime,
) -> None:
    rows = [
        # One microsecond apart: they are sent in this order.
        (each, now + timedelta(microseconds=number), service)
        for number, each in enumerate(pending)
        for service in services(settings)
    ]
    insert_columns(
        connection,
        "notifications",
        {
            "key VARCHAR": [each.message.key for each, _, _ in rows],
            "service VARCHAR": [service.name for _, _, service in rows],
            "kind VARCHAR": [each.kind for each, _, _ in rows],
            "severity VARCHAR": [each.message.severity for each, _, _ in rows],
            "title VARCHAR": [each.message.title for each, _, _ in rows],
            "body VARCHAR": [each.message.body for each, _, _ in rows],
            "created_at TIMESTAMPTZ": [time for _, time, _ in rows],
            "next_attempt_at TIMESTAMPTZ": [now for _ in rows],
        },
        "0 AS attempts",
    )
    told = [(each, finding) for each in pending for finding in each.told]
    if told:
        insert_columns(
            connection,
            "notified",
            {
                "kind VARCHAR": [finding.kind for _, finding in told],
                "subject VARCHAR": [finding.subject for _, finding in told],
                "message VARCHAR": [each.message.key for each, _ in told],
                "resolved_at TIMESTAMPTZ": [
                    None if finding.kind in FAILURES else now for _, finding in told
                ],
            },
            f"TIMESTAMPTZ '{now.isoformat()}' AS opened_at",
        )
    for kind, subjects in _over(pending).items():
        connection.execute(
            "UPDATE lake.notified SET resolved_at = ? WHERE kind = ? AND resolved_at IS NULL"
            " AND subject IN (SELECT unnest(?::VARCHAR[]))",
            [now, kind, subjects],
        )


def _over(pending: Sequence[PendingMessage]) -> Mapping[str, list[str]]:
    return {each.kind: list(each.over) for each in pending if each.over}


def _has_old(connection: duckdb.DuckDBPyConnection, since: datetime) -> bool:
    return bool(
        connection.execute(
            "SELECT 1 FROM lake.notifications WHERE created_at < ?"
            " UNION ALL SELECT 1 FROM lake.notified WHERE resolved_at < ? LIMIT 1",
            [since, since],
        ).fetchone()
    )


def _delete_old(connection: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> None:
    """Bound both tables, but keep the ledger of alerts that are young enough to be reported."""
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
