"""PostgreSQL as a source: one COPY of the whole result, which the server sends as it reads."""

from collections.abc import Callable
from typing import ClassVar

from typing_extensions import override

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.extract.source import CONNECT_SECONDS, SHOP, Column, Selection, Source
from retail_assets.lake.sql import identifier, literal
from retail_assets.mapping.database import SourceTable

SNAPSHOT = """
    SELECT unnest(ARRAY['server', 'snapshot', 'wal_lsn', 'taken_at', 'encoding']) AS name,
        unnest(ARRAY[
            'PostgreSQL ' || current_setting('server_version'),
            txid_current_snapshot()::text,
            (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                ELSE pg_current_wal_lsn() END)::text,
            now()::text,
            current_setting('server_encoding')]) AS value
"""


class PostgreSQL(Source):
    """A PostgreSQL server, read as a superuser, an owner or somebody with SELECT alone."""

    extension: ClassVar[str] = "postgres_scanner"
    _ascii = False

    @override
    def attach(self, url: str) -> None:
        try:
            from psycopg import Error
            from psycopg.conninfo import conninfo_to_dict, make_conninfo
        except ModuleNotFoundError as error:
            raise RetailAssetsError(
                "PostgreSQL needs the extra `postgres`: pip install 'retail-assets[postgres]'."
            ) from error

        statement = self.declared.statement_timeout_seconds
        session = {
            "default_transaction_read_only": "on",
            "statement_timeout": f"{statement}s",
            "lock_timeout": f"{self.declared.lock_timeout_seconds}s",
            "idle_in_transaction_session_timeout": f"{statement}s",
            "timezone": "UTC",
            "datestyle": "ISO",
            "intervalstyle": "postgres",
            "bytea_output": "hex",
            "extra_float_digits": "1",
        }
        try:
            own = str(conninfo_to_dict(url).get("options", ""))
            target = make_conninfo(
                url,
                options=" ".join([own, *(f"-c {name}={value}" for name, value in session.items())]),
                client_encoding="UTF8",
                application_name="retail-assets extract",
                connect_timeout=CONNECT_SECONDS,
                # A server that is gone without a word is noticed within a minute.
                keepalives_idle=30,
                keepalives_interval=10,
                keepalives_count=3,
            )
        except Error:
            # Not `from error`: it may quote the password.
            raise UsageError(
                "RETAIL_DATABASE_URL is no URL of PostgreSQL: a special character in a password is"
                " written such as %40 for @."
            ) from None
        self.connection.execute(f"ATTACH {literal(target)} AS {SHOP} (TYPE postgres, READ_ONLY)")

    @override
    def begin(self) -> dict[str, str]:
        # The extension makes it REPEATABLE READ READ ONLY.
        self.connection.execute("BEGIN")
        found = {str(name): str(value) for name, value in self.fetch(SNAPSHOT)}
        self._ascii = found.pop("encoding") == "SQL_ASCII"
        return found

    @override
    def name(self, name: str) -> str:
        return identifier(name)

    @override
    def text(self, column: Column, of: str) -> str:
        text = f"{of}.{self.name(column.name)}::text"
        # Such a database may have bytes that are no UTF-8.
        return f"encode(convert_to({text}, 'SQL_ASCII'), 'hex')" if self._ascii else text

    @override
    def is_no_day(self, time: str) -> str:
        return "false"

    @override
    def call(self, sql: str) -> str:
        return f"postgres_query('{SHOP}', {literal(sql)})"

    @override
    def is_unique(self, table: SourceTable, column: str) -> bool:
        if table.table is None:
            return False
        named = literal(self.relation(table))
        return bool(
            self.fetch(
                "SELECT 1 AS found FROM pg_index AS i JOIN pg_attribute AS a"
                " ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]"
                f" WHERE i.indrelid = {named}::regclass AND i.indisunique AND i.indisvalid"
                " AND i.indpred IS NULL AND i.indnkeyatts = 1"
                f" AND a.attname = {literal(column)}"
            )
        )

    @override
    def read(self, into: str, selection: Selection, tell: Callable[[int], None]) -> None:
        texts = self.texts(selection.columns, "source")
        select = f"SELECT {texts} FROM {selection.relation} AS source"
        if selection.parts:

            def wanted(of: str) -> str:
                return " OR ".join(f"({part.condition(of)})" for part in selection.parts)

            if selection.whole_by is None:
                select += f" WHERE {wanted('source')}"
            else:
                key = self.name(selection.whole_by.name)
                select = (
                    f"{select} WHERE source.{key} IN (SELECT chosen.{key} FROM"
                    f" {selection.relation} AS chosen WHERE {wanted('chosen')})"
                    f" UNION ALL {select} WHERE source.{key} IS NULL AND ({wanted('source')})"
                )
        values = [f"c{n}" for n in range(len(selection.columns))]
        if self._ascii:
            values = [f"coalesce(TRY(decode(unhex({c}))), '\\x' || {c})" for c in values]
        self.connection.execute(
            f"INSERT INTO {into} SELECT 0, {', '.join(values)} FROM {self.call(select)}"
        )
        tell(_count(self, into))


def _count(source: Source, table: str) -> int:
    found = source.connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])
