"""The changes that a transaction makes to rows of event files and to their ledger entries.

Files with the same content count once, under the one that was received first; the others are copies
of it, however each came to its content. When the owner changes or is retracted, a copy gets the
rows. A file that got shorter or starts differently has a further version: the events of the version
before stay, or are retracted.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

from retail_assets.ingest.event_files.reader import Chunk
from retail_assets.ingest.ledgers.event_files import FILE, Entry, FoundFile, Key, Progress

if TYPE_CHECKING:
    from retail_assets.ingest.events.batch import Delta, EventBatch

COPY = "copy"
"""The outcome of a file whose content is there under another name."""

CHANGED, REPLACED = "changed", "replaced"
"""The outcome of a file that got shorter or starts differently: the events of the version before
stay, or are retracted."""


@dataclass(frozen=True)
class FileResult:
    """The outcome of one file.

    `outcome` is `new`, `grown`, `changed`, `replaced`, `copy` or `unchanged`; the counts are of the
    lines that were ingested now. Of a file that is `changed` or `replaced`, `events_before` and
    `dead_letters_before` are those of the version before, which stay or were retracted; none of a
    file whose last line went on, since it has them still.
    """

    path: str
    outcome: str
    lines: int
    accepted: int
    dead_lettered: int
    events_before: int = 0
    dead_letters_before: int = 0

    @property
    def duplicate(self) -> int:
        """Lines whose event is there from elsewhere."""
        return self.lines - self.accepted - self.dead_lettered

    @property
    def notice(self) -> str | None:
        """Say what happened to the version before of a file that changed."""
        if not (self.events_before or self.dead_letters_before):
            return None
        before = (
            f"{self.path} got shorter or starts differently:"
            f" {self.events_before} events and {self.dead_letters_before} dead letters of the"
            " version before"
        )
        if self.outcome == REPLACED:
            return f"{before} were retracted (RETAIL_CHANGED_EVENT_FILES=replace)"
        return f"{before} stay; `retail-assets events retract` retracts them"

    def plus(self, later: "FileResult") -> "FileResult":
        """This and a later chunk of the same file."""
        if later.outcome == COPY:
            return replace(later, lines=self.lines + later.lines)
        return replace(
            self,
            outcome=REPLACED if later.outcome == REPLACED else self.outcome,
            events_before=self.events_before + later.events_before,
            dead_letters_before=self.dead_letters_before + later.dead_letters_before,
            lines=self.lines + later.lines,
            accepted=self.accepted + later.accepted,
            dead_lettered=self.dead_lettered + later.dead_lettered,
        )


@dataclass(frozen=True)
class Waiting:
    """A chunk that was read and waits for its transaction; `entry` is what it goes on from.

    `refused` are lines (from 0) that fail every transaction, each with its defect.
    """

    file: FoundFile
    entry: Entry | None
    chunk: Chunk
    received_date: date
    refused: Mapping[int, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The file, relative to the events folder."""
        return self.file.path

    @property
    def key(self) -> Key:
        """The version that the chunk belongs to."""
        if self.entry is None:
            return self.path, 1
        return self.path, self.entry.version + self.restarted

    @property
    def restarted(self) -> bool:
        """Whether the chunk begins a further version of a file that the ledger has."""
        return self.entry is not None and (
            self.chunk.restarted or self.entry.retracted_us is not None
        )

    @property
    def content(self) -> str | None:
        """The hash of the file's content, once all of it was read and it has lines."""
        progress = self.chunk.progress
        return progress.content_hash if self.chunk.last and progress.lines else None

    @property
    def content_before(self) -> str | None:
        """The hash of the lines that the ledger has of the version, if it has any."""
        return None if self.entry is None or self.restarted else content_of(self.entry)

    def after(self) -> Entry:
        """The ledger's entry once the chunk is in, without what is counted now."""
        old, file, progress = self.entry, self.file, self.chunk.progress
        if old is not None and not self.restarted:
            return replace(
                old,
                size_bytes=file.size_bytes,
                modified_ns=file.modified_ns,
                progress=progress,
                received_us=old.received_us if old.progress.lines else file.modified_ns // 1000,
            )
        return Entry(
            path=self.path,
            version=self.key[1],
            received_date=self.received_date,
            size_bytes=file.size_bytes,
            modified_ns=file.modified_ns,
            progress=progress,
            accepted=0,
            dead_lettered=0,
            copy_of=None,
            received_us=file.modified_ns // 1000,
        )


def content_of(entry: Entry) -> str | None:
    """The hash of the lines of an entry, if it has any."""
    return entry.progress.content_hash if entry.progress.lines else None


def state_of(entry: Entry | None) -> tuple[int, Progress, bool] | None:
    """How far the ledger is with a file: another process may have gone on meanwhile."""
    if entry is None:
        return None
    return entry.version, entry.progress, entry.retracted_us is not None


