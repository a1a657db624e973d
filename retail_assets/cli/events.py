"""Sub-commands of events: ingest, replay, retraction, dead letters."""

import sys
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retail_assets.cli.base import PRINTERS, Format, connect_to_read, out, progress_bar, tell
from retail_assets.cli.printing import cell, print_rows, print_table
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Collection

    from retail_assets.ingest.event_files.load import IngestResult
    from retail_assets.ingest.event_files.pending import Pending
    from retail_assets.ingest.event_files.plan import FileResult


def ingest_events() -> None:
    """Ingest all pending event files now, as the sensor's runs would, and refresh live revenue."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest.event_files import load as event_files
    from retail_assets.ingest.event_files.pending import pending_event_files
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.lake.checksums import note_new_files
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with progress_bar() as progress, lake.connect() as connection:
        session = EventSession(lake, connection, settings.source_mapping.events)

        def ingest(paths: "Collection[str]") -> event_files.IngestResult:
            task = progress.add_task("Event files", total=len(paths))
            return event_files.ingest(
                session,
                settings,
                paths,
                progress=lambda done: progress.update(task, completed=done),
            )

        pending = pending_event_files(settings, connection)
        found = ingest(pending.files)
        later = pending_event_files(settings, connection)
        if later.unsettled:
            # Somebody may still be writing to them: the command is for all files, so wait.
            waiting = progress.add_task(
                f"Waiting until {len(later.unsettled)} files are unchanged", total=None
            )
            time.sleep(settings.event_settle_seconds)
            progress.remove_task(waiting)
            later = pending_event_files(settings, connection)
        if left := [path for path in later.files if path not in found.failed]:
            found.add(ingest(left))
        live_revenue.refresh(lake, connection)
        note_new_files(lake, connection)
    _print_event_files(found.files.values())
    _tell_of_event_files(found, pending, later.unsettled)
    if found.failed:
        raise RetailAssetsError(*found.failed.values())


def replay(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day received.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day received.")],
    check: Annotated[bool, typer.Option(help="Compare only, and change nothing.")] = False,
) -> None:
    """Recompute enriched events and dead letters from raw_events, day by day."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.ingest.repair import replay as work
    from retail_assets.lake.checksums import note_new_files
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    lake.must_exist()
    differences: list[work.Difference] = []
    with progress_bar() as progress, lake.connect() as connection:
        session = EventSession(lake, connection, settings.source_mapping.events)
        days = work.event_days(connection, start.date(), end.date())
        for day in progress.track(days, description="Check" if check else "Replay"):
            if check:
                differences += work.check_day(session, day)
            else:
                work.replay_day(session, day)
        if not check:
            live_revenue.refresh(lake, connection)
            note_new_files(lake, connection)
    if differences:
        raise RetailAssetsError(
            *(
                f"{found.day}: a replay would delete {found.gone} rows of {found.table} and insert"
                f" {found.new}, for example {', '.join(found.examples)}"
                for found in differences
            )
        )
    what = "would not change" if check else "are recomputed"
    out.print(f"{len(days)} days with events {what}.")


def retract_events(
    file: Annotated[str, typer.Argument(help="The file, relative to the events folder.")],
    version: Annotated[
        int | None,
        typer.Option(help="The version, as event_files has it; by default all earlier ones."),
    ] = None,
) -> None:
    """Retract the events and dead letters of earlier versions of a file; raw lines stay."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest.event_files.retraction import retract
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        session = EventSession(lake, connection, settings.source_mapping.events)
        done = retract(session, settings, file, version)
        live_revenue.refresh(lake, connection)
    for item in done:
        tell(
            f"{item.path}, version {item.version}: {item.events} events and"
            f" {item.dead_letters} dead letters were retracted"
        )


def list_letters(
    reason: Annotated[str | None, typer.Option(help="Only those with this reason code.")] = None,
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only those of this day.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List redriven dead letters as well.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 50,
    format: Annotated[Format, typer.Option(help="How to print them.")] = Format.table,
) -> None:
    """List dead letters, the newest first, by the id that `show` and `redrive` take."""
    from retail_assets.ingest.repair import dead_letters

    with connect_to_read(load_settings()) as connection:
        found = dead_letters.find(
            connection,
            reason=reason,
            day=day.date() if day else None,
            open_only=not everything,
            limit=limit,
        )
    columns = ("id", "received_date", "reason", "field", "redriven")
    PRINTERS[format](columns, [[letter[name] for name in columns] for letter in found])


def show_letter(
    id: Annotated[str, typer.Argument(help="The dead letter, as `list` shows it.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the payload alone, in the bytes that it came as.")
    ] = False,
) -> None:
    """Show a dead letter with its whole payload."""
    from retail_assets.ingest.repair import dead_letters

    with connect_to_read(load_settings()) as connection:
        found = dead_letters.find(connection, ids=[id])
    if not found:
        raise RetailAssetsError(f"There is no dead letter {id}: `dead-letters list` shows them.")
    if raw:
        from retail_assets.ingest.messages.payloads import original_bytes

        text = found[0]["payload"]
        payload = original_bytes(text) if found[0]["defect"] else text.encode()
        sys.stdout.buffer.write(payload)
        return
    print_rows(out, ["what", "value"], list(found[0].items()))


def redrive_letters(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Dead letters, as `list` shows them.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="All open ones with this reason code.")] = None,
    payload: Annotated[
        str | None,
        typer.Option(
            help="Corrected payload of the one dead letter: JSON, or @ and a file's name."
        ),
    ] = None,
) -> None:
    """Validate dead letters again, as they are or corrected, and ingest those that are valid."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest.events.session import EventSession
    from retail_assets.ingest.repair import dead_letters
    from retail_assets.lake.connection import Lake

    if bool(ids) == bool(reason):
        raise UsageError("Name dead letters, or give a --reason.")
    if payload and payload.startswith("@"):
        try:
            payload = Path(payload[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{payload[1:]} cannot be read: {error}") from error
    settings = load_settings()
    with connect_to_read(settings) as connection:
        if reason:
            found = dead_letters.find(connection, reason=reason, open_only=True)
            ids = [letter["id"] for letter in found]
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        session = EventSession(lake, connection, settings.source_mapping.events)
        done = dead_letters.redrive(session, ids or [], payload=payload)
        live_revenue.refresh(lake, connection)
    print_rows(out, ["id", "outcome"], [[item.id, item.outcome] for item in done])


def _tell_of_event_files(
    found: "IngestResult", pending: "Pending", unsettled: Iterable[str]
) -> None:
    """Print the notices about files, and the files that were not ingested."""
    for file in found.files.values():
        if file.notice:
            tell(file.notice, style="yellow")
    for path, reason in pending.left_alone.items():
        tell(f"{path} {reason}", style="yellow")
    if pending.about_not_read():
        tell(pending.about_not_read(), style="yellow")
    for path in unsettled:
        tell(f"{path} is still being written to", style="yellow")
    for name, kind in found.new_fields:
        tell(f"New field {name} ({kind})", style="yellow")


def _print_event_files(files: "Iterable[FileResult]") -> None:
    changed = [file for file in files if file.outcome != "unchanged"]
    names = ("lines", "accepted", "dead_lettered", "duplicate")
    print_table(
        out,
        ("file", "outcome", *(name.replace("_", "-") for name in names)),
        [
            [cell(file.path), file.outcome, *(cell(getattr(file, name)) for name in names)]
            for file in changed
        ],
        numbers=(False, False, True, True, True, True),
        footer=[
            f"{len(changed)} files",
            "",
            *(cell(sum(getattr(file, name) for file in changed)) for name in names),
        ],
    )
