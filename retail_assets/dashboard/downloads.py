"""Downloads: the rows behind a view as CSV that is safe for spreadsheets, or as an Excel file."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from retail_assets.dashboard.reading.period import Question, by_category
from retail_assets.errors import UsageError
from retail_assets.lake.connection import Lake
from retail_assets.lake.reader import open_reader
from retail_assets.lake.row_files import write_rows
from retail_assets.settings import Settings

MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}


@dataclass(frozen=True)
class Download:
    """A file to send: its name, its media type, and where it lies until it is sent."""

    name: str
    media_type: str
    path: Path


def period_rows(question: Question) -> str:
    """The query for a period: a row for each day, region and category."""
    return f"SELECT * FROM ({by_category(question)}) ORDER BY ALL"


def write_download(settings: Settings, query: str, name: str, ending: str) -> Download:
    """Write the rows of a query to a temporary file, which the caller deletes.

    Args:
        settings: which lake.
        query: one query of it.
        name: the file's name, without its ending.
        ending: `csv` or `xlsx`.

    Raises:
        UsageError: if the ending is another one.
        RetailAssetsError: if the lake cannot be read, or Excel cannot hold the rows.
    """
    if ending not in MEDIA_TYPES:
        raise UsageError(f"{ending!r} is none of {', '.join(MEDIA_TYPES)}.")
    lake = Lake.from_settings(settings)
    folder = Path(tempfile.mkdtemp(prefix="retail-board-"))
    path = folder / f"{name}.{ending}"
    try:
        with open_reader(lake) as reader:
            write_rows(lake, reader, query, path, raw=False)
    except BaseException:
        discard(path)
        raise
    return Download(path.name, MEDIA_TYPES[ending], path)


def discard(path: Path) -> None:
    """Delete a download with its folder."""
    path.unlink(missing_ok=True)
    path.parent.rmdir()
