"""Fuzzes the reader of exports: each record is staged or rejected, or its day fails by name.

`python -m retail_assets_tests.fuzz.exports FOLDER` with options of libFuzzer. The first byte of an
input says how its file lies there, the rest is what the file holds.
"""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from datetime import date
from itertools import islice
from pathlib import Path

import atheris

from retail_assets_tests.fuzz.fuzzing import folder_for, fuzz

with atheris.instrument_imports(
    include=[
        "retail_assets.ingest.exports.csv_file",
        "retail_assets.ingest.exports.csv_records",
        "retail_assets.ingest.exports.record_count",
        "retail_assets.ingest.exports.load",
        "retail_assets.ingest.exports.staging",
    ]
):
    import duckdb

    from retail_assets.engines.duckdb import SEPARATOR
    from retail_assets.errors import RetailAssetsError
    from retail_assets.ingest.exports import staging
    from retail_assets.ingest.exports.csv_file import Limits, inspect, survey
    from retail_assets.ingest.exports.files import ExportFile, ExportFolder
    from retail_assets.lake.connection import Lake
    from retail_assets.transforms.orders import REASONS
    from retail_assets_tests.conftest import HEADER, order_row

DAY, NEXT_DAY = date(2026, 10, 20), date(2026, 10, 21)
LIMITS = Limits(columns=20, header_bytes=500, line_bytes=1_500)

INPUTS = 1_000
"""How many go through one connection."""

PLAIN, COMPRESSED, SPOILT, BESIDE = b"pgz+"
"""A file as it is; one that gzip makes of it; one called so; one that is read with another."""


def row(region: str) -> str:
    return order_row("A1", DAY, region=region)


ROW = row("North")
ROWS = [order_row(name, DAY) for name in ("A2", "A3", "A4")]
TEXTS = (
    "",
    HEADER,
    HEADER + "\n",
    "\n".join([HEADER, ROW, *ROWS, ""]),
    "\r\n".join([HEADER, ROW, *ROWS]),
    "\r".join([HEADER, ROW, *ROWS, ""]),
    f"{HEADER}\n{ROW}\r\n" + "\r".join(ROWS),
    f"{HEADER}\n{ROW.rpartition(',')[0]},\r\nA1,C1\n{ROWS[0]}\n",
    f"\ufeff{HEADER}\n\n{ROW}\n\n",
    "\n".join([HEADER, "A1,C1,P1", ROW + ",more", ROW]),
    "\n".join([HEADER, row('"North, ""or"" South"'), ""]),
    "\n".join([HEADER, row('"1 Street\nTown"'), ROWS[0], ""]),
    "\n".join([HEADER, row('"North'), *ROWS, ""]),
    "\n".join([HEADER, row('No"rth'), ROWS[0], ""]),
    f'{HEADER},note\n{ROW}, "a" \n{ROWS[0]},"b"c\n',
    f"{HEADER}\n{ROW}\n{ROW}\n{order_row('A1', DAY, product_id='P2')}\n",
    f"{HEADER}\n{order_row('NULL', DAY, order_value_gbp='1e5', status='?')}\n",
)
WORDS = (
    *(HEADER.encode(), ROW.encode(), DAY.isoformat().encode(), b"completed", b"10.00"),
    *(b'"', b'""', b'",', b',"', b'"\n', b'\n"', b"\r\n", b"\r", b"\n", b"\0", b"\xff", b"\x1f"),
    *(b"\xef\xbb\xbf", b"\xc2\xa0", b"\x1f\x8b", b"PK\x03\x04", b'" "', b' "', b'" '),
)


def seeds() -> Iterator[bytes]:
    for text in TEXTS:
        for kind in (PLAIN, COMPRESSED, BESIDE):
            yield bytes([kind]) + text.encode()
        yield bytes([PLAIN]) + text.encode("utf-16")
    compressed = gzip.compress(TEXTS[3].encode(), mtime=0)
    yield from (
        bytes([SPOILT]) + data for data in (compressed, compressed[:-9], compressed + compressed)
    )


