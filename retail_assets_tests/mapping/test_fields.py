"""A value is the same, typed from the source's text or from our own spelling of it."""

from typing import Any

import duckdb
import pytest

from retail_assets.engines import mapped_fields
from retail_assets.engines.duckdb import MONEY
from retail_assets.engines.mapped_fields import Spelling
from retail_assets.engines.timestamps import wall_clock
from retail_assets.mapping.fields import NumberField, TimeField

NUMBERS = [
    *("5", "-5", "+5", "5,5", "5,50", "5,500", "5.50", "1.234,50", "5,", ",5", "5,5,5", "", " 5"),
    *("1234567890,12", "12345678901", "5e3", "5,505", "٣", "free", "? 5"),
]

TIMES = [
    *("20.10.2026 09:30", "2.1.2026 9:30", "20.10.26 09:30", "32.10.2026 09:30", "20.10.2026"),
    *("2026-10-25 01:30:00", "2026-10-25T01:30:00Z", "2026-10-25T01:30:00+05:30", "2026-10-25"),
    *("2026-10-25 01:30:00 +0200", "2026-10-25 01:30:00 UTC", "2026-10-25 01:30:00z"),
    *("2026-03-29 01:30", "2026-10-25 01:30:00.123456789", "1793000000", "1793000000.25"),
    *("1793000000123", "99999999999999999999", "infinity", "epoch", "12026-01-01", ""),
    *("2026-10-20 10:00:00 CET", "2026-10-20 10:00:00 BST"),
]


def values(text: str, typed: str, texts: list[str]) -> list[tuple[bool, Any]]:
    """Whether there is a text, and the value that it is read as."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'Europe/London'")
        return connection.execute(
            f"SELECT text IS NOT NULL, {typed}"
            f" FROM (SELECT {text} AS text FROM (SELECT nullif(unnest(?), '') AS value))",
            [texts],
        ).fetchall()


@pytest.mark.parametrize(
    "field",
    [
        NumberField(source="value"),
        NumberField(source="value", default="1.00"),
        NumberField(source="value", values={"free": "0"}),
    ],
    ids=["plain", "default", "values"],
)
@pytest.mark.parametrize("decimal", [".", ","])
def test_a_number_is_the_same_from_either_text(decimal: str, field: NumberField) -> None:
    spelling = Spelling(decimal=decimal)

    own = mapped_fields.text_of(field, str, spelling)
    found = mapped_fields.text_to_read(field, str, spelling)
    read = mapped_fields.number_of(field, "text", spelling, MONEY, "DECIMAL(12,2)")
    plain = f"CASE WHEN regexp_full_match(text, '{MONEY}') THEN TRY_CAST(text AS DECIMAL(12,2)) END"
    numbers = values(found, read, NUMBERS)
    assert numbers == values(own, plain, NUMBERS)
    assert sum(number is not None for _, number in numbers) > 3


@pytest.mark.parametrize("timezone", [None, "Europe/Berlin"])
@pytest.mark.parametrize(
    "formats",
    [
        (),
        ("%d.%m.%Y %H:%M",),
        ("%-d.%-m.%Y %-H:%M", "%d.%m.%Y", "%d.%m.%y %H:%M"),
        ("%Y-%m-%d %H:%M:%S %z", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%d"),
        ("%Y-%m-%d %H:%M:%S %Z", "%Y-%m-%d %H:%M"),
        ("epoch",),
        ("epoch_ms", "%Y-%m-%d"),
    ],
)
def test_a_time_is_the_same_from_either_text(
    formats: tuple[str, ...], timezone: str | None
) -> None:
    field = TimeField(source="value", format=formats, zones={"CET": "Europe/Berlin"})
    spelling = Spelling(timezone=timezone)
    own = mapped_fields.text_of(field, str, spelling)
    found = mapped_fields.text_to_read(field, str, spelling)
    read = mapped_fields.time_of(field, "text", spelling)
    times = values(found, read, TIMES)
    assert times == values(own, wall_clock("text"), TIMES)
    assert sum(time is not None for _, time in times) > 1
