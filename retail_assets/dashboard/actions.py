"""What the board changes, for those who know its token: redrives of dead letters, rewinds."""

import hmac
import logging
from dataclasses import dataclass

from retail_assets.consumers import live_revenue
from retail_assets.consumers.registry import recompute
from retail_assets.ingest.events.session import EventSession
from retail_assets.ingest.repair import dead_letters
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What an action did, in a sentence, and whether that is what was wanted."""

    done: bool
    sentence: str


def may_write(settings: Settings, token: str) -> bool:
    """Whether this is the board's token; never, where none is set."""
    wanted = settings.dashboard_token
    if wanted is None or not wanted.get_secret_value():
        return False
    return hmac.compare_digest(token.encode(), wanted.get_secret_value().encode())


def redrive(settings: Settings, letter_id: str, payload: str | None) -> Outcome:
    """Validate a dead letter again, as it is or with a corrected payload, and ingest it if valid.

    Raises:
        RetailAssetsError: if there is no such dead letter, or the lake cannot be written.
    """
    lake = Lake.from_settings(settings)
    lake.must_exist()
    with lake.connect() as connection:
        session = EventSession(lake, connection, settings.source_mapping.events)
        (done,) = dead_letters.redrive(session, [letter_id], payload=payload)
        live_revenue.refresh(lake, connection)
    logger.info("The board redrove %s: %s", done.id, done.outcome)
    return Outcome(done.outcome == "accepted", f"{done.id}: {done.outcome}.")


def rewind(settings: Settings, name: str) -> Outcome:
    """Recompute all tables of a consumer from the events.

    Raises:
        UsageError: if there is no such consumer.
        RetailAssetsError: if the lake cannot be written.
    """
    lake = Lake.from_settings(settings)
    lake.must_exist()
    with lake.connect() as connection:
        found = recompute(lake, connection, settings, name)
    logger.info("The board rewound %s: %s rows changed", name, found.rows)
    if found.failed:
        first = next(iter(found.failed.values()))
        sentence = f"{name} quarantined {len(found.failed):,} keys: {first}"
        return Outcome(done=False, sentence=sentence)
    sentence = f"{name} is recomputed: {found.rows:,} rows were inserted or deleted."
    return Outcome(done=True, sentence=sentence)
