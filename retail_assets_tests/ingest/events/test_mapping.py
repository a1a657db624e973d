"""Events in other shapes, ingested by a mapping: each right, or a dead letter that names why."""

import ast
import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pytest

from retail_assets import tables
from retail_assets.health.status import collect_status
from retail_assets.ingest.events import mapping_ledger
from retail_assets.ingest.exports import reference
from retail_assets.ingest.repair import dead_letters
from retail_assets.ingest.repair.replay import check_day, event_days, replay_day
from retail_assets.lake.connection import Lake
from retail_assets.lake.publish import publish_table
from retail_assets.mapping.events import EventMapping
from retail_assets.settings import Settings
from retail_assets_tests.event_files import EventLoader, event

Shape: TypeAlias = dict[str, Any]

DAY = date(2026, 11, 2)
ORDER = {
    "order": 5726128734520,
    "buyer": {"id": 12, "e-mail": "a@example.com"},
    "total": 1999,
    "state": "PAID",
    "at": 1791799200,
    "place": {"name": "North"},
    "card_id": "K1",
}
FIELDS: Mapping[str, Any] = {
    "order_id": "$.order",
    "customer_id": {"from": "$.buyer.id", "or": "$.buyer['e-mail']"},
    "region": {"from": "$.place.name", "default": "unknown"},
    "status": {"from": "$.state", "values": {"paid": "completed", "open": "pending"}},
    "order_value_gbp": {"from": "$.total", "scale": "0.01"},
    "event_timestamp": {"from": "$.at", "format": "epoch"},
}
CLOUD: Shape = {
    "when": {"path": "$.type", "is": ["order.created"]},
    "root": "$.data",
    "fields": {**FIELDS, "event_id": "$$.id"},
}


