"""Dagster's migrations, read once a process: each instance and run reads them several times."""

from alembic.config import Config
from alembic.script import ScriptDirectory


def read_once() -> None:
    """Keep what Alembic has read from now on; a tenth of a second each time."""
    read = ScriptDirectory.from_config
    known: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in known:
            known[location] = read(config)
            known[location].get_heads()
        return known[location]

    ScriptDirectory.from_config = from_config  # type: ignore[method-assign,assignment]
