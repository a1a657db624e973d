"""Sub-commands of the lake: queries, status, upkeep."""

from pathlib import Path
from typing import Annotated

import typer

from retail_assets.cli.base import PRINTERS, Format, err, out, print_summary, snapshot_of, tell
from retail_assets.cli.printing import print_message
from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.explain import explain_text
from retail_assets.settings import Settings, load_settings


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
    """Query the lake, read-only; with --at, as it was at a snapshot or a time."""
    import duckdb

    from retail_assets.lake.connection import Lake
    from retail_assets.lake.reader import open_reader
    from retail_assets.lake.row_files import write_rows

    settings = load_settings()
    lake = Lake.from_settings(settings)
    with open_reader(lake, snapshot_of(settings, at)) as reader:
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
                PRINTERS[format](columns, reader.rows())
        except duckdb.Error as error:
            reason = explain_text(f"{type(error).__name__}: {error}") or error
            raise RetailAssetsError(*f"The query failed: {reason}".splitlines()) from error


def status(
    format: Annotated[Format, typer.Option(help="How to print the figures.")] = Format.table,
    everything: Annotated[
        bool, typer.Option("--all", help="Show figures of the table that are zero as well.")
    ] = False,
    check: Annotated[bool, typer.Option(help="Exit with 1 if something has failed.")] = False,
) -> None:
    """Say whether all is well, and show what is pending, failed or behind, and the lake's size."""
    from retail_assets.health.outside import current_verdict
    from retail_assets.health.status import LABELS, collect_status
    from retail_assets.health.verdict import Issue, Level, Verdict
    from retail_assets.lake.connection import NoLakeError

    settings = load_settings()
    figures = collect_status(settings)
    if format is not Format.table and not check:
        PRINTERS[format](["figure", "value"], list(figures.items()))
        return
    try:
        found = current_verdict(settings)
    except NoLakeError as error:
        found = Verdict(str(error))
    shown = figures
    if format is Format.table:
        for issue in found.issues or [Issue(found.level, "", found.sentence)]:
            mark = {Level.well: "✓", Level.warning: "!", Level.failure: "✕"}[issue.level]
            print_message(out, f"{mark} {issue.text}")
        shown = {LABELS.get(name, name): value for name, value in figures.items()}
        if not everything:
            shown = {name: value for name, value in shown.items() if value}
    PRINTERS[format](["figure", "value"], list(shown.items()))
    if len(shown) < len(figures):
        tell(f"{len(figures) - len(shown)} more figures are zero or blank: --all shows them.")
    if check and found.level is Level.failure:
        raise typer.Exit(1)


def init(
    beside_files: Annotated[
        bool,
        typer.Option(help="Make it even if there are files of a lake, which it will not know."),
    ] = False,
) -> None:
    """Make an empty lake; the first write does that as well, if there are no files."""
    from retail_assets.lake.connection import Lake

    lake = Lake.from_settings(load_settings())
    made = lake.create(beside_files=beside_files)
    err.print("An empty lake was made." if made else "There is a lake already.")


def copy_catalog(
    to: Annotated[
        str, typer.Argument(help="The new catalog: a path, or `postgres:` and what to connect to.")
    ],
    data: Annotated[
        str, typer.Option(help="Where the copies of the lake's files lie: a folder or `s3://…`.")
    ],
) -> None:
    """Copy the lake's catalog to a server, or back to a file: many machines instead of one."""
    from retail_assets.lake.catalog_copy import copy_catalog as copy
    from retail_assets.lake.connection import Lake

    settings = load_settings()
    there = Settings(lake_catalog=to, lake_data=data)
    newest = copy(Lake.from_settings(settings), there.catalog, there.data_path)
    print_message(
        out,
        f"The catalog is copied, up to snapshot {newest}. Copy the files as well, then set"
        " RETAIL_LAKE_CATALOG and RETAIL_LAKE_DATA: what is written to the old lake from now on is"
        " not in the new one.",
    )


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
    print_summary("Maintenance", vars(done))
