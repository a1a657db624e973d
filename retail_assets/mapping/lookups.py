"""Lookups: what an API outside knows about a field of the events."""

import re
from typing import Annotated
from urllib.parse import quote, urlsplit

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from retail_assets.mapping.fields import Section

VALUE = "{value}"

MAX_VALUE = 500
"""A longer value of a field is not asked for."""

_SECRET = re.compile(r"\{([A-Za-z0-9_-]+)\}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _template(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it is no URL, such as https://crm.example.org/customers/{value}")
    if VALUE in parts.netloc or url.count(VALUE) != 1 or VALUE in parts.fragment:
        raise ValueError("it needs {value} once, in its path or its query")
    if "{" in url.replace(VALUE, "") or parts.username is not None:
        raise ValueError("it has nothing in braces but {value}, and no password: use `headers`")
    return url


def _path(path: str) -> str:
    if not re.fullmatch(r"\$(\.[A-Za-z0-9_-]+|\[\d+\])+", path):
        raise ValueError("it is no JSON path, such as $.customer.tier or $.items[0].name")
    return path


def _header(text: str) -> str:
    if _CONTROL.search(text) or not text.isascii():
        raise ValueError("a header has visible ASCII characters alone")
    return text


Url = Annotated[str, AfterValidator(_template)]
Path = Annotated[str, AfterValidator(_path)]
Header = Annotated[str, AfterValidator(_header)]


class Lookup(Section):
    """A question to an API, for each value of a field."""

    field: str = Field(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$",
        description="The field of the event whose value is looked up: one of ours, or any other"
        " field that events have.",
    )
    url: Url = Field(
        description="The URL, with `{value}` in its path or query where the value belongs, which"
        " is percent-encoded there."
    )
    headers: dict[str, Header] = Field(
        default_factory=dict,
        description="Headers of the request; `{NAME}` in one is the secret of that name of"
        " RETAIL_LOOKUP_SECRETS.",
    )
    keep: dict[str, Path] = Field(
        min_length=1,
        description="What is kept of an answer: a name, and the JSON path of its value.",
    )
    timeout_seconds: float = Field(
        default=5, gt=0, le=60, description="Seconds that an answer may take as a whole."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Requests at the same time.")
    per_second: float = Field(default=10, gt=0, description="Requests in a second at most.")
    valid_hours: float = Field(
        default=720,
        gt=0,
        description="Hours for which an answer is good; an event after that asks again.",
    )
    nobody: tuple[int, ...] = Field(
        default=(404, 410),
        description="Status codes that are an answer: the API does not know the value.",
    )

    @model_validator(mode="after")
    def _names_of_headers(self) -> Self:
        wrong = [name for name in self.headers if not re.fullmatch(r"[A-Za-z0-9-]+", name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name of a header")
        return self

    @property
    def secrets(self) -> frozenset[str]:
        """The names of the secrets that the headers need."""
        return frozenset(name for text in self.headers.values() for name in _SECRET.findall(text))

    def header_values(self, secrets: dict[str, str]) -> dict[str, str]:
        """The headers with their secrets.

        Raises:
            KeyError: if a secret is missing.
        """
        return {
            name: _SECRET.sub(lambda found: secrets[found[1]], text)
            for name, text in self.headers.items()
        }

    def url_of(self, value: str) -> str | None:
        """The URL for a value, which can change neither host nor path; None if it is not asked.

        A value of dots alone would be a step in the path, percent-encoded or not.
        """
        if not value.strip(". ") or len(value) > MAX_VALUE or _CONTROL.search(value):
            return None
        return self.url.replace(VALUE, quote(value, safe=""))


Lookups = dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$")], Lookup]
"""Lookups by name."""
