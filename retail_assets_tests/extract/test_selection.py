"""Which files an order stands in, for all small cases; see `extract/selection.py`."""

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from itertools import product

import duckdb
import pytest

from retail_assets.extract.selection import Window, business_day, files_of_order

FIRST = date(2026, 10, 1)
LATE_DAYS = 2
PLACED = 3
"""The day that the order was placed on, as a number like all days here."""

CHANGES = range(PLACED, 10)
RUNS = [(first, last) for first, last in product(range(1, 10), repeat=2) if first <= last]

Files = Mapping[tuple[int, int, int], frozenset[int]]


def at(day: int) -> date:
    return FIRST + timedelta(days=day)


@pytest.fixture(scope="module")
def files() -> Files:
    """The files of the order by the day of its change and the first and last day of a run."""
    found = {}
    with duckdb.connect() as connection:
        for first, last in RUNS:
            window = Window(at(first), at(last), LATE_DAYS, "Europe/London")
            sql = files_of_order("placed", "changed", window)
            rows = connection.execute(
                f"SELECT changed, {sql}"
                " FROM (SELECT ?::DATE AS placed, unnest(?::DATE[]) AS changed)",
                [at(PLACED), [at(change) for change in CHANGES]],
            ).fetchall()
            for changed, days in rows:
                assert len(days) == len(set(days))
                found[(changed - FIRST).days, first, last] = frozenset(
                    (day - FIRST).days for day in days
                )
    return found


def accepted(days: frozenset[int]) -> frozenset[int]:
    return frozenset(day for day in days if PLACED <= day <= PLACED + LATE_DAYS)


def counting(versions: Mapping[int, int]) -> tuple[int, int] | None:
    """The file whose version of the order counts, and the version."""
    return max(versions.items(), default=None)


def runs_of(files: Files) -> Iterator[tuple[dict[int, int], tuple[int, int], frozenset[int]]]:
    """Files of the order after a first run, and then the days and files of a second one."""
    for (before, *_), old in files.items():
        for (change, *again), new in files.items():
            if change >= before:
                yield dict.fromkeys(accepted(old), 1), (again[0], again[1]), new


def test_a_second_run_never_brings_an_older_version_back(files: Files) -> None:
    for versions, (first, last), new in runs_of(files):
        winner = counting(versions)
        after = {day: v for day, v in versions.items() if not first <= day <= last}
        after |= dict.fromkeys(accepted(new), 2)
        if winner is not None and first <= winner[0] <= last:
            found = counting(after)
            assert found is not None, (versions, first, last, new)
            assert found[1] == 2, (versions, first, last, new)
        elif winner is not None:
            assert counting(after) is not None


def test_an_order_is_in_the_files_of_its_day_and_of_its_change(files: Files) -> None:
    assert files[3, 3, 3] == {3}
    assert files[4, 3, 6] == {3, 4}
    assert files[4, 4, 4] == {4}
    assert files[4, 5, 6] == frozenset()
    assert files[9, 1, 2] == frozenset()


def test_an_order_that_is_in_no_other_file_is_in_that_of_its_change_to_be_rejected(
    files: Files,
) -> None:
    assert files[9, 6, 9] == {9}
    # Not beside a file that accepts the same version.
    assert files[9, 3, 9] == {3}
    assert files[9, 4, 9] == {5}


@pytest.mark.parametrize("day", ["NULL", "'0000-00-00 00:00:00'", "'infinity'", "'1800-01-01'"])
def test_an_order_without_a_usable_day_is_in_the_file_of_its_change(day: str) -> None:
    window = Window(at(3), at(5), LATE_DAYS, "Europe/London")
    placed = business_day(f"{day}::VARCHAR", "local", None, "Europe/London")
    changed = business_day(f"'{at(4)} 10:00:00'", "local", None, "Europe/London")
    with duckdb.connect() as connection:
        found = connection.execute(
            f"SELECT {files_of_order('placed', 'changed', window)}"
            f" FROM (SELECT {placed} AS placed, {changed} AS changed)"
        ).fetchone()
    assert found == ([at(4)],)