@pytest.fixture
def loader(settings: Settings, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Open a loader with mappings, or others over the same lake."""
    del lake

    @contextmanager
    def open_(*mappings: Shape) -> Iterator[EventLoader]:
        path = settings.data_dir / f"mapping{len(list(settings.data_dir.glob('*.yaml')))}.yaml"
        path.write_text(json.dumps({"events": mappings}))
        monkeypatch.setenv("RETAIL_MAPPING", str(path))
        with EventLoader.open(Settings()) as opened:
            yield opened

    return open_


def cloud(number: int, **changed: Any) -> str:
    """A CloudEvent with an order in it."""
    return json.dumps(
        {
            "specversion": "1.0",
            "type": "order.created",
            "source": "/shop",
            "id": f"C{number}",
            "data": {**ORDER, "order": number},
        }
        | changed
    )


RIGHT = ("5726128734520", "12", "North", "completed", 19.99, date(2026, 10, 12))
COLUMNS = "order_id, customer_id, region, status, order_value_gbp::DOUBLE, order_date"


ENVELOPES: Mapping[str, tuple[Shape, Shape]] = {
    "plain": ({"fields": FIELDS}, ORDER),
    "cloudevents": (CLOUD, {"type": "order.created", "id": "x", "data": ORDER}),
    "connect": (
        {"root": "$.payload", "fields": FIELDS},
        {"schema": {"type": "struct"}, "payload": ORDER},
    ),
    "debezium": (
        {
            "when": {"path": "$.payload.op", "is": ["c", "r", "u"]},
            "root": "$.payload.after",
            "fields": FIELDS,
        },
        {"schema": {}, "payload": {"before": None, "after": ORDER, "op": "c", "ts_ms": 1}},
    ),
    "list": (
        {"root": "$.entry[0]['the order']", "fields": FIELDS},
        {"entry": [{"the order": ORDER}]},
    ),
    "odd-names": (
        {"root": "$.a['b.c'][\"d'e\"]['*']", "fields": FIELDS},
        {"a": {"b.c": {"d'e": {"*": ORDER}}}},
    ),
}
"""A mapping, and an event that it opens to the order, by the source of both."""


def test_an_envelope_is_opened(loader: Any):
    mappings = [{**mapping, "source": source} for source, (mapping, _) in ENVELOPES.items()]
    with loader(*mappings) as events:
        for source, (_, payload) in ENVELOPES.items():
            events.write(f"{source}/a.jsonl", [json.dumps(payload)])
        events.ingest()
        opened = events.rows(f"SELECT source_name, {COLUMNS} FROM enriched_events ORDER BY 1")
        assert opened == [(f"{source}/a.jsonl", *RIGHT) for source in sorted(ENVELOPES)]
        received = dict(events.rows("SELECT source_name, payload FROM raw_events"))
        assert received == {
            f"{source}/a.jsonl": json.dumps(payload) for source, (_, payload) in ENVELOPES.items()
        }
        assert events.rows("SELECT DISTINCT extra::JSON->>'$.card_id' FROM enriched_events") == [
            ("K1",)
        ]


BASE64 = {"root": "$.message.data", "root_text": "base64", "fields": FIELDS}
JSON_TEXT = {"root": "$.Message", "root_text": "json", "fields": FIELDS}


def in_base64(text: str) -> Shape:
    return {"message": {"data": base64.b64encode(text.encode()).decode(), "messageId": "1"}}


def ingest_texts(events: EventLoader, base64s: list[Shape], texts: list[Shape]) -> None:
    for source, payloads in (("base64", base64s), ("text", texts)):
        events.write(f"{source}/a.jsonl", [json.dumps(payload) for payload in payloads])
    events.ingest()


TEXTS = ({**BASE64, "source": "base64"}, {**JSON_TEXT, "source": "text"})


def test_an_order_in_a_text_is_opened(loader: Any):
    with loader(*TEXTS) as events:
        ingest_texts(
            events,
            [in_base64(json.dumps(ORDER)), {"message": {"data": ORDER}, "number": 2}],
            [{"Type": "Notification", "Message": f" {json.dumps(ORDER)}"}],
        )
        assert events.rows(f"SELECT {COLUMNS} FROM enriched_events") == [RIGHT] * 3
        assert events.rows("SELECT DISTINCT extra::JSON->>'$.card_id' FROM enriched_events") == [
            ("K1",)
        ]


def test_a_text_that_is_no_order_is_a_dead_letter(loader: Any):
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    texts = ["not base64!", "AAA", "/////w=="]
    decoded = ["[1]", '{"order": 1', '{"order": 1, "order": 2}', deep]
    with loader(*TEXTS) as events:
        ingest_texts(
            events,
            [*({"message": {"data": text}} for text in texts), *map(in_base64, decoded)],
            [{"Message": deep}, {"Message": "Hello"}],
        )
        found = events.rows(
            "SELECT source_name, position, reason, field FROM dead_letter_events ORDER BY ALL"
        )
    assert found == [
        *(("base64/a.jsonl", n, "wrong_type", BASE64["root"]) for n in range(1, 8)),
        *(("text/a.jsonl", n, "wrong_type", JSON_TEXT["root"]) for n in range(1, 3)),
    ]


def test_a_deleted_row_is_a_cancelled_order(loader: Any):
    fields = {name: field for name, field in FIELDS.items() if name != "status"}
    gone = {
        "when": {"path": "$.op", "is": "d"},
        "root": "$.before",
        "fields": {**fields, "status": {"constant": "cancelled"}},
    }
    now = {"when": {"path": "$.op", "is": ["c", "u"]}, "root": "$.after", "fields": FIELDS}
    with loader(now, gone) as events:
        lines = [
            json.dumps({"op": "c", "before": None, "after": ORDER}),
            json.dumps({"op": "d", "before": ORDER, "after": None}),
            json.dumps({"op": "u", "before": ORDER, "after": None}),
        ]
        events.write("a.jsonl", lines)
        events.ingest()
        assert events.rows("SELECT status FROM enriched_events ORDER BY position") == [
            ("completed",),
            ("cancelled",),
        ]
        assert events.rows("SELECT reason, field FROM dead_letter_events") == [
            ("missing_field", "$.after")
        ]


UNREADABLE: list[tuple[Shape, str, str]] = [
    ({"type": "order.deleted"}, "unmapped_event", "$.type: order.deleted"),
    ({"type": None}, "unmapped_event", "$.type: null"),
    ({"data": None}, "missing_field", "$.data"),
    ({"data": "eyJvcmRlciI6MX0="}, "wrong_type", "$.data"),
    ({"data": {**ORDER, "order": None}}, "missing_field", "order_id"),
    ({"data": {**ORDER, "order": {"id": 1}}}, "wrong_type", "order_id"),
    ({"data": {**ORDER, "order": True}}, "wrong_type", "order_id"),
    ({"data": {**ORDER, "order": " "}}, "blank_value", "order_id"),
    ({"data": {**ORDER, "buyer": {}}}, "missing_field", "customer_id"),
    ({"data": {**ORDER, "total": None}}, "missing_field", "order_value_gbp"),
    ({"data": {**ORDER, "total": "12 pounds"}}, "wrong_type", "order_value_gbp"),
    ({"data": {**ORDER, "total": "12,50"}}, "wrong_type", "order_value_gbp"),
    ({"data": {**ORDER, "total": -1999}}, "not_positive", "order_value_gbp"),
    ({"data": {**ORDER, "total": 19.99}}, "fraction_of_penny", "order_value_gbp"),
    ({"data": {**ORDER, "state": "SHIPPED"}}, "unknown_status", "status"),
    ({"data": {**ORDER, "at": "yesterday"}}, "invalid_timestamp", "event_timestamp"),
    ({"data": {**ORDER, "at": 4_000_000_000}}, "absurd_timestamp", "event_timestamp"),
    ({"data": {**ORDER, "currency": "eur"}}, "unknown_currency", "currency"),
    ({"data": {**ORDER, "currency": {"code": "EUR"}}}, "unknown_currency", "currency"),
]
"""What is changed in an event, and the reason and field of its dead letter."""


def test_what_a_mapping_cannot_read_is_a_dead_letter_that_names_it(loader: Any):
    with loader(CLOUD) as events:
        events.write("a.jsonl", [cloud(n, **changed) for n, (changed, *_) in enumerate(UNREADABLE)])
        events.ingest()
        found = events.rows("SELECT reason, field FROM dead_letter_events ORDER BY position")
    assert found == [(reason, field) for _, reason, field in UNREADABLE]


def test_a_field_that_stands_twice_on_the_way_is_a_dead_letter(loader: Any):
    lines = [
        '{"type": "order.created", "type": "order.created", "data": {}}',
        cloud(1).replace('"order": 1', '"order": 1, "order": 2'),
        cloud(2).replace('"id": 12', '"id": 12, "id": 13'),
    ]
    with loader(CLOUD) as events:
        events.write("a.jsonl", lines)
        events.ingest()
        found = events.rows("SELECT reason FROM dead_letter_events")
    assert found == [("repeated_field",)] * len(lines)


def test_events_are_known_by_their_mapped_id_or_their_content(loader: Any):
    without = {"source": "plain", "fields": FIELDS}
    with loader({**CLOUD, "source": "cloud"}, without) as events:
        events.write("cloud/a.jsonl", [cloud(1), cloud(1), cloud(2)])
        events.write("plain/a.jsonl", [json.dumps(ORDER), json.dumps({**ORDER, "note": 1})] * 2)
        events.ingest()
        found = [name for (name,) in events.events()]
    assert found[:2] == ["C1", "C2"]
    assert len(found) == 4
    assert all(name.startswith("content:") for name in found[2:])


def test_an_envelope_that_is_sent_again_is_no_conflict(loader: Any):
    with loader(CLOUD) as events:
        events.write("a.jsonl", [cloud(1, attempt=1), cloud(1, attempt=2), cloud(1, data=ORDER)])
        events.ingest()
        assert events.events() == [("C1",)]
        assert events.rows("SELECT reason, position FROM dead_letter_events") == [
            ("conflicting_event", 3)
        ]


def test_a_mapping_is_for_its_sources_alone(loader: Any):
    with loader({**CLOUD, "source": ["file:cloud/*.jsonl", "webhook:a"]}) as events:
        events.write("cloud/a.jsonl", [cloud(1)])
        events.write("cloud/deep/a.jsonl", [event(2)])
        euro = event(4, currency="EUR")
        escaped = euro.replace("currency", "curr\\u0065ncy")
        events.write("a.jsonl", [event(3, note="kept"), euro, escaped])
        events.ingest()
        assert [name for (name,) in events.events()] == ["C1", "E2", "E3"]
        assert events.rows("SELECT extra FROM enriched_events WHERE event_id = 'E3'") == [
            ('{"note":"kept"}',)
        ]
        assert (
            events.rows("SELECT reason, field FROM dead_letter_events")
            == [("unknown_currency", "currency")] * 2
        )


@pytest.mark.parametrize(
    ("source", "origin", "is_of_it"),
    [
        ("shop", "webhook:shop:worker-1", True),
        ("shop", "webhook:shop:worker-1:7", True),
        ("shop", "webhook:shop2:worker-1", False),
        ("shop", "kafka:shop:0", True),
        ("shop", "kafka:shop@2:0", True),
        ("shop", "file:shop/2026/a.jsonl", True),
        ("shop", "file:a/shop/b.jsonl", False),
        ("kafka:shop.orders", "kafka:shop.orders:3:17", True),
        ("kafka:shop.orders", "kafka:shopXorders:3", False),
        ("kafka:shop", "webhook:shop:w", False),
        ("file:*/a?.jsonl", "file:x/a1.jsonl@2:5", True),
        ("file:*/a?.jsonl", "file:x/y/a1.jsonl", False),
        ("file:**/a.jsonl", "file:x/y/a.jsonl", True),
        ("file:a+(b).jsonl", "file:a+(b).jsonl", True),
    ],
)
def test_a_source_is_found_by_its_name(source: str, origin: str, is_of_it: bool):
    mapping = EventMapping.model_validate({**CLOUD, "source": source})
    found = duckdb.execute("SELECT regexp_full_match(?, ?)", [origin, mapping.origins]).fetchone()
    assert found == (is_of_it,)


def test_decimal_commas_are_of_texts_alone(loader: Any):
    fields = {**FIELDS, "order_value_gbp": "$.total"}
    with loader({"decimal": ",", "thousands": ".", "fields": fields}) as events:
        totals = ["1.234,50", 12.5, "12.5", 7]
        events.write(
            "a.jsonl", [json.dumps({**ORDER, "order": n, "total": t}) for n, t in enumerate(totals)]
        )
        events.ingest()
        assert events.rows(
            "SELECT order_value_gbp::VARCHAR FROM enriched_events ORDER BY order_id"
        ) == [("1234.50",), ("12.50",), ("7.00",)]
        assert events.rows("SELECT reason, field FROM dead_letter_events") == [
            ("wrong_type", "order_value_gbp")
        ]


def test_times_without_an_offset_are_in_the_zone_of_the_mapping(loader: Any):
    fields = {**FIELDS, "event_timestamp": {"from": "$.at", "timezone": "America/New_York"}}
    with loader({"fields": fields}) as events:
        times = ["2026-10-11T22:30:00", "2026-10-11T22:30:00+00:00"]
        events.write(
            "a.jsonl", [json.dumps({**ORDER, "order": n, "at": t}) for n, t in enumerate(times)]
        )
        events.ingest()
        assert events.rows("SELECT order_date FROM enriched_events ORDER BY order_id") == [
            (date(2026, 10, 12),),
            (date(2026, 10, 11),),
        ]


def test_a_replay_reads_by_the_mapping_of_today(loader: Any):
    with loader() as events:
        events.write("2026-11-02/cloud.jsonl", [cloud(1), cloud(2)])
        events.write("2026-11-02/own.jsonl", [event(3)])
        events.ingest()
        assert [name for (name,) in events.events()] == ["E3"]
    with loader({**CLOUD, "source": "file:**/cloud.jsonl"}) as events:
        assert collect_status(events.settings)["validated with another mapping"] == (
            "2 events received from 2026-11-02 to 2026-11-02 were validated with another mapping:"
            " run `retail-assets replay --start 2026-11-02 --end 2026-11-02`"
        )
        for day in event_days(events.connection, DAY, DAY):
            replay_day(events.session, day)
            assert check_day(events.session, day) == []
        assert [name for (name,) in events.events()] == ["C1", "C2", "E3"]
        assert "validated with another mapping" not in collect_status(events.settings)
    with loader() as events:
        found = mapping_ledger.outdated(events.connection, ())
        assert found is not None
        assert found.rows == 2


def test_another_mapping_is_known_whoever_ingests(loader: Any):
    """A worker that goes on with the mapping of its start is seen as well."""
    of_a = {"source": "a"}
    with loader({"fields": FIELDS} | of_a) as old, loader(CLOUD | of_a) as new:
        for number, each in enumerate([old, new, old, new, new]):
            each.write(f"2026-11-02/{number}.jsonl", [event(number)])
            each.ingest()
        for number, each in enumerate([old, new, old]):
            each.write(f"a/2026-11-02-{number}.jsonl", [cloud(number)])
            each.ingest([f"a/2026-11-02-{number}.jsonl"])
        mappings = new.settings.source_mapping.events
        outdated = mapping_ledger.outdated(new.connection, mappings)
    assert outdated is not None
    assert outdated.rows == 2


def test_events_that_only_got_other_products_are_still_of_their_mapping(loader: Any):
    of_a = {"source": "file:a/**"}
    with loader({"fields": {**FIELDS, "product_id": {"constant": "P1"}}} | of_a) as events:
        events.write("a/2026-11-02.jsonl", [json.dumps(ORDER)])
        events.ingest()
    with loader({"fields": FIELDS} | of_a) as events:
        events.write("b.jsonl", [event(2)])
        events.ingest()
        mappings = events.settings.source_mapping.events
        before = mapping_ledger.outdated(events.connection, mappings)
        product = (
            "SELECT 'P1' AS product_id, 'Kettle' AS product_name, 'Kitchen' AS product_category,"
        )
        rows = events.connection.sql(
            f"{product} 20::DECIMAL(12,2) AS unit_price_gbp, 5 AS stock_on_hand"
        )
        restate = partial(reference.restate, tables.PRODUCTS, events.lake, mappings=mappings)
        publish_table(
            events.lake,
            events.connection,
            tables.PRODUCTS,
            rows.to_arrow_table(),
            before_swap=restate,
        )
        assert events.rows("SELECT product_category FROM enriched_events ORDER BY 1") == [
            ("Kitchen",),
            ("Kitchen",),
        ]
        assert before is not None
        assert mapping_ledger.outdated(events.connection, mappings) == before


def test_a_lake_without_a_mapping_has_no_entry_of_one(loader: Any):
    with loader() as events:
        events.write("a.jsonl", [event(1)])
        events.ingest()
        assert events.rows("FROM event_mappings") == []
        assert mapping_ledger.outdated(events.connection, ()) is None


def test_a_dead_letter_is_redriven_by_the_mapping_of_its_source(loader: Any):
    mapping = {**CLOUD, "source": "cloud"}
    with loader(mapping) as events:
        events.write("cloud/a.jsonl", [cloud(1, data={**ORDER, "state": "SHIPPED"})])
        events.ingest()
        (letter,) = dead_letters.find(events.connection)
        (done,) = dead_letters.redrive(events.session, [letter["id"]], payload=cloud(1))
        assert done.outcome == "accepted"
        assert events.events("event_id, order_id, status") == [("C1", "1", "completed")]


def test_a_small_batch_and_a_large_one_are_read_alike(settings: Settings, loader: Any):
    """Small ones go through prepared statements, whose tables stay."""
    lines = [cloud(n, data={**ORDER, "order": n, "total": n - 5}) for n in range(3_000)]
    with loader(CLOUD) as events:
        events.write("large.jsonl", lines)
        events.ingest()
        large = events.rows(f"SELECT {COLUMNS} FROM enriched_events ORDER BY ALL")
    assert len(large) == 2_994
    with EventLoader.open(Settings(), cached=True) as events:
        events.write("small.jsonl", [line.replace('"id": "C', '"id": "D') for line in lines[:50]])
        events.ingest(["small.jsonl"])
        small = events.rows(
            f"SELECT {COLUMNS} FROM enriched_events WHERE source_name = 'small.jsonl' ORDER BY ALL"
        )
    assert small == [row for row in large if int(row[0]) < 50]


def test_every_session_of_the_package_reads_by_a_mapping():
    """A way in that makes a session without one would read events as if they were our own."""
    package = Path(mapping_ledger.__file__).parents[2]
    calls = [
        (path.name, node)
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("EventSession", "warm_session")
    ]
    assert len(calls) >= 8
    assert [name for name, call in calls if len(call.args) < 3] == []
