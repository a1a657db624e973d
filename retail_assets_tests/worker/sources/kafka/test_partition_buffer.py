"""The day on which messages were received, and the chunks in which they are ingested."""

import time
from datetime import date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retail_assets.worker.sources.kafka import partition_buffer
from retail_assets.worker.sources.kafka.partition_buffer import PartitionQueue
from retail_assets.worker.sources.received_dates import ReceivedDates

LONDON = ZoneInfo("Europe/London")
FIRST = date(2024, 1, 1)


@pytest.fixture
def dates() -> ReceivedDates:
    return ReceivedDates("Europe/London", FIRST)


def milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "day"),
    [
        ("2024-01-01T00:00:00.000+00:00", date(2024, 1, 1)),
        # Summer time: midnight in London is at 23:00 UTC.
        ("2024-07-01T22:59:59.999+00:00", date(2024, 7, 1)),
        ("2024-07-01T23:00:00.000+00:00", date(2024, 7, 2)),
        # The days of 23 and of 25 hours.
        ("2024-03-31T22:59:59.999+00:00", date(2024, 3, 31)),
        ("2024-03-31T23:00:00.000+00:00", date(2024, 4, 1)),
        ("2024-10-26T23:00:00.000+00:00", date(2024, 10, 27)),
        ("2024-10-27T23:59:59.999+00:00", date(2024, 10, 27)),
        ("2024-10-28T00:00:00.000+00:00", date(2024, 10, 28)),
    ],
)
def test_the_day_of_a_timestamp_is_that_of_the_business(
    moment: str, day: date, dates: ReceivedDates
) -> None:
    assert dates.of(milliseconds(moment), None) == day


@pytest.mark.parametrize(
    "timestamp",
    [
        pytest.param(-1, id="none"),
        pytest.param(milliseconds("2023-12-31T23:59:59+00:00"), id="before the first partition"),
        pytest.param(milliseconds("2999-01-01T00:00:00+00:00"), id="in the future"),
        pytest.param(2**62, id="beyond any calendar"),
    ],
)
def test_a_timestamp_of_no_partition_is_of_the_day_before_it_or_today(
    timestamp: int, dates: ReceivedDates
) -> None:
    today = datetime.now(LONDON).date()

    assert dates.of(timestamp, None) in {today, datetime.now(LONDON).date()}
    assert dates.of(timestamp, date(2024, 5, 5)) == date(2024, 5, 5)


def test_no_message_is_of_an_earlier_day_than_the_one_before_it(dates: ReceivedDates) -> None:
    day = None
    found = []
    for moment in ["2024-02-01T12:00", "2024-02-02T00:01", "2024-02-01T23:59", "2024-02-03T09:00"]:
        day = dates.of(milliseconds(f"{moment}+00:00"), day)
        found.append(day.day)

    assert found == [1, 2, 2, 3]


