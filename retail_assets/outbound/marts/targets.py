"""The places for marts that the settings name."""

from retail_assets.errors import UsageError
from retail_assets.lake.connection import Lake
from retail_assets.outbound.marts.files import FilesMart
from retail_assets.outbound.marts.model import MartTarget
from retail_assets.outbound.marts.mysql import MySQLMart
from retail_assets.outbound.marts.postgres import PostgresMart
from retail_assets.settings import Settings


def mart_targets(settings: Settings) -> list[MartTarget]:
    """The places that the settings name; there may be none. No connection is made.

    Raises:
        UsageError: if the URL or the schema cannot be used.
    """
    found: list[MartTarget] = []
    if settings.mart_url is not None:
        found.append(_database(settings.mart_url.get_secret_value(), settings.mart_schema))
    if settings.marts_location is not None:
        lake = Lake.from_settings(settings)
        found.append(FilesMart(lake, settings.marts_location, settings.mart_format))
    return found


def _database(url: str, schema: str | None) -> MartTarget:
    if url.startswith("postgres"):
        return PostgresMart(url, schema)
    if schema is not None:
        raise UsageError(
            "RETAIL_MART_SCHEMA is for PostgreSQL: in MySQL the database in RETAIL_MART_URL is the"
            " schema."
        )
    return MySQLMart(url)
