"""Files that take the places of others: whatever step fails, the next run puts it right."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timezone
from pathlib import Path

import duckdb
import pytest

from retail_assets.extract import files
from retail_assets.ingest.exports.split import STATE, split_exports
from retail_assets.lake import replacement
from retail_assets.lake.connection import Lake
from retail_assets.settings import Settings

FIRST, SECOND = date(2026, 10, 20), date(2026, 10, 21)
HEADER = "order_id,customer_id,product_id,region,status,order_value_gbp,order_timestamp"
MAPPING = "exports: {{file: many*.csv, fields: {{{}}}}}".format(
    ", ".join(f"{name}: {name}" for name in HEADER.split(","))
)


class FaultError(Exception):
    """What a test does to a step."""


@contextmanager
def failing(step: int) -> Iterator[None]:
    """Let a step, a sync or a rename, fail: what it had to do is not done."""
    count = 0

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count == step:
                raise FaultError
            return real(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replacement, "sync_paths", watched(replacement.sync_paths))
        patch.setattr(Path, "replace", watched(Path.replace))
        yield


def at_each_step(run: Callable[[], None], check: Callable[[int], None]) -> int:
    """Run with a fault at each step in turn, then without; returns the number of steps."""
    step = 1
    while True:
        try:
            with failing(step):
                run()
        except FaultError:
            run()
            check(step)
            step += 1
        else:
            check(step)
            return step - 1


def test_an_export_of_many_days_is_split_whatever_step_fails(
    settings: Settings, tmp_path: Path
) -> None:
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text(MAPPING)
    shop = settings.model_copy(update={"mapping": mapping})
    shop.exports_dir.mkdir(parents=True, exist_ok=True)
    days = [shop.exports_dir / f"orders_2026_10_{day}.csv" for day in (20, 21)]
    price = 0

    def run() -> None:
        export = shop.exports_dir / "many.csv"
        rows = [f"{n},C,P,N,completed,{price},2026-10-{20 + n} 10:00:00" for n in (0, 1)]
        if not export.exists() or f",{price}," not in export.read_text():
            export.write_text("\n".join([HEADER, *rows]) + "\n")
            when = datetime(2026, 10, 22, 12, price, tzinfo=timezone.utc).timestamp()
            os.utime(export, (when, when))
        split_exports(shop)

    def check(_: int) -> None:
        nonlocal price
        for path in days:
            header, line = path.read_text().splitlines()
            assert header.startswith(HEADER)
            assert f",{price}," in line
        assert not list(shop.exports_dir.glob(".*"))
        assert split_exports(shop).rows == {}, "it is noted"
        price += 1

    # Drafts, two names, their folder; then as much for the state, which is one file.
    assert at_each_step(run, check) == 7
    assert (shop.lake_dir / STATE).exists()


def test_extracted_files_are_in_their_places_and_known_whatever_step_fails(
    settings: Settings, lake: Lake
) -> None:
    places = {day: settings.exports_dir / f"orders_{day:%Y_%m_%d}.csv" for day in (FIRST, SECOND)}
    value = 0

    with lake.connect() as connection, duckdb.connect() as source:

        def run() -> None:
            files.remove_unfinished([settings.exports_dir])
            written = [
                files.write(source, path, {"value": f"'{value}'"}, "range(1)", "1", day=day)
                for day, path in places.items()
            ]
            _, refused = files.place(
                lake, connection, settings.data_dir, written, {"from": "a test"}, may_replace=False
            )
            assert refused == {}

        def check(_: int) -> None:
            nonlocal value
            for path in places.values():
                assert path.read_text() == f"value\n{value}\n"
                found = connection.execute(
                    "SELECT arg_max(content_hash, extracted_at) FROM lake.extracted_files"
                    " WHERE file = ?",
                    [path.relative_to(settings.data_dir).as_posix()],
                ).fetchall()
                assert found == [(files.content_hash(path),)]
            assert not list(settings.exports_dir.glob(".*"))
            value += 1

        assert at_each_step(run, check) == 4
