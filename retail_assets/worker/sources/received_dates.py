"""The day on which a message was received, by the time that its source gave it."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo


class ReceivedDates:
    """The day on which a message was received: that of its timestamp, if that is a partition."""

    def __init__(self, timezone: str, first: date) -> None:
        self._timezone = ZoneInfo(timezone)
        self._first = first
        self._day = first
        self._from = self._to = 0

    def today(self) -> date:
        """The day that it is now."""
        return datetime.now(self._timezone).date()

    def of(self, timestamp: int, before: date | None) -> date:
        """Return the day of a message.

        No message of Kafka counts for an earlier day than the one before it in its partition,
        whatever the clock of its producer says. Otherwise, two producers whose clocks differ would
        make chunks of one message each at midnight.

        Args:
            timestamp: milliseconds since 1970; -1 for none.
            before: the day of the message before it in its partition, if known.
        """
        if not self._from <= timestamp < self._to and not self._look_up(timestamp):
            return before or self.today()
        return self._day if before is None or before < self._day else before

    def are_of(self, day: date, timestamps: Sequence[int]) -> bool:
        """Whether all messages are of a day, as far as that is seen at once."""
        return day == self._day and self._from <= min(timestamps) and max(timestamps) < self._to

    def _look_up(self, timestamp: int) -> bool:
        """Keep the day of a timestamp and its bounds; False if it is no partition."""
        try:
            day = datetime.fromtimestamp(timestamp / 1000, self._timezone).date()
        except (OverflowError, OSError, ValueError):
            return False
        if not self._first <= day <= self.today():
            return False
        self._day, self._from, self._to = day, self._begin(day), self._begin(day + timedelta(1))
        return True

    def _begin(self, day: date) -> int:
        midnight = datetime(day.year, day.month, day.day, tzinfo=self._timezone)
        return int(midnight.timestamp() * 1000)
