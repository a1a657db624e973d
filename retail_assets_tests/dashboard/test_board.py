"""The board in a real browser: every page, light and dark, at a desk and on a phone.

`BOARD_SCREENSHOTS=FOLDER` keeps what was seen.
"""

import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from retail_assets import tables
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings
from retail_assets_tests.conftest import NewLake
from retail_assets_tests.dashboard.rows import beating, insert, published, streamed
from retail_assets_tests.event_files import EventLoader
from retail_assets_tests.processes import finish, run_command, start
from tools.ports import free_port

pytestmark = [pytest.mark.processes, pytest.mark.slow]

HANG_MS = 120_000  # never reached unless something is broken: a red test instead of a stuck one
TOKEN = "a-token-of-a-test"  # noqa: S105
TODAY = datetime.now(ZoneInfo("Europe/London")).date()
SIZES: dict[str, ViewportSize] = {
    "desk": {"width": 1400, "height": 1000},
    "phone": {"width": 390, "height": 844},
}


@dataclass
class Site:
    """A board that is served, and its lake."""

    url: str
    lake: Lake
    settings: Settings


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("There is no Chromium: `apt-get install chromium` brings one.")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, new_lake: NewLake) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("board")
    lake = new_lake(folder)
    fill(lake)
    port = free_port()
    environment = {
        name: value
        for name, value in os.environ.items()
        # NiceGUI serves otherwise than to people where it sees that pytest runs.
        if not name.startswith(("RETAIL_", "PYTEST_"))
    } | {
        "RETAIL_DATA_DIR": str(folder),
        "RETAIL_THREADS": "1",
        "RETAIL_DASHBOARD_TOKEN": TOKEN,
        "RETAIL_DASHBOARD_SECONDS": "0.2",
    }
    said = folder / "said"
    process = start(serve, ["dashboard", "--port", str(port)], environment, said)
    try:
        while not said.exists() or "The board is ready" not in said.read_text():
            assert process.is_alive(), said.read_text()
            time.sleep(0.05)
        yield Site(f"http://127.0.0.1:{port}", lake, Settings(data_dir=folder, threads=1))
    finally:
        process.terminate()
        finish([process])


def serve(arguments: list[str], environment: dict[str, str], said: Path) -> None:
    # NiceGUI serves in a main process alone.
    multiprocessing.current_process().name = "MainProcess"
    run_command(arguments, environment, said)


def fill(lake: Lake) -> None:
    """A shop with two weeks behind it, and events of today."""
    days = [TODAY - timedelta(days=n) for n in range(1, 15)]
    published(
        lake,
        *((day, f"{h:02}:15", "North", f"{h}.50") for day in days for h in range(8, 20)),
        *((day, "12:00", "South & <West>", "31.00") for day in days),
    )
    streamed(lake, (TODAY, "00:00", "North", "12.00"), (TODAY, "00:01", "South & <West>", "8.00"))
    insert(lake, tables.RAW_ORDERS, {"order_id": "B-1", "order_date": days[0]})
    insert(lake, tables.REJECTED_ORDERS, {"export_date": days[0], "reason": "missing_value"})
    insert(
        lake,
        tables.FRAUD_ALERTS,
        {"order_id": "O7", "order_date": TODAY, "reasons": "many_cards", "explanation": "3 cards"},
    )
    insert(lake, tables.INVENTORY_LEVELS, {"product_id": "P1", "stock": 2, "below": True})
    feed(lake, "E1", "O1")
    beating(lake, datetime.now(ZoneInfo("UTC")))


def feed(lake: Lake, event_id: str, order_id: str) -> None:
    """An event that became visible just now."""
    now = datetime.now(ZoneInfo("UTC"))
    values = {"processed_at": now, "received_at": now, "received_date": TODAY}
    insert(
        lake,
        tables.ENRICHED_EVENTS,
        {"event_id": event_id, "order_id": order_id, "value_tier": "high", **values},
    )


@contextmanager
def opened(browser: Browser, site: Site, path: str) -> Iterator[Page]:
    """Open a page; errors in its console, and requests to other hosts, fail the test."""
    context = browser.new_context(viewport=SIZES["desk"], color_scheme="light", locale="en-GB")
    context.set_default_timeout(HANG_MS)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda line: said.append(line.text) if line.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((site.url, "data:", "blob:"))
            else said.append(f"asks {request.url}")
        ),
    )
    page.goto(site.url + path)
    try:
        yield page
        assert said == []
    finally:
        context.close()


PAGES = {
    "/": "Fraud alerts",
    "/period": "Region by category",
    "/history": "What has changed since",
    "/health": "What follows the events",
    f"/orders?day={TODAY - timedelta(days=1)}": "Rejected rows",
    f"/order?id=B-1&day={TODAY - timedelta(days=1)}": "Rows of order exports",
}


