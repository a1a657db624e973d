"""What a Kafka source says when it cannot work, before and while it does."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError

from retail_assets.errors import RetailAssetsError, UsageError
from retail_assets.settings import Settings, load_settings
from retail_assets.worker.sources.kafka import client as kafka_client
from retail_assets_tests.worker.sources.kafka.kafka_topics import Topic, reading, topic_of
from tools.broker import Broker, running_broker
from tools.ports import free_port


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


def refusal(topic: Topic, settings: Settings) -> str:
    with pytest.raises(RetailAssetsError) as refused, reading(topic.source(settings)):
        pass
    return str(refused.value)


def with_options(settings: Settings, **options: Any) -> Settings:
    dotted = {name.replace("_", "."): value for name, value in options.items()}
    return settings.model_copy(update={"kafka_options": dotted})


@pytest.mark.processes
def test_a_broker_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_client, "ANSWER_SECONDS", 1)
    address = f"127.0.0.1:{free_port()}"

    assert refusal(Topic(address, "orders"), settings) == (
        f"No Kafka broker answers at {address}: start it, or correct the address."
    )


@pytest.mark.processes
def test_a_topic_that_is_not_there(broker: Broker, settings: Settings) -> None:
    assert refusal(Topic(broker.bootstrap, "absent"), settings) == (
        f"There is no Kafka topic absent at {broker.bootstrap}: create it, or correct its name."
    )


@pytest.mark.processes
def test_credentials_that_the_broker_does_not_take(
    broker: Broker,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka_client, "ANSWER_SECONDS", 1)
    caplog.set_level(logging.CRITICAL)
    topic = topic_of(broker, "closed")
    login = with_options(
        settings,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="shop",
        sasl_password="hunter2",  # noqa: S106
    )

    assert refusal(topic, login) == (
        f"The Kafka broker at {broker.bootstrap} does not accept this worker's credentials:"
        " correct RETAIL_KAFKA_OPTIONS."
    )


@pytest.mark.parametrize("name", ["", "^orders.*", "orders/new", "a" * 250])
def test_names_that_cannot_be_topics(name: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a Kafka topic"):
        Topic("127.0.0.1:9092", name).source(settings)


def test_options_that_the_worker_depends_on_cannot_be_set(settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"cannot set auto\.offset\.reset, group\.id:"):
        Topic("127.0.0.1:9092", "orders").source(
            with_options(settings, group_id="other", auto_offset_reset="latest")
        )


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "value"), [("sasl.pasword", "hunter2"), ("security.protocol", "hunter2")]
)
def test_an_option_that_librdkafka_does_not_take_is_named_without_its_value(
    name: str, value: str, broker: Broker, settings: Settings
) -> None:
    wrong = settings.model_copy(update={"kafka_options": {name: value}})

    assert refusal(Topic(broker.bootstrap, "orders"), wrong) == (
        f"RETAIL_KAFKA_OPTIONS: librdkafka does not take the option {name}: correct it there."
    )


def test_no_secret_is_in_a_sentence_or_a_repr(settings: Settings) -> None:
    topic = kafka_client.Topic(
        "127.0.0.1:9092", "orders", "workers", {"sasl.password": "hunter2", "client.id": "shop"}
    )
    error = KafkaError(KafkaError.INVALID_CONFIG, "shop said hunter2")

    assert topic.sentence(error) == ("Kafka at 127.0.0.1:9092, topic orders: shop said •••.")
    assert "hunter2" not in repr(topic)
    secret = with_options(settings, sasl_password="hunter2")  # noqa: S106
    assert "hunter2" not in repr(secret)
    assert "hunter2" not in str(secret)


def test_options_are_numbers_texts_and_truth_values(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "RETAIL_KAFKA_OPTIONS", '{"client.id": "shop", "fetch.wait.max.ms": 9, "log.queue": true}'
    )

    options = load_settings().kafka_options

    assert options == {"client.id": "shop", "fetch.wait.max.ms": 9, "log.queue": True}
    kafka_client.Topic("127.0.0.1:9092", "orders", "workers", options).consumer().close()


@pytest.mark.parametrize("value", ["hunter2", '["hunter2"]', '{"sasl.password": ["hunter2"]}'])
def test_options_that_are_no_json_object_of_values_are_not_shown(
    value: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIL_KAFKA_OPTIONS", value)

    with pytest.raises(UsageError, match="RETAIL_KAFKA_OPTIONS cannot be used") as refused:
        load_settings()

    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None