class ExportReader:
    """A folder of exports, and the connection that they are staged in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lake = Lake("", "", str(folder / "spill"))
        self.inputs = 0
        self._connect()

    def _connect(self) -> None:
        """Connect again, so that what DuckDB keeps of rows that were deleted does not add up."""
        self.connection = duckdb.connect(config={"threads": 1})
        self.connection.execute("SET TimeZone = 'Europe/London'")
        self.staging = staging._Staging(self.lake, self.connection, 3, None)
        for name, columns in staging._STAGING.items():
            self.connection.execute(f"CREATE TEMP TABLE {name} ({columns})")

    def check(self, data: bytes) -> None:
        """Read one input, and account for what it holds."""
        self.inputs += 1
        if self.inputs % INPUTS == 0:
            self.connection.close()
            self._connect()
        kind, content = (data[0], data[1:]) if data else (PLAIN, b"")
        compressed = kind in (COMPRESSED, SPOILT)
        path = self.folder / f"orders_{DAY:%Y_%m_%d}.csv{'.gz' if compressed else ''}"
        path.write_bytes(gzip.compress(content, 1) if kind == COMPRESSED else content)
        files = []
        try:
            file = inspect(ExportFolder(self.folder).locate(DAY), LIMITS)
        except RetailAssetsError as error:
            assert str(path) in str(error)  # noqa: PT017 this is no test of pytest
        else:
            files.append(file)
            if kind == BESIDE:
                files.append(self._neighbour(file))
            self._stage(files, None if kind == SPOILT else content)
        finally:
            path.unlink()

    def _neighbour(self, file: ExportFile) -> ExportFile:
        """An export of the same header with nothing wrong."""
        path = self.folder / f"orders_{NEXT_DAY:%Y_%m_%d}.csv"
        names = ",".join('"' + name.replace('"', '""') + '"' for name in file.header)
        rows = [",".join(["x"] * len(file.header))] * len(ROWS)
        path.write_text("\n".join([names, *rows, ""]), newline="")
        return inspect(ExportFolder(self.folder).locate(NEXT_DAY))

    def _stage(self, files: list[ExportFile], content: bytes | None) -> None:
        try:
            failed = self.staging.read(files)
            rows = self.connection.execute("SELECT export_date, raw FROM export_rows").fetchall()
            rejected = self.connection.execute(
                "SELECT export_date, reason, raw_text FROM rejected_rows"
            ).fetchall()
            malformed = self.connection.execute(
                "SELECT export_date, raw_text FROM malformed JOIN malformed_texts"
                " USING (export_date, record)"
            ).fetchall()
        finally:
            for name in staging._STAGING:
                self.connection.execute(f"TRUNCATE {name}")
        assert {reason for _, reason, _ in rejected} <= REASONS.keys()
        accounted = Counter(row[0] for row in (*rows, *rejected, *malformed))
        if len(files) > 1:
            # Nothing that is wrong with a file is the fault of another.
            assert NEXT_DAY not in failed, failed
            assert accounted[NEXT_DAY] == len(ROWS)
        file = files[0]
        if DAY in failed:
            assert str(file.path) in failed[DAY]
            assert not accounted[DAY]
            return
        exact = survey(file, LIMITS).records
        assert accounted[DAY] in {file.records, exact}, (accounted, file.records, exact)
        if content is None:
            return
        kept = [raw for day, raw in rows if day == DAY]
        kept += [fields_of(text) for day, _, text in rejected if day == DAY]
        kept += [text for day, text in malformed if day == DAY]
        text = content.decode(errors="replace")
        held = letters(text) - letters(header_of(text))
        assert letters("".join(kept)) == held, content


def fields_of(raw_text: str) -> str:
    """What the fields of a rejected row hold."""
    if SEPARATOR in raw_text:
        return raw_text
    return "".join(value or "" for value in json.loads(raw_text).values())


def letters(text: str) -> "Counter[str]":
    """How often each ASCII letter and digit stands there: no reader may lose one of these."""
    return Counter(one for one in text if one.isascii() and one.isalnum())


def header_of(content: str) -> str:
    """The header of an export, which may go over several lines."""
    text = io.StringIO(content, newline="")
    lines = csv.reader(text, skipinitialspace=True)
    next(lines)
    text.seek(0)
    return "".join(islice(text, lines.line_num))


def main() -> None:
    folder = folder_for("exports")
    fuzz(ExportReader(folder / "scratch").check, folder, seeds(), WORDS)


if __name__ == "__main__":
    main()