@pytest.mark.parametrize("path", PAGES)
def test_every_page_fits_and_axe_finds_nothing_serious(browser, site, path):
    with opened(browser, site, path) as page:
        expect(page.get_by_text(PAGES[path]).first).to_be_visible(timeout=HANG_MS)
        expect(page.locator("h1")).to_have_count(1)
        for theme, rules in (("light", None), ("dark", ["color-contrast"])):
            page.emulate_media(color_scheme=theme)
            expect(page.locator(f"html[data-theme={theme}]")).to_be_attached(timeout=HANG_MS)
            for name, size in SIZES.items():
                page.set_viewport_size(size)
                # As wide as the window: nothing is reached by scrolling sideways alone.
                assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
                if folder := os.environ.get("BOARD_SCREENSHOTS"):
                    shown = path.strip("/").split("?")[0] or "today"
                    page.screenshot(path=f"{folder}/{shown}-{name}-{theme}.png", full_page=True)
            assert grave_violations(page, rules) == []


def grave_violations(page: Page, rules: list[str] | None) -> list[tuple[str, list[str]]]:
    """What axe finds serious or critical by some rules, or by all, with the elements."""
    options: dict[str, Any] = {"resultTypes": ["violations"], "runOnly": rules}
    found = Axe().run(page, options={name: each for name, each in options.items() if each})
    return [
        (each["id"], [node["html"][:200] for node in each["nodes"]])
        for each in found.response["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_an_event_and_its_revenue_appear_by_themselves(browser, site):
    with opened(browser, site, "/") as page:
        feed_rows = page.get_by_role("region", name="Newest events")
        expect(feed_rows).to_contain_text("O1", timeout=HANG_MS)
        feed(site.lake, "E2", "O-new")
        expect(feed_rows).to_contain_text("O-new", timeout=HANG_MS)
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Resume")).to_be_visible()
        feed(site.lake, "E3", "O-later")
        page.get_by_role("button", name="Resume").click()
        expect(feed_rows).to_contain_text("O-later", timeout=HANG_MS)


def test_a_lake_that_goes_away_is_said_above_the_last_numbers(browser, site):
    with opened(browser, site, "/") as page:
        tile = page.get_by_role("region", name="Revenue", exact=True)
        expect(tile).to_contain_text("£20.00", timeout=HANG_MS)
        moved = site.settings.lake_dir.with_name("moved")
        site.settings.lake_dir.rename(moved)
        try:
            notice = page.get_by_role("status")
            expect(notice).to_contain_text("There is no lake", timeout=HANG_MS)
            expect(tile).to_contain_text("£20.00")
            expect(page.get_by_text("The lake cannot be read")).to_be_visible()
        finally:
            moved.rename(site.settings.lake_dir)
        expect(page.get_by_text("There is no lake")).to_have_count(0, timeout=HANG_MS)


def test_a_view_is_reached_by_the_keyboard_and_its_link_shows_it_again(browser, site):
    with opened(browser, site, "/period") as page:
        page.keyboard.press("Tab")
        expect(page.get_by_text("Skip to the content")).to_be_focused()
        page.get_by_text("all", exact=True).first.press("Enter")
        page.get_by_label("South & <West>").check()
        page.get_by_role("button", name="Show").press("Enter")
        page.wait_for_url("**/period?*region=*")
        expect(page.get_by_role("region", name="Revenue", exact=True)).to_contain_text("£442.00")
        link = page.url
    with opened(browser, site, link.removeprefix(site.url)) as page:
        expect(page.get_by_role("region", name="Revenue", exact=True)).to_contain_text("£442.00")
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").click()
        assert "South & <West>" in Path(download.value.path()).read_text()


def test_a_dead_letter_is_corrected_and_redriven_by_those_who_know_the_token(browser, site):
    with EventLoader.open(site.settings) as loader:
        bad = '{"order_id": "O9", "customer_id": "C1", "region": "North", "order_value_gbp": -9.5}'
        loader.write(f"{TODAY}/bad.jsonl", [bad])
        loader.ingest()
        (letter,) = loader.letters()
    with opened(browser, site, f"/health?day={TODAY}") as page:
        expect(page.get_by_text(letter)).to_be_visible(timeout=HANG_MS)
        assert "-9.5" not in page.content()
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Repair, and show payloads").click()
        expect(page.get_by_text("not the token")).to_be_visible(timeout=HANG_MS)
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Repair, and show payloads").click()
        payload = page.get_by_label("Corrected payload")
        expect(payload).to_have_value(bad, timeout=HANG_MS)
        payload.fill(bad.replace("-9.5", "9.5"))
        page.get_by_role("button", name="Redrive").click()
        page.get_by_role("button", name="Leave it").click()
        page.get_by_role("button", name="Redrive").click()
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text(f"{letter}: accepted.")).to_be_visible(timeout=HANG_MS)
    with site.lake.connect(read_only=True) as connection:
        found = connection.execute(
            "SELECT order_value_gbp FROM enriched_events WHERE source = 'redrive'"
        ).fetchall()
    assert found == [(Decimal("9.50"),)]
