"""Which exports of many days are split, by which mapping, and which could not be.

`split_exports.json` in the lake's folder says so. For the exports of a bucket, which several hosts
may split, `.split_exports.json` beside them does; its mark tells a host whether its own index of
the orders is that of the last split, or another host has split since.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from retail_assets.ingest.exports.location import ExportsLocation
from retail_assets.lake.replacement import Draft, replace_files
from retail_assets.settings import Settings

STATE = "split_exports.json"

Entries: TypeAlias = dict[str, dict[str, str | None]]


class SplitState:
    """The state of the exports of some settings."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.lake_dir / STATE
        self._location = ExportsLocation(settings.exports_location)

    def read(self) -> tuple[Entries, str]:
        """Each export's entry, and the mark of this state: blank where no other host splits.

        Raises:
            RetailAssetsError: if the bucket cannot be reached.
        """
        text = self._text()
        with suppress(ValueError):
            found: Entries = json.loads(text)
            return found, self._mark(text)
        return {}, self._mark(text)

    def write(self, entries: Entries) -> str:
        """Keep the entries, durably; returns the mark of this state.

        Raises:
            RetailAssetsError: if the bucket cannot be written to.
        """
        text = json.dumps(entries, indent=1)
        if self._location.is_local:
            draft = Draft(self._path.with_name(f".{STATE}.new"), self._path)
            draft.path.write_text(text, encoding="utf-8")
            replace_files([draft])
        else:
            with TemporaryDirectory() as folder:
                path = Path(folder, f".{STATE}")
                path.write_text(text, encoding="utf-8")
                self._location.put(path)
        return self._mark(text)

    def _text(self) -> str:
        if self._location.is_local:
            with suppress(FileNotFoundError, ValueError):
                return self._path.read_text(encoding="utf-8")
            return ""
        with TemporaryDirectory() as folder:
            self._location.fetch([f".{STATE}"], Path(folder))
            path = Path(folder, f".{STATE}")
            return path.read_text(encoding="utf-8") if path.exists() else ""

    def _mark(self, text: str) -> str:
        return "" if self._location.is_local else hashlib.sha256(text.encode()).hexdigest()