def test_a_message_was_received_when_the_broker_says_unless_nobody_can_have(
    dates: ReceivedDates,
) -> None:
    queue = PartitionQueue("orders:0", dates)
    then, never = (milliseconds(f"{year}-02-01T12:00+00:00") for year in (2024, 2999))
    before = time.time_ns() // 1_000_000
    for offset, timestamp in enumerate((then, then + 1, -1, never)):
        queue.add(offset, b"x", timestamp)
    chunk = queue.first()
    assert chunk is not None
    recorded = [moment // 1000 for moment in chunk.recorded_us]
    assert recorded[:2] == [then, then + 1]
    assert all(before <= moment <= time.time_ns() // 1_000_000 for moment in recorded[2:])


def drain(queue: PartitionQueue) -> list[tuple[date, list[int]]]:
    found = []
    while (chunk := queue.first()) is not None:
        queue.under_way = True
        found.append((chunk.received_date, chunk.positions))
        queue.is_durable()
    return found


def test_a_chunk_has_messages_of_one_day(dates: ReceivedDates) -> None:
    queue = PartitionQueue("orders:0", dates)
    for offset in range(6):
        moment = datetime(2024, 2, 1, 12, tzinfo=LONDON) + timedelta(days=offset // 2)
        queue.add(offset, b"x", int(moment.timestamp() * 1000))

    assert drain(queue) == [
        (date(2024, 2, 1), [0, 1]),
        (date(2024, 2, 2), [2, 3]),
        (date(2024, 2, 3), [4, 5]),
    ]
    assert (queue.position, queue.weight, queue.is_empty) == (6, 0, True)


@pytest.mark.parametrize(("limit", "value"), [("CHUNK_EVENTS", 2), ("CHUNK_BYTES", 201)])
def test_a_chunk_is_bounded(
    limit: str, value: int, dates: ReceivedDates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_buffer, limit, value)
    queue = PartitionQueue("orders:0", dates)
    for offset in (7, 8, 11, 12, 13):
        queue.add(offset, b"x", -1)

    assert [positions for _, positions in drain(queue)] == [[7, 8], [11, 12], [13]]


def test_what_is_under_way_stays_as_it_is(dates: ReceivedDates) -> None:
    queue = PartitionQueue("orders:0", dates)
    queue.add(0, b"x", -1)
    chunk = queue.first()
    queue.under_way = True

    queue.add(1, b"y", -1)

    assert chunk is not None
    assert chunk.positions == [0]
    assert queue.first() is None


def test_a_message_that_came_already_is_left_out(dates: ReceivedDates) -> None:
    queue = PartitionQueue("orders:0", dates)
    for offset in (4, 5, 4, 5, 6):
        queue.add(offset, b"x", -1)

    assert [positions for _, positions in drain(queue)] == [[4, 5, 6]]


def test_what_has_failed_comes_first_again_after_a_while(dates: ReceivedDates) -> None:
    queue = PartitionQueue("orders:0", dates)
    queue.add(0, b"x", -1)
    queue.under_way = True
    queue.add(1, b"y", -1)

    queue.has_failed("the disk is full", retry_seconds=3600)
    assert (queue.first(), queue.failure) == (None, "the disk is full")

    queue.retry_at = 0
    assert drain(queue)[0][1][0] == 0
    assert queue.failure is None


class Sent(NamedTuple):
    """A message as far as a queue looks at it."""

    number: int
    at: int
    kind: int = 1

    def offset(self) -> int:
        return self.number

    def timestamp(self) -> tuple[int, int]:
        return self.kind, self.at

    def value(self) -> bytes:
        return b"x"


def test_nothing_is_added_to_a_chunk_under_way_even_if_messages_come_again(
    dates: ReceivedDates,
) -> None:
    at = milliseconds("2024-05-05T12:00:00+00:00")
    queue = PartitionQueue("orders:0", dates)
    queue.extend([Sent(0, at), Sent(1, at)])
    first = queue.first()
    assert first is not None
    queue.under_way = True

    queue.extend([Sent(1, at), Sent(2, at), Sent(3, at)])

    assert first.positions == [0, 1]
    queue.is_durable()
    following = queue.first()
    assert following is not None
    assert following.positions == [2, 3]


NOON = milliseconds("2024-05-05T12:00:00+00:00")
DAY = 24 * 3600 * 1000

mostly = st.sampled_from
GROUPS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                mostly([1] * 12 + [0, 2, -2]),
                mostly([NOON] * 12 + [NOON + 1, NOON + DAY, NOON - DAY, 2**62]),
                mostly([1] * 5 + [0]),
            ),
            min_size=1,
            max_size=6,
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@given(groups=GROUPS)
def test_messages_taken_together_come_to_the_same_as_one_after_the_other(
    groups: list[tuple[list[tuple[int, int, int]], bool]],
) -> None:
    together = PartitionQueue("orders:0", ReceivedDates("Europe/London", FIRST))
    alone = PartitionQueue("orders:0", ReceivedDates("Europe/London", FIRST))
    offset = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partition_buffer, "CHUNK_EVENTS", 9)
        patch.setattr(partition_buffer, "CHUNK_BYTES", 1_200)
        for group, moves in groups:
            messages = []
            for step, at, kind in group:
                offset = max(0, offset + step)
                messages.append(Sent(offset, at, kind))
            together.extend(messages)
            for message in messages:
                alone.add(message.number, b"x", message.at if message.kind else -1)
            assert together.weight == alone.weight
            for queue in (together, alone) if moves else ():
                if queue.under_way:
                    queue.is_durable()
                else:
                    queue.under_way = queue.first() is not None

    found = [[*drain_all(queue), queue.position, queue.weight] for queue in (together, alone)]
    assert found[0] == found[1]


def drain_all(queue: PartitionQueue) -> list[tuple[date, list[int]]]:
    """What is under way, too."""
    queue.under_way = False
    return drain(queue)
