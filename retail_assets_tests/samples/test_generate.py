"""The generated history is what its summary says, counted again from the files alone."""

import csv
import gzip
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from retail_assets.samples.generate import GenerateSummary, apportion, generate

LONDON = ZoneInfo("Europe/London")
# both clock changes are in reach of the first days: 2026-03-29 in spring
START = date(2026, 3, 20)
REQUIRED = (
    "order_id",
    "customer_id",
    "product_id",
    "region",
    "status",
    "order_value_gbp",
    "order_timestamp",
)
STATUSES = {"completed", "pending", "cancelled", "returned", "refunded"}


@dataclass(frozen=True)
class History:
    """A generated folder and what the generator says of it."""

    folder: Path
    summary: GenerateSummary


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("history")
    summary = generate(folder, days=21, orders_per_day=110, events=1_500, start=START, seed=11)
    return History(folder, summary)


@pytest.fixture(scope="module")
def exported(history: History) -> "list[Exported]":
    return list(read_exports(history.folder))


@pytest.fixture(scope="module")
def received(history: History) -> "list[Received]":
    return list(read_events(history.folder))


@dataclass(frozen=True)
class Exported:
    """A data row of an export: its fields, or None where it has a wrong number of them."""

    export_date: date
    fields: dict[str, str] | None
    cells: int
    columns: int
    kind: str


@dataclass(frozen=True)
class Received:
    """A line of an event file: what is wrong with it, or `valid`, or `duplicate`."""

    file: str
    window: datetime
    kind: str
    event: dict[str, object]


