"""Any period: revenue by day, region and category, beside the period before or the year before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Literal, TypeVar
from urllib.parse import urlencode

import duckdb

from retail_assets.dashboard.reading.amounts import Amount, change, total
from retail_assets.errors import UsageError
from retail_assets.lake.sql import literal
from retail_assets.tables import (
    DAILY_REVENUE,
    DAILY_REVENUE_BY_CATEGORY,
    LIVE_REVENUE,
    LIVE_REVENUE_BY_CATEGORY,
    Table,
    best_revenue,
)

K = TypeVar("K")

Compare = Literal["period", "year", "none"]

COMPARISONS: Mapping[Compare, str] = {
    "period": "the period before",
    "year": "the year before",
    "none": "nothing",
}

YEAR = timedelta(weeks=52)
"""The year before begins on the same weekday."""

MOST_DAYS = 3660

YEARS = range(1900, 3000)


@dataclass(frozen=True)
class Question:
    """What a view of a period shows; its link says all of it.

    Without `regions`, or `categories`, all of them count.
    """

    first: date
    last: date
    regions: Sequence[str] = ()
    categories: Sequence[str] = ()
    compare: Compare = "period"

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.last - self.first).days + 1

    @property
    def before(self) -> "Question | None":
        """The same question of the days that it is compared with."""
        if self.compare == "none":
            return None
        back = YEAR if self.compare == "year" else timedelta(days=self.days)
        return replace(self, first=self.first - back, last=self.last - back, compare="none")

    @property
    def link(self) -> str:
        """The query of a link that reproduces the view."""
        return urlencode(
            [
                ("from", self.first.isoformat()),
                ("to", self.last.isoformat()),
                *(("region", each) for each in self.regions),
                *(("category", each) for each in self.categories),
                ("compare", self.compare),
            ]
        )

    @classmethod
    def from_link(cls, values: Mapping[str, Sequence[str]], default: "Question") -> "Question":
        """The question of a link; what it does not say is as in `default`.

        Args:
            values: the values of each name in the link's query.
            default: the question without a link.

        Raises:
            UsageError: if a day is none, the period is empty, or the comparison is unknown.
        """
        first, last = (
            day_of(values[name][-1]) if values.get(name) else since
            for name, since in (("from", default.first), ("to", default.last))
        )
        compare = values.get("compare", [default.compare])[-1]
        if compare not in COMPARISONS:
            raise UsageError(f"{compare!r} is none of {', '.join(COMPARISONS)}.")
        if first > last:
            raise UsageError(f"The start {first} lies after the end {last}: swap them.")
        if (last - first).days >= MOST_DAYS:
            raise UsageError(f"A period has at most {MOST_DAYS:,} days: choose a shorter one.")
        found: Compare = next(each for each in COMPARISONS if each == compare)
        return cls(
            first, last, tuple(values.get("region", ())), tuple(values.get("category", ())), found
        )

    @property
    def condition(self) -> str:
        """Its days as a condition on `order_date`."""
        return f"order_date BETWEEN DATE '{self.first}' AND DATE '{self.last}'"


def day_of(text: str) -> date:
    """The day of a text such as 2026-11-01.

    Raises:
        UsageError: if it is none, or lies so far away that no calendar has the days beside it.
    """
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no day such as 2026-11-01.") from error
    if found.year not in YEARS:
        raise UsageError(f"{text} is not a day of the years {YEARS[0]} to {YEARS[-1]}.")
    return found


@dataclass(frozen=True)
class Figure:
    """An amount and the one that it is compared with; None where nothing is compared."""

    amount: Amount
    before: Amount | None = None

    @property
    def change(self) -> float | None:
        """The change of revenue as a share."""
        return change(self.amount.revenue, self.before.revenue if self.before else None)


@dataclass(frozen=True)
class Period:
    """The answer: by day, by region, by category, and by both.

    `days` has each day of the period with its source (None: no orders), and beside it the amount of
    the day that it is compared with, if that has any; `days_before` of these have. Orders with
    lines of several categories count once in each.
    """

    question: Question
    total: Figure
    days: Sequence[tuple[date, str | None, Figure]]
    days_before: int
    regions: Mapping[str, Figure]
    categories: Mapping[str, Figure]
    cells: Mapping[tuple[str, str], Figure] = field(default_factory=dict)


def newest_days(connection: duckdb.DuckDBPyConnection, today: date, days: int = 28) -> Question:
    """The question to begin with: the last days up to the newest that has orders."""
    from retail_assets.dashboard.reading.today import shown_day

    newest = shown_day(connection, today, worker_alive=False) or today
    return Question(newest - timedelta(days=days - 1), newest)


def read_period(connection: duckdb.DuckDBPyConnection, question: Question) -> Period:
    """Read the revenue of a period; it costs what its days have, and those compared with.

    Args:
        connection: a connection to the lake, on one snapshot.
        question: what to read.
    """
    now = _Amounts.read(connection, question)
    earlier = question.before
    before = _Amounts.read(connection, earlier) if earlier else None

    back = question.first - earlier.first if earlier else timedelta()
    days = []
    for n in range(question.days):
        day = question.first + timedelta(days=n)
        past = before.days.get(day - back) if before else None
        days.append((day, now.sources.get(day), Figure(now.days.get(day, Amount()), past)))
    return Period(
        question=question,
        total=Figure(
            total(list(now.days.values())), total(list(before.days.values())) if before else None
        ),
        days=days,
        days_before=len(before.days) if before else 0,
        regions=_figures(now.regions, before.regions if before else None),
        categories=_figures(now.categories, before.categories if before else None),
        cells=_figures(now.cells, before.cells if before else None),
    )


def _figures(now: Mapping[K, Amount], before: Mapping[K, Amount] | None) -> dict[K, Figure]:
    """Amounts beside those before, the largest revenue first."""
    keys = {*now, *(before or ())}
    return {
        key: Figure(now.get(key, Amount()), None if before is None else before.get(key, Amount()))
        for key in sorted(keys, key=lambda key: (-now.get(key, Amount()).revenue, str(key)))
    }


@dataclass(frozen=True)
class _Amounts:
    days: dict[date, Amount]
    sources: dict[date, str]
    regions: dict[str, Amount]
    categories: dict[str, Amount]
    cells: dict[tuple[str, str], Amount]

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection, question: Question) -> "_Amounts":
        # An order with several categories counts once in its region: so not from the finer table,
        # unless categories are chosen.
        coarse = by_region(question) if not question.categories else by_category(question)
        days: dict[date, Amount] = {}
        sources: dict[date, str] = {}
        regions: dict[str, Amount] = {}
        for day, region, source, revenue, orders in connection.execute(
            "SELECT order_date, region, any_value(source), sum(total_revenue),"
            f" sum(order_count)::BIGINT FROM ({coarse}) GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            amount = Amount(revenue, orders)
            days[day] = days.get(day, Amount()) + amount
            regions[region] = regions.get(region, Amount()) + amount
            sources[day] = source
        cells: dict[tuple[str, str], Amount] = {}
        categories: dict[str, Amount] = {}
        for region, category, revenue, orders in connection.execute(
            "SELECT region, product_category, sum(total_revenue), sum(order_count)::BIGINT"
            f" FROM ({by_category(question)}) GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            cells[region, category] = Amount(revenue, orders)
            categories[category] = categories.get(category, Amount()) + Amount(revenue, orders)
        return cls(days, sources, regions, categories, cells)


def by_region(question: Question) -> str:
    """The query for the best revenue by day and region."""
    return _chosen(DAILY_REVENUE, LIVE_REVENUE, question, {"region": question.regions})


def by_category(question: Question) -> str:
    """The query for the best revenue by day, region and category."""
    chosen = {"region": question.regions, "product_category": question.categories}
    return _chosen(DAILY_REVENUE_BY_CATEGORY, LIVE_REVENUE_BY_CATEGORY, question, chosen)


def _chosen(
    batch: Table, stream: Table, question: Question, chosen: Mapping[str, Sequence[str]]
) -> str:
    conditions = [
        f"{column} IN ({', '.join(map(literal, values))})"
        for column, values in chosen.items()
        if values
    ]
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT * FROM ({best_revenue(batch, stream, question.condition)}){where}"


def choices(connection: duckdb.DuckDBPyConnection, question: Question) -> dict[str, list[str]]:
    """The regions and categories that the period has, to choose from."""
    everything = replace(question, regions=(), categories=())
    found = {}
    for name, column in (("regions", "region"), ("categories", "product_category")):
        rows = connection.execute(
            f"SELECT DISTINCT {column} FROM ({by_category(everything)}) ORDER BY 1"
        ).fetchall()
        found[name] = [value for (value,) in rows]
    return found
