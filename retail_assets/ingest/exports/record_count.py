"""Counting the records of a CSV file by its line ends and quotes alone, as fast as it is read."""

from typing import TypeAlias

import numpy as np

LINE_FEED, CARRIAGE_RETURN, QUOTE = b'\n\r"'

Bytes: TypeAlias = "np.typing.NDArray[np.uint8]"
Flags: TypeAlias = "np.typing.NDArray[np.bool_]"


class RecordCount:
    """Counts the lines of a file outside quotes, blank ones left out, chunk by chunk.

    A quote opens or closes: where quotes are as they should be, each such line is a record, with
    so many delimiters at least.
    """

    def __init__(self, fewest_delimiters: int, delimiter: str = ",") -> None:
        self._delimiter = ord(delimiter)
        self.line_feeds = 0
        self._returns, self._pairs, self._ends_in_return = 0, 0, False
        self._fewest_delimiters = fewest_delimiters
        self._ends, self._all_ends = 0, 0
        self._inside, self._at_end, self._at_return = np.uint8(0), True, False
        self._begun_inside, self._delimiters, self._row_inside = False, 0, False
        self._folded, self._stray, self._at_quote = False, False, False
        self._at_border = True

    def add(self, chunk: bytes) -> None:
        """Count the lines that end in a chunk."""
        found = np.frombuffer(chunk, np.uint8)
        feeds = found == LINE_FEED
        self.line_feeds += int(np.count_nonzero(feeds))
        ends = feeds
        self._pairs += bool(self._ends_in_return and feeds[0])
        self._ends_in_return = chunk[-1] == CARRIAGE_RETURN
        if b"\r" in chunk:
            returns = found == CARRIAGE_RETURN
            self._returns += int(np.count_nonzero(returns))
            self._pairs += int(np.count_nonzero(feeds[1:] & returns[:-1]))
            ends = feeds | returns
        if self._inside or self._begun_inside or b'"' in chunk:
            inside = np.bitwise_xor.accumulate((found == QUOTE).view(np.uint8)) ^ self._inside
            self._inside = inside[-1]
            self._look_at_quotes(found, ends, inside.view(bool))
            self._look_inside(found, ends, inside.view(bool))
            ends = ends & ~inside.view(bool)
        else:
            self._stray |= self._at_quote and found[0] not in (
                self._delimiter,
                LINE_FEED,
                CARRIAGE_RETURN,
            )
            self._at_quote = False
        self._all_ends += int(np.count_nonzero(ends))
        if self._at_return or b"\r" in chunk:
            # CR LF is one end of a line.
            returns = ends & ~feeds
            self._all_ends -= int(np.count_nonzero((ends & feeds)[1:] & returns[:-1]))
            self._all_ends -= self._at_return and bool(ends[0] & feeds[0])
            self._at_return = bool(returns[-1])
        self._at_border = chunk[-1] in (self._delimiter, QUOTE, LINE_FEED, CARRIAGE_RETURN)
        # The first of several line ends in a row ends a line; the others are blank lines, or the
        # second half of CR LF.
        self._ends += int(np.count_nonzero(ends[1:] > ends[:-1]))
        self._ends += bool(ends[0]) and not self._at_end
        self._at_end = bool(ends[-1])

    def _look_at_quotes(self, found: Bytes, ends: Flags, inside: Flags) -> None:
        """Look for quotes that open or close within a field: others read these differently."""
        quotes = found == QUOTE
        between = (found == self._delimiter) | ends | quotes
        self._stray |= bool(
            np.any(quotes[1:] & inside[1:] & ~between[:-1])
            or np.any(quotes[:-1] & ~inside[:-1] & ~between[1:])
            or (quotes[0] and inside[0] and not self._at_border)
            or (self._at_quote and not between[0])
        )
        self._at_quote = bool(quotes[-1] and not inside[-1])

    def _look_inside(self, found: Bytes, ends: Flags, inside: Flags) -> None:
        """Look for lines that begin within quotes and have the delimiters of a row."""
        at = np.flatnonzero(ends)
        within = inside[at]
        self._folded |= bool(within.any())
        if self._begun_inside or within.any():
            delimiters = np.flatnonzero(found == self._delimiter)
            before = np.searchsorted(delimiters, at)
            counts = np.diff(before, prepend=-self._delimiters, append=len(delimiters))
            begun_inside = np.concatenate(([self._begun_inside], within))
            self._row_inside |= bool(np.any(counts[begun_inside] >= self._fewest_delimiters))
            self._delimiters = int(counts[-1])
        else:
            self._delimiters = 0
        if len(at):
            self._begun_inside = bool(within[-1])

    @property
    def suspicious(self) -> bool:
        """Whether a field may have swallowed rows through a quote: then this count is not exact.

        Where no line ends within quotes, each is a record at most: nothing can be missed then.
        """
        return bool(self._row_inside or self._inside or (self._folded and self._stray))

    @property
    def records(self) -> int:
        """The lines so far, the last one with or without its end."""
        return self._ends + (not self._at_end)

    @property
    def uneven(self) -> bool:
        """Whether there are blank lines, or line ends of several kinds, in quotes or not."""
        pairs = self._pairs
        kinds = sum(count > 0 for count in (self.line_feeds - pairs, self._returns - pairs, pairs))
        return kinds > 1 or self._all_ends > self._ends
