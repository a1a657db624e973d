"""Imported by the server that test processes are forked from: does once what takes each long."""

from alembic.script import ScriptDirectory
from dagster._core.storage.event_log import sqlite
from dagster._core.storage.sql import get_alembic_config

from retail_assets.lake.connection import _check_signature, extension_path
from retail_assets_tests import migrations

migrations.read_once()
ScriptDirectory.from_config(get_alembic_config(sqlite.__file__))

for _name in ("ducklake", "sqlite_scanner"):
    _path = extension_path(_name)
    _check_signature(_path, _path.stat().st_mtime_ns)
