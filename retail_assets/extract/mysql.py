"""MySQL and MariaDB as a source: many small results, because the extension keeps each in memory.

Results that are streamed would be read outside the transaction, each from a snapshot of its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

from typing_extensions import override

from retail_assets.errors import UsageError
from retail_assets.extract.source import SHOP, Column, Part, Selection, Source
from retail_assets.lake.sql import literal
from retail_assets.mapping.database import SourceTable

CHUNK_ROWS = 100_000
"""About how many rows are kept in memory at a time."""

OPTIONS = ("socket", "ssl_mode", "ssl_ca", "ssl_capath", "ssl_cert", "ssl_crl", "ssl_key")
"""What the query of a URL may say."""

_ZONES = ("+00:00", "+05:00")
"""A TIMESTAMP, which is a moment, is five hours later in the second; a DATETIME is the same."""


class MySQL(Source):
    """A MySQL or MariaDB server, read as a user with SELECT alone."""

    extension: ClassVar[str] = "mysql_scanner"
    moment_suffix: ClassVar[str] = "+00"

    @override
    def attach(self, url: str) -> None:
        parts = urlsplit(url)
        try:
            values = {
                "host": parts.hostname,
                "port": parts.port,
                "user": unquote(parts.username) if parts.username else None,
                "password": unquote(parts.password) if parts.password else None,
                "database": unquote(parts.path.removeprefix("/")) or None,
            }
        except ValueError as error:
            raise UsageError(f"RETAIL_DATABASE_URL is no URL: {error}.") from None
        options = dict(parse_qsl(parts.query))
        unknown = sorted(options.keys() - set(OPTIONS))
        if unknown or values["database"] is None:
            raise UsageError(
                f"RETAIL_DATABASE_URL cannot be used: {unknown[0]} is none of {', '.join(OPTIONS)}."
                if unknown
                else "RETAIL_DATABASE_URL names no database: mysql://USER:PASSWORD@HOST/DATABASE."
            )
        given = {**values, **options}.items()
        secret = ", ".join(f"{name} {literal(str(value))}" for name, value in given if value)
        self.connection.execute(f"CREATE SECRET source (TYPE mysql, {secret})")
        self.connection.execute(f"SET mysql_session_time_zone = '{_ZONES[0]}'")
        # Not READ_ONLY: the extension would not let us set limits then. The server refuses writes.
        self.connection.execute(f"ATTACH '' AS {SHOP} (TYPE mysql, SECRET source)")

    @override
    def begin(self) -> dict[str, str]:
        self.connection.execute("BEGIN")
        statement = self.declared.statement_timeout_seconds
        version = str(self.fetch("SELECT version() AS version")[0][0])
        mariadb = "mariadb" in version.lower()
        limits = {
            "lock_wait_timeout": self.declared.lock_timeout_seconds,
            "innodb_lock_wait_timeout": self.declared.lock_timeout_seconds,
            **({"max_statement_time": statement} if mariadb else {}),
            **({} if mariadb else {"max_execution_time": statement * 1000}),
        }
        for name, value in limits.items():
            self._execute(f"SET SESSION {name} = {value}")
        # It ends the transaction that the extension has begun, which has read nothing.
        self._execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        self._execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        found = {"server": f"{'MariaDB' if mariadb else 'MySQL'} {version}"}
        # These show nothing where something is unknown or forbidden.
        for sql in (
            "SHOW STATUS LIKE 'binlog_snapshot_%'",
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('gtid_executed', 'gtid_binlog_pos')",
        ):
            found |= {str(name).lower(): str(value) for name, value in self.fetch(sql) if value}
        if found.get("binlog_snapshot_position") == "0":
            del found["binlog_snapshot_position"]
        found["taken_at"] = f"{self.fetch('SELECT now(6) AS now')[0][0]}+00"
        return found

    def _execute(self, sql: str) -> None:
        self.connection.execute(f"CALL mysql_execute('{SHOP}', {literal(sql)})").fetchall()

    @override
    def name(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    @override
    def text(self, column: Column, of: str) -> str:
        name = f"{of}.{self.name(column.name)}"
        if column.type == "BOOLEAN":
            # A BIT(1) would be a byte.
            name = f"{name} + 0"
        text = f"CONVERT({name} USING utf8mb4)"
        if column.type != "BLOB":
            return text
        # Texts of a binary collation are BLOB to DuckDB as well.
        return (
            f"IF(CHARSET({name}) = 'binary', CONCAT(CHAR(92 USING utf8mb4), 'x',"
            f" LOWER(HEX({name}))), {text})"
        )

    @override
    def is_no_day(self, time: str) -> str:
        # Such as 2026-10-00, which some settings of the server let through.
        return f"MONTH({time}) = 0 OR DAYOFMONTH({time}) = 0"

    @override
    def call(self, sql: str) -> str:
        return f"mysql_query('{SHOP}', {literal(sql)}, stream_results = false)"

    @override
    def columns(self, relation: str) -> list[Column]:
        """The columns; which of them are TIMESTAMP, and so moments, a value of each tells."""
        found = super().columns(relation)
        times = [column for column in found if column.kind == "local"]
        if not times:
            return found
        values = ", ".join(
            f"(SELECT CONVERT(source.{self.name(c.name)} USING utf8mb4) FROM {relation} AS source"
            f" WHERE source.{self.name(c.name)} > '1971-01-01' LIMIT 1) AS c{n}"
            for n, c in enumerate(times)
        )
        seen = []
        for zone in _ZONES:
            self._execute(f"SET time_zone = '{zone}'")
            seen.append(self.fetch(f"SELECT {values}")[0])
        self._execute(f"SET time_zone = '{_ZONES[0]}'")
        moments = {
            column.name
            for column, first, second in zip(times, *seen, strict=True)
            if first and _between(first, second) == timedelta(hours=5)
        }
        return [replace(c, kind="instant") if c.name in moments else c for c in found]

    @override
    def is_unique(self, table: SourceTable, column: str) -> bool:
        if table.table is None:
            return False
        *schema, name = table.table_parts
        database = literal(schema[0]) if schema else "DATABASE()"
        return bool(
            self.fetch(
                "SELECT 1 AS found FROM information_schema.statistics"
                f" WHERE table_schema = {database} AND table_name = {literal(name)}"
                " AND non_unique = 0 GROUP BY index_name HAVING count(*) = 1"
                f" AND max(column_name) = {literal(column)}"
                " AND max(sub_part) IS NULL"
            )
        )

    @override
    def read(self, into: str, selection: Selection, tell: Callable[[int], None]) -> None:
        texts = self.texts(selection.columns, "source")
        select = f"SELECT {texts} FROM {selection.relation} AS source"
        done = 0
        for number, condition in enumerate(self._chunks(selection)):
            sql = f"{select} WHERE {condition('source')}"
            if selection.whole_by is not None:
                key = self.name(selection.whole_by.name)
                sql = (
                    f"{select} WHERE source.{key} IN (SELECT chosen.{key} FROM"
                    f" {selection.relation} AS chosen WHERE {condition('chosen')})"
                    f" UNION ALL {select} WHERE source.{key} IS NULL AND {condition('source')}"
                )
            inserted = self.connection.execute(
                f"INSERT INTO {into} SELECT {number}, * FROM {self.call(sql)}"
            ).fetchone()
            done += inserted[0] if inserted else 0
            tell(done)

    def _chunks(self, selection: Selection) -> Iterator[Callable[[str], str]]:
        """Conditions that divide the rows to read into about `CHUNK_ROWS` each."""
        spread = selection.whole_by or selection.columns[0]
        if not selection.parts:
            (rows,) = self.fetch(f"SELECT count(*) AS n FROM {selection.relation} AS source")[0]
            yield from self._spread(lambda _: "TRUE", spread, rows)
        for part in selection.parts:
            for within, rows in self._ranges(selection.relation, part):
                yield from self._spread(within, spread, rows)

    def _ranges(self, relation: str, part: Part) -> Iterator[tuple[Callable[[str], str], int]]:
        """Contiguous hours of a part with up to `CHUNK_ROWS` rows, or one with more."""
        by = self.name(part.by.name)
        hours = self.fetch(
            f"SELECT LEFT(CONVERT(source.{by} USING utf8mb4), 13) AS hour, count(*) AS n"
            f" FROM {relation} AS source WHERE {part.condition('source')}"
            " GROUP BY hour ORDER BY hour"
        )

        def within(first: str | None, end: str | None) -> Callable[[str], str]:
            bounds = [(">=", first), ("<", end)]

            def condition(of: str) -> str:
                limits = [f"{of}.{by} {sign} '{_hour(hour)}'" for sign, hour in bounds if hour]
                return " AND ".join([f"({part.condition(of)})", *limits])

            return condition

        start, rows = 0, 0
        for n, (_, count) in enumerate(hours):
            if rows and rows + count > CHUNK_ROWS:
                yield within(hours[start][0] if start else None, hours[n][0]), rows
                start, rows = n, 0
            rows += count
        if rows:
            yield within(hours[start][0] if start else None, None), rows

    def _spread(
        self, within: Callable[[str], str], by: Column, rows: int
    ) -> Iterator[Callable[[str], str]]:
        """Divide rows by a hash, where they are too many."""
        shares = -(-rows // CHUNK_ROWS)

        def share(of: str, n: int) -> str:
            key = f"CONVERT({of}.{self.name(by.name)} USING utf8mb4)"
            return f"{within(of)} AND coalesce(crc32({key}), 0) MOD {shares} = {n}"

        if shares <= 1:
            yield within
        for n in range(shares if shares > 1 else 0):
            yield lambda of, n=n: share(of, n)  # type: ignore[misc]


def _between(first: str, second: str) -> timedelta | None:
    """The time between two times; None if one of them is of a day that no calendar has."""
    try:
        start, end = (datetime.fromisoformat(text.partition(".")[0]) for text in (first, second))
    except ValueError:
        return None
    return end - start


def _hour(text: str) -> str:
    """The start of an hour, or of the day of a date, as the server reads it."""
    return text if len(text) <= len("2026-10-05") else f"{text}:00:00"