def content(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_exports(folder: Path) -> Iterator[Exported]:
    for path in sorted((folder / "exports").iterdir()):
        day = datetime.strptime(path.name[:17], "orders_%Y_%m_%d").date()  # noqa: DTZ007
        text = content(path).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        earlier: dict[str, dict[str, str]] = {}
        for cells in rows:
            if len(cells) != len(header):
                kind = "too_few_fields" if len(cells) < len(header) else "too_many_fields"
                yield Exported(day, None, len(cells), len(header), kind)
                continue
            fields = dict(zip(header, cells, strict=True))
            kind = row_kind(fields, day)
            if kind == "good" and fields["order_id"] in earlier:
                same = earlier[fields["order_id"]] == fields
                kind = "duplicate_identical" if same else "duplicate_changed"
            earlier.setdefault(fields["order_id"], fields)
            yield Exported(day, fields, len(cells), len(header), kind)


def row_kind(fields: dict[str, str], export_date: date) -> str:
    blank = [name for name in REQUIRED if not fields[name].strip()]
    if blank:
        return f"blank_{blank[0]}"
    if any("\udc80" <= mark <= "\udcff" for text in fields.values() for mark in text):
        return "not_utf8"
    if fields["status"].strip().lower() not in STATUSES:
        return "status_unknown"
    return value_kind(fields["order_value_gbp"]) or time_kind(
        fields["order_timestamp"], export_date
    )


def value_kind(text: str) -> str | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return "value_not_a_number"
    if not value.is_finite():
        return "value_not_a_number"
    if abs(value) >= Decimal(10) ** 10:
        return "value_out_of_range"
    if value != round(value, 2):
        return "value_more_than_two_decimals"
    if value == 0:
        return "value_zero"
    return "value_negative" if value < 0 else None


def business_date(text: str) -> date:
    """Independent of the generator: the standard library's own parser and zone."""
    moment = datetime.fromisoformat(re.sub("Z$", "+00:00", text))
    return (moment if moment.tzinfo is None else moment.astimezone(LONDON)).date()


def time_kind(text: str, export_date: date) -> str:
    try:
        order_date = business_date(text)
    except ValueError:
        return "timestamp_unreadable"
    if order_date > export_date:
        return "order_from_future"
    return "order_too_late" if order_date < export_date - timedelta(days=7) else "good"


def read_events(folder: Path) -> Iterator[Received]:
    seen: set[bytes] = set()
    for path in sorted((folder / "events").rglob("*.jsonl*")):
        name = f"{path.parent.name}/{path.name.split('.')[0]}"
        window = datetime.strptime(name, "%Y-%m-%d/orders_%H%M")  # noqa: DTZ007
        for line in content(path).splitlines():
            kind, event = line_kind(line)
            if kind == "valid" and line in seen:
                kind = "duplicate"
            seen.add(line)
            yield Received(path.name, window, kind, event)


def line_kind(line: bytes) -> tuple[str, dict[str, object]]:
    try:
        event = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return "not_utf8", {}
    except ValueError:
        return "not_json", {}
    if not isinstance(event, dict):
        return "not_an_object", {}
    return event_kind(event), event


def event_kind(event: dict[str, object]) -> str:
    missing = {"order_id", "customer_id", "order_value_gbp", "region"} - set(event)
    if missing:
        return f"missing_{missing.pop()}"
    value = event["order_value_gbp"]
    texts = [event["order_id"], event["customer_id"], event["region"]]
    if type(value) not in {int, float} or not all(isinstance(text, str) for text in texts):
        return "wrong_type"
    number = float(str(value))
    if not math.isfinite(number):
        return "value_nan"
    if number <= 0:
        return "value_zero" if number == 0 else "value_negative"
    for name in ("order_id", "customer_id"):
        if not str(event[name]).strip():
            return f"blank_{name}"
    try:
        happened = datetime.fromisoformat(str(event["event_timestamp"]))
    except ValueError:
        return "timestamp_absurd"
    return "valid" if abs(happened.year - START.year) < 2 else "timestamp_absurd"


def good_orders(exported: list[Exported]) -> dict[str, dict[str, str]]:
    """Every order as it was exported first."""
    first: dict[str, dict[str, str]] = {}
    for row in exported:
        if row.kind == "good" and row.fields is not None:
            first.setdefault(row.fields["order_id"], row.fields)
    return first


def test_every_kind_of_bad_row_occurs_as_often_as_the_summary_says(
    history: History, exported: list[Exported]
) -> None:
    counted = Counter(row.kind for row in exported if row.kind != "good")
    assert dict(counted) == history.summary.bad_rows
    assert len(history.summary.bad_rows) == 21
    assert min(history.summary.bad_rows.values()) >= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_kind_occurs_in_fourteen_days_of_twenty_orders(seed: int, tmp_path: Path) -> None:
    # from before to after the clocks go back, on 2026-10-25
    start = date(2026, 10, 16)
    summary = generate(tmp_path, days=14, orders_per_day=20, events=200, start=start, seed=seed)
    rows = Counter(row.kind for row in read_exports(tmp_path))
    lines = Counter(line.kind for line in read_events(tmp_path))
    assert rows.pop("good") == summary.orders + sum(summary.corrections.values())
    assert dict(rows) == summary.bad_rows
    assert dict(lines) == summary.events_by_kind
    assert min(summary.bad_rows.values()) == min(summary.events_by_kind.values()) == 1


def test_rows_are_good_orders_and_corrections_and_bad_rows(
    history: History, exported: list[Exported]
) -> None:
    summary = history.summary
    assert summary.orders == 21 * 110
    assert len(good_orders(exported)) == summary.orders
    assert len(exported) == summary.export_rows
    assert summary.export_rows == summary.orders + sum(summary.corrections.values()) + sum(
        summary.bad_rows.values()
    )


def test_a_correction_changes_the_status_or_the_value_of_an_order_exported_before(
    history: History, exported: list[Exported]
) -> None:
    before: dict[str, dict[str, str]] = {}
    kinds: Counter[str] = Counter()
    for row in exported:
        if row.kind != "good" or row.fields is None:
            continue
        earlier = before.setdefault(row.fields["order_id"], row.fields)
        if earlier is row.fields:
            continue
        was, now = earlier["status"].strip().lower(), row.fields["status"].strip().lower()
        kinds["value" if was == now else now] += 1
        changed = {name for name in REQUIRED if earlier[name] != row.fields[name]}
        assert changed == ({"order_value_gbp"} if was == now else {"status"})
        assert business_date(earlier["order_timestamp"]) < row.export_date
    assert dict(kinds) == history.summary.corrections
    assert kinds["returned"] > 0
    assert kinds["value"] > 0


def test_late_orders_reach_back_one_to_seven_days(
    history: History, exported: list[Exported]
) -> None:
    delays: Counter[int] = Counter()
    seen: set[str] = set()
    for row in exported:
        if row.kind == "good" and row.fields is not None and row.fields["order_id"] not in seen:
            seen.add(row.fields["order_id"])
            delays[(row.export_date - business_date(row.fields["order_timestamp"])).days] += 1
    assert sum(delays[back] for back in range(1, 8)) == history.summary.late_orders
    assert set(delays) == set(range(8))


def test_some_timestamps_show_another_date_than_the_business_day(exported: list[Exported]) -> None:
    texts = [row.fields["order_timestamp"] for row in exported if row.kind == "good" and row.fields]
    crossing = [text for text in texts if text[:10] != business_date(text).isoformat()]
    assert {text[-1] for text in crossing} == {"Z", "0"}
    assert {text[10] for text in texts} == {"T", " "}


def test_file_styles_and_extra_columns_occur(history: History) -> None:
    exports = sorted((history.folder / "exports").iterdir())
    contents = [content(path) for path in exports]
    headers = {
        data.split(b"\n")[0].strip().decode("utf-8-sig").replace("\ufeff", "") for data in contents
    }
    assert len(exports) == 21
    assert sum(path.suffix == ".gz" for path in exports) == 3
    assert sum(data.startswith(b"\xef\xbb\xbf") for data in contents) == 2
    assert sum(b"\r\n" in data for data in contents) == 2
    assert len(headers) == 5
    assert any(b'"Leave with neighbour\nat no. 12"' in data for data in contents)
    assert any('"Gift for Zoë: ""fragile"""'.encode() in data for data in contents)


def test_orders_mention_products_and_customers_the_reference_lacks(
    history: History, exported: list[Exported]
) -> None:
    orders = good_orders(exported).values()
    for name in ("product", "customer"):
        path = history.folder / "reference" / f"{name}s.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            known = {row[f"{name}_id"] for row in csv.DictReader(handle)}
        missing = sum(order[f"{name}_id"] not in known for order in orders)
        assert 0 < missing < len(orders) / 20


def test_every_kind_of_event_line_occurs_as_often_as_the_summary_says(
    history: History, received: list[Received]
) -> None:
    summary = history.summary
    assert len(received) == summary.events == 1_500
    assert dict(Counter(line.kind for line in received)) == summary.events_by_kind
    assert min(summary.events_by_kind.values()) >= 1
    assert len(summary.events_by_kind) == 16


def test_late_events_and_events_without_id_are_counted(
    history: History, received: list[Received]
) -> None:
    valid = [line for line in received if line.kind == "valid"]
    late = sum(
        datetime.fromisoformat(str(line.event["event_timestamp"])).replace(tzinfo=None)
        < line.window
        for line in valid
    )
    assert late == history.summary.late_events > 0
    without_id = sum("event_id" not in line.event for line in valid)
    assert without_id == history.summary.events_without_id > 0
    ids = Counter(line.event["event_id"] for line in valid if "event_id" in line.event)
    assert max(ids.values()) == 1


def test_valid_events_are_of_exported_orders_and_agree_with_them(
    received: list[Received], exported: list[Exported]
) -> None:
    orders = good_orders(exported)
    for line in received:
        if line.kind == "valid":
            order = orders[str(line.event["order_id"])]
            assert Decimal(str(line.event["order_value_gbp"])) == Decimal(order["order_value_gbp"])
            assert line.event["customer_id"] == order["customer_id"]
            assert line.event["status"] == order["status"].strip().lower()
            happened = datetime.fromisoformat(str(line.event["event_timestamp"]))
            assert happened.astimezone(LONDON).date() == business_date(order["order_timestamp"])


def test_fewer_events_than_orders_are_of_the_latest_orders(
    received: list[Received], exported: list[Exported]
) -> None:
    heard_of = {str(line.event["order_id"]) for line in received if line.kind == "valid"}
    latest = sorted(good_orders(exported))[-len(heard_of) :]
    assert heard_of == set(latest)


def test_more_events_than_orders_end_with_the_exported_status(tmp_path: Path) -> None:
    summary = generate(tmp_path, days=15, orders_per_day=20, events=900, start=START, seed=3)
    statuses: dict[str, list[tuple[datetime, int, str]]] = {}
    for line in read_events(tmp_path):
        if line.kind == "valid":
            happened = datetime.fromisoformat(str(line.event["event_timestamp"]))
            step = int(str(line.event.get("event_id", "-1")).rsplit("-", 1)[1])
            statuses.setdefault(str(line.event["order_id"]), []).append(
                (happened, step, str(line.event["status"]))
            )
    orders = good_orders(list(read_exports(tmp_path)))
    assert set(statuses) == set(orders)
    assert sum(map(len, statuses.values())) == summary.events_by_kind["valid"]
    for order_id, events in statuses.items():
        assert max(events)[2] == orders[order_id]["status"].strip().lower()
    lives = {tuple(status for _, _, status in sorted(events)) for events in statuses.values()}
    assert ("pending", "completed", "returned") in lives


def test_same_arguments_give_the_same_bytes(history: History, tmp_path: Path) -> None:
    again = generate(tmp_path, days=21, orders_per_day=110, events=1_500, start=START, seed=11)
    assert fingerprint(tmp_path) == fingerprint(history.folder)
    assert again == history.summary


def test_another_seed_gives_other_orders(tmp_path: Path) -> None:
    for seed in (1, 2):
        generate(tmp_path / str(seed), days=1, orders_per_day=5, events=0, start=START, seed=seed)
    one, other = (content(tmp_path / seed / "exports/orders_2026_03_20.csv") for seed in "12")
    assert one != other


def test_generating_again_into_the_same_folder_touches_nothing(tmp_path: Path) -> None:
    first = generate(tmp_path, days=5, orders_per_day=8, events=30, start=START, seed=1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = generate(tmp_path, days=5, orders_per_day=8, events=30, start=START, seed=1)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert len(files) == first.files_written
    assert (again.files_written, again.files_unchanged) == (0, first.files_written)


def test_a_file_compressed_by_another_zlib_is_the_same_file(tmp_path: Path) -> None:
    generate(tmp_path, days=5, orders_per_day=8, events=0, start=START, seed=1)
    compressed = tmp_path / "exports/orders_2026_03_23.csv.gz"
    compressed.write_bytes(gzip.compress(content(compressed), compresslevel=1, mtime=12))
    repacked = compressed.read_bytes()
    again = generate(tmp_path, days=5, orders_per_day=8, events=0, start=START, seed=1)
    assert again.files_written == 0
    assert compressed.read_bytes() == repacked


@pytest.mark.parametrize(
    "taken", ["exports/orders_2026_03_24.csv", "exports/orders_2026_03_20.csv.gz"]
)
def test_a_file_with_other_content_is_refused_and_nothing_is_written(
    taken: str, tmp_path: Path
) -> None:
    mine = tmp_path / taken
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"orders_2026_03_2.*Nothing was written"):
        generate(tmp_path, days=5, orders_per_day=8, events=30, start=START, seed=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exports"]
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(("days", "orders_per_day", "events"), [(1, 1, 0), (1, 3, 10), (40, 3, 50)])
def test_tiny_histories_work(days: int, orders_per_day: int, events: int, tmp_path: Path) -> None:
    summary = generate(
        tmp_path, days=days, orders_per_day=orders_per_day, events=events, start=START, seed=0
    )
    exported = list(read_exports(tmp_path))
    assert len(list((tmp_path / "exports").iterdir())) == days
    assert len(good_orders(exported)) == summary.orders == days * orders_per_day
    assert len(exported) == summary.export_rows
    assert (len(list(read_events(tmp_path))) if events else 0) == events == summary.events


def test_a_large_day_is_written_in_blocks_without_losing_a_row(tmp_path: Path) -> None:
    summary = generate(tmp_path, days=1, orders_per_day=120_001, events=0, start=START, seed=5)
    data = content(tmp_path / "exports/orders_2026_03_20.csv")
    assert data.count(b"\n") == summary.export_rows + 1
    assert len(set(re.findall(rb"ORD-20260320-\d{6}", data))) >= summary.orders


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("days", 0),
        ("orders_per_day", 0),
        ("events", -1),
        ("seed", -1),
        ("timezone", "Atlantis/Capital"),
        ("start", date(1969, 12, 31)),
    ],
)
def test_arguments_out_of_range_are_named(name: str, value: object, tmp_path: Path) -> None:
    arguments: dict[str, object] = {
        "days": 1,
        "orders_per_day": 1,
        "events": 0,
        "start": START,
        "seed": 0,
        name: value,
    }
    with pytest.raises(ValueError, match=str(value)):
        generate(tmp_path, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_apportioned_parts_are_whole_and_sum_to_the_total() -> None:
    assert apportion(10, [1, 2, 1]).tolist() == [3, 5, 2]
    assert apportion(3, [0, 1, 0]).tolist() == [0, 3, 0]
    assert apportion(3, [0, 0]).tolist() == [0, 0]
