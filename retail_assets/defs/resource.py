"""The lake as a Dagster resource: what Dagster's documentation shows for DuckDB works with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
from dagster_duckdb import DuckDBResource
from pydantic import Field

from retail_assets.lake.connection import Lake

if TYPE_CHECKING:
    from retail_assets.settings import Settings


class LakeResource(DuckDBResource):
    """A `DuckDBResource` whose connections have the lake attached and as default database.

    Unlike its parent it closes the connection when the body raises, and can refuse to write.
    Columns and units are those of the data dictionary.
    """

    database: str = Field(
        default=":memory:",
        description="Database of temporary data; the lake is attached to it.",
    )
    catalog: str = Field(description="DuckLake catalog: SQLite path, or postgres:…")
    data_path: str = Field(description="Where the lake's Parquet files lie.")
    spill_dir: str = Field(description="Where DuckDB spills what exceeds the memory limit.")
    timezone: str = Field(default="UTC", description="Time zone of the connection.")
    memory_limit: str = Field(default="600MB", description="DuckDB's memory limit.")
    threads: int | None = Field(default=None, description="DuckDB's threads; None: all cores.")
    umask: int = Field(default=0o077, description="Permissions that new files do not have.")
    read_only: bool = Field(default=False, description="Refuse to change the lake.")

    @classmethod
    def from_settings(cls, settings: "Settings", *, read_only: bool = False) -> "LakeResource":
        """Return the resource for the lake that the settings name.

        Args:
            settings: the settings, as `load_settings()` reads them.
            read_only: refuse to change the lake; such a connection never waits for a writer.
        """
        return cls(read_only=read_only, **vars(Lake.from_settings(settings)))

    @classmethod
    def _is_dagster_maintained(cls) -> bool:
        return False

    @property
    def lake(self) -> Lake:
        """The lake itself, for transactions."""
        return Lake(
            catalog=self.catalog,
            data_path=self.data_path,
            spill_dir=self.spill_dir,
            timezone=self.timezone,
            memory_limit=self.memory_limit,
            threads=self.threads,
            umask=self.umask,
        )

    @contextmanager
    def get_connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection to the lake; it is closed on every path.

        Raises:
            UsageError: if the folder of the lake cannot be used.
            RetailAssetsError: if a reader finds no lake, or the catalog cannot be opened.
        """
        with self.lake.connect(read_only=self.read_only) as connection:
            yield connection
