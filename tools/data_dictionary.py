"""The data dictionary, `docs/data-dictionary.md`: every table, column and reason code, from code.

`python -m tools.data_dictionary > docs/data-dictionary.md` writes it; a test compares.
"""

import sys
from collections.abc import Sequence

from retail_assets import tables
from retail_assets.transforms import events, orders

GROUPS = {
    "reference": "Reference data",
    "batch": "Batch",
    "events": "Events",
    "ledger": "Ledgers",
}


def data_dictionary() -> str:
    """Return the dictionary as Markdown."""
    lines = [
        "# Data dictionary",
        "",
        (
            "Generated from `retail_assets/tables/` and `retail_assets/transforms/`;"
            " `make docs` writes it."
        ),
        "",
        (
            "Money is GBP, exact to the penny. A date is a day in the business time zone"
            " (`RETAIL_TIMEZONE`)."
        ),
    ]
    for group, title in GROUPS.items():
        lines += ["", f"## {title}"]
        for table in tables.ALL:
            if table.group == group:
                lines += _table(table)
    lines += ["", "## Views"]
    for view in tables.VIEWS:
        lines += ["", f"### {view.name}", "", view.description, "", *_columns(view.columns)]
    lines += [
        "",
        "## Why an event is dead-lettered",
        "",
        "The rules are tried in this order; the first that fails is the reason.",
        "",
        "| reason | rule |",
        "|---|---|",
        *(f"| `{reason}` | {rule} |" for reason, rule in events.REASONS.items()),
        "",
        "## Why an export row is rejected",
        "",
        "The rules are tried in this order; the first that fails is the reason.",
        "",
        "| reason | rule |",
        "|---|---|",
        *(f"| `{reason}` | {rule} |" for reason, rule in orders.REASONS.items()),
        "",
        "## Why a raw order does not count",
        "",
        "| exclusion | rule |",
        "|---|---|",
        "| `superseded` | The order is in a later export as well; that version is used. |",
        *(f"| `{status}` | The order's status is `{status}`. |" for status in orders.NOT_COUNTED),
        "",
    ]
    return "\n".join(lines)


def _table(table: tables.Table) -> list[str]:
    facts = [f"Key: {', '.join(f'`{name}`' for name in table.key)}."]
    if table.day:
        facts.append(f"Partitioned by day: `{table.day}`.")
    return [
        "",
        f"### {table.name}",
        "",
        table.description,
        " ".join(facts),
        "",
        *_columns(table.columns),
    ]


def _columns(columns: Sequence[tables.Column]) -> list[str]:
    return [
        "| column | type | | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{column.name}` | {column.type} | {'may be null' if column.nullable else ''} |"
            f" {column.description}{_origin(column)} |"
            for column in columns
        ),
    ]


def _origin(column: tables.Column) -> str:
    if not column.derived_from:
        return ""
    return f" From {', '.join(f'`{source}`' for source in column.derived_from)}."


if __name__ == "__main__":
    sys.stdout.write(data_dictionary())
