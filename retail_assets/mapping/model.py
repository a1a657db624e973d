"""The mapping file as a whole, and how it is read."""

import json
from collections.abc import Hashable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self, override

from retail_assets.errors import UsageError
from retail_assets.mapping.database import DatabaseMapping
from retail_assets.mapping.events import AS_LIST, ONE_OR_MORE, EventMapping
from retail_assets.mapping.exports import NATIVE_EXPORTS, ExportMapping, ReferenceMapping
from retail_assets.mapping.fields import Section
from retail_assets.mapping.lookups import Lookups

SHOWN_ERRORS = 10

EXTRACTED = ("file", "delimiter", "encoding", "decimal", "thousands", "header_line")
"""Keys of a file's layout that extracted files have as they are by default."""

EventMappings: TypeAlias = Annotated[tuple[EventMapping, ...], AS_LIST, ONE_OR_MORE]


class Mapping(Section):
    """All that a mapping file may say."""

    exports: ExportMapping = Field(default=NATIVE_EXPORTS, description="The order exports.")
    events: EventMappings = Field(default=(), description="The events, a mapping for each kind.")
    reference: ReferenceMapping = Field(
        default=ReferenceMapping(), description="The reference files."
    )
    lookups: Lookups = Field(
        default_factory=dict,
        description="What APIs outside are asked about fields of the events, by name.",
    )
    database: DatabaseMapping | None = Field(
        default=None, description="What is extracted from the shop's database."
    )

    @model_validator(mode="after")
    def _reads_what_is_extracted(self) -> Self:
        if self.database is None:
            return self
        written: dict[str, Section | None] = {
            "exports": self.exports,
            "reference.products": self.reference.products if self.database.products else None,
            "reference.customers": self.reference.customers if self.database.customers else None,
        }
        for name, section in written.items():
            fields = type(section).model_fields if section is not None else {}
            for key in EXTRACTED:
                if key in fields and getattr(section, key) != fields[key].default:
                    raise ValueError(
                        f"`{name}.{key}` is not for files that `database` writes: leave it out"
                    )
        return self


def fingerprint(section: Section) -> str:
    """The hash of what a section says, however it is written."""
    text = json.dumps(section.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return sha256(text.encode()).hexdigest()


def load(path: Path) -> Mapping:
    """Read a mapping file.

    Raises:
        UsageError: if there is none, or it is no mapping: each line says where and why.
    """
    try:
        stat = path.stat()
        return _load(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise UsageError(f"The mapping {path} cannot be read: {error.strerror}.") from error


@lru_cache(maxsize=8)
def _load(path: Path, _modified_ns: int, _size: int) -> Mapping:
    try:
        found = yaml.load(path.read_bytes(), _Texts)  # noqa: S506  # builds texts alone
    except yaml.YAMLError as error:
        shown = " ".join(str(error).split())
        raise UsageError(f"The mapping {path} is no YAML: {shown}.") from error
    try:
        return Mapping.model_validate(found or {})
    except ValidationError as error:
        lines = [_sentence(each) for each in error.errors()[:SHOWN_ERRORS]]
        raise UsageError(f"The mapping {path} cannot be used:", *lines) from error


def _sentence(error: Any) -> str:
    where = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{where}: there is no such key."
    if error["type"] == "missing":
        return f"{where} is missing."
    what = str(error["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}."


class _Texts(yaml.BaseLoader):
    """Reads every value as the text that it is: `no` is a country, and 007 an id."""

    @override
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for key in keys if keys.count(key) > 1]
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=True)
