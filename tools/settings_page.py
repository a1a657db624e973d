"""The settings as a page of Markdown: `python -m tools.settings_page` prints it."""

import sys
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from retail_assets.settings import Settings

INTRODUCTION = (
    "Written by `make docs`. All are environment variables; a command names a wrong one in one"
    " sentence when it starts."
)


def settings_page() -> str:
    """All settings with their defaults and meaning."""
    return "\n".join(
        [
            "# Settings",
            "",
            INTRODUCTION,
            "",
            "| variable | default | meaning |",
            "|---|---|---|",
            *(
                f"| `RETAIL_{name.upper()}` | {_default(field)} | {_cell(field.description)} |"
                for name, field in Settings.model_fields.items()
            ),
            "",
        ]
    )


def _default(field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or value in (None, (), {}):
        return "none"
    return f"`{value}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(settings_page())