class Plan:
    """The changes of each version of the files concerned; none is made here.

    Args:
        waiting: the chunks of the transaction.
        related: the entries of their files and of the same contents; see
            `event_ledger.related`.
        retracted: further versions, of `related`, whose events are to be retracted.
        replace_changed: whether the events of the version before of a changed file are retracted.
    """

    def __init__(
        self,
        waiting: Sequence[Waiting],
        related: Sequence[Entry],
        *,
        retracted: Iterable[Entry] = (),
        replace_changed: bool = False,
    ) -> None:
        self._waiting = {item.key: item for item in waiting}
        self._before = {entry.key: entry for entry in related}
        self.retracted = {entry.key: entry for entry in retracted}
        self.displaced: list[Entry] = []
        self.inherited: list[tuple[Entry, Entry]] = []
        now = time.time_ns() // 1000
        self._after = dict(self._before)
        for key, item in self._waiting.items():
            self._after[key] = item.after()
            old = item.entry
            if item.restarted and old is not None:
                self._after[old.key] = replace(old, superseded_us=now)
                # A line that went on is there whole now, and so are all before it.
                goes = replace_changed or item.chunk.resumed
                if goes and old.retracted_us is None:
                    self.retracted[old.key] = old
        for key in self.retracted:
            self._after[key] = replace(self._after[key], retracted_us=now)
        self._share()
        self._move()

    def _share(self) -> None:
        """Decide who owns each content that comes or goes, and who is a copy of it."""
        shared: dict[str | None, list[Entry]] = {
            content: []
            for content in (
                *(item.content for item in self._waiting.values()),
                *(item.content_before for item in self._waiting.values()),
                *map(content_of, self.retracted.values()),
            )
            if content is not None
        }
        for key, entry in self._after.items():
            item = self._waiting.get(key)
            content = item.content if item else content_of(entry)
            if entry.retracted_us is None and content in shared:
                shared[content].append(entry)
            elif item:
                self._after[key] = replace(entry, copy_of=None)
        for content, entries in shared.items():
            owner = min(
                entries,
                default=None,
                # A log that was renamed is as old as it was: its rows stay where they are.
                key=lambda entry: (entry.received_us, not self._owns(entry, content), *entry.key),
            )
            for entry in entries:
                self._after[entry.key] = (
                    replace(entry, copy_of=None)
                    if owner is None or entry.key == owner.key
                    else replace(entry, copy_of=owner.path, accepted=0, dead_lettered=0)
                )

    def _owns(self, entry: Entry, content: str | None) -> bool:
        """Whether a file has had the rows of a content before."""
        before = self._before.get(entry.key)
        return before is not None and before.copy_of is None and content_of(before) == content

    def _move(self) -> None:
        """Find whose rows have to go, and which copies become owners of which rows."""
        owners = {
            content_of(entry): entry
            for entry in self._before.values()
            if entry.copy_of is None and entry.retracted_us is None
        }
        for key, before in self._before.items():
            after = self._after[key]
            if before.copy_of is None and after.copy_of is not None:
                self.displaced.append(before)
            elif before.copy_of is not None and after.copy_of is None and key not in self.retracted:
                self.inherited.append((owners[content_of(before)], before))

    @property
    def copies(self) -> list[str]:
        """The files of the transaction whose lines are there under another name."""
        return [key[0] for key in self._waiting if self._after[key].copy_of is not None]

    def move_rows(self, batch: "EventBatch") -> None:
        """In the transaction, move the rows of versions that the transaction has no lines of."""
        batch.leave_out(FILE, self.copies)
        for owner, new_owner in self.inherited:
            batch.stage_copy(
                FILE, owner.key, new_owner.key, new_owner.received_date, new_owner.received_us
            )
        batch.retract(FILE, [entry.key for entry in self.retracted.values()])
        batch.remove_copies(FILE, [entry.key for entry in self.displaced])

    def entries(self, changes: Mapping[Key, "Delta"]) -> list[Entry]:
        """The ledger's entries that are to be written, with what was counted."""
        return [
            entry.counting(changes.get(key))
            for key, entry in self._after.items()
            if key in self._waiting or key in changes or entry != self._before.get(key)
        ]

    def has(self, key: Key) -> bool:
        """Whether the plan knows a version."""
        return key in self._after

    @property
    def known(self) -> set[Key]:
        """The versions that the ledger had before."""
        return set(self._before)

    def results(self, changes: Mapping[Key, "Delta"]) -> list[FileResult]:
        """The outcome of each file of the transaction."""
        return [self._result(item, changes.get(key)) for key, item in self._waiting.items()]

    def _result(self, item: Waiting, delta: "Delta | None") -> FileResult:
        old, lines = item.entry, item.chunk.lines
        accepted, dead_lettered = (delta.new_accepted, delta.new_dead_lettered) if delta else (0, 0)
        is_copy = self._after[item.key].copy_of is not None
        if any(new_owner.key == item.key for _, new_owner in self.inherited):
            # No copy any more: the other's lines count as its own from now on.
            lines = item.chunk.progress.lines
            return FileResult(item.path, "grown", lines, accepted, dead_lettered)
        if old is not None and item.restarted:
            none = item.chunk.resumed or old.retracted_us is not None
            counts = (0, 0) if none else (old.accepted, old.dead_lettered)
            outcome = REPLACED if old.key in self.retracted else CHANGED
            return FileResult(item.path, outcome, lines, accepted, dead_lettered, *counts)
        if is_copy and (lines or any(entry.key == item.key for entry in self.displaced)):
            outcome = COPY
        elif old is None:
            outcome = "new"
        else:
            outcome = "grown" if lines else "unchanged"
        return FileResult(item.path, outcome, lines, accepted, dead_lettered)
