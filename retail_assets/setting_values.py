"""How the texts of settings become values that are no plain texts or numbers.

Each error is a sentence without the value, where that may have a password.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from retail_assets.webhook_senders import SENDER_NAME, WebhookSender

_MART_SCHEMES = ("postgresql://", "postgres://", "mysql://", "mariadb://")


def absolute(path: str | Path) -> str:
    """An absolute path, the same for every process."""
    return str(_absolute(Path(path)))


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _known_database(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(_MART_SCHEMES):
        raise ValueError(f"it must begin with one of {', '.join(_MART_SCHEMES)}")
    return value


def _object(value: Any) -> Any:
    """What JSON says, if it is a text; None if that is no JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value


def _options(value: Any) -> Any:
    value = _object(value)
    if not isinstance(value, dict):
        raise ValueError('it must be a JSON object, such as {"client.id": "shop"}')  # noqa: TRY004
    return value


def _secrets(value: Any) -> Any:
    value = _object(value)
    if not isinstance(value, dict):
        raise ValueError('it must be a JSON object, such as {"crm": "…"}')  # noqa: TRY004
    return value


def _senders(value: Any) -> Any:
    value = _object(value)
    if not isinstance(value, dict) or not all(map(SENDER_NAME.fullmatch, value)):
        raise ValueError(
            "it must be a JSON object of senders by name (lower-case letters, digits, - and _),"
            ' such as {"shop": {"scheme": "shopify", "secret": "…"}}'
        )
    return value


def _urls(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("it starts like a JSON list and is none") from None
    # A URL may have commas within.
    found = re.split(r"[\s,]+(?=[A-Za-z0-9]+://)", value.strip().strip(","))
    return [url for url in found if url]


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
MartUrl = Annotated[SecretStr, AfterValidator(_known_database)]
KafkaOptions = Annotated[dict[str, str | int | float | bool], NoDecode, BeforeValidator(_options)]
Secrets = Annotated[dict[str, SecretStr], NoDecode, BeforeValidator(_secrets)]
Senders = Annotated[dict[str, WebhookSender], NoDecode, BeforeValidator(_senders)]
Urls = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_urls)]
