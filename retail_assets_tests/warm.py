"""Imported by the server that test processes are forked from: does once what takes each long."""

from retail_assets.lake.connection import _check_signature, extension_path

for _name in ("ducklake", "sqlite_scanner"):
    _path = extension_path(_name)
    _check_signature(_path, _path.stat().st_mtime_ns)
