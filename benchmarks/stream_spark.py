"""The worker's work in Spark Structured Streaming: topic to Parquet files, with a checkpoint.

Spark's own Kafka source is a jar that the Python package does not carry, so messages come through
a Python data source that hands over Arrow batches. The rules are SQL, and a batch is written by
`foreachBatch` to folders of its own, so that one which is done again replaces what it left. Spark
keeps the offsets in its checkpoint.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.functions import broadcast
from pyspark.sql.streaming.datasource import ReadLimit, SupportsTriggerAvailableNow

CORES = 2
WAIT_SECONDS = 30
COLUMNS = "value binary, partition int, offset bigint"

Offsets = dict[str, int]


class Range(InputPartition):  # type: ignore[misc]
    """The offsets of a partition that one task reads."""

    def __init__(self, partition: int, start: int, end: int) -> None:
        self.partition = partition
        self.start = start
        self.end = end


class Reader(DataSourceStreamReader, SupportsTriggerAvailableNow):  # type: ignore[misc]
    """Messages of a topic, from its start to what is there when a query begins."""

    def __init__(self, options: dict[str, str]) -> None:
        self._topic = options["topic"]
        self._settings = {
            "bootstrap.servers": options["bootstrap"],
            "group.id": options["group"],
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
        self._target: Offsets = {}
        self._found: dict[str, tuple[int, int]] = {}

    def initialOffset(self) -> Offsets:  # noqa: N802 - Spark's name
        """Where each partition starts."""
        return {name: low for name, (low, _) in self._watermarks().items()}

    def prepareForTriggerAvailableNow(self) -> None:  # noqa: N802 - Spark's name
        """Remember where the query is to end."""
        self._target = {name: high for name, (_, high) in self._watermarks().items()}

    def latestOffset(self, start: Offsets, limit: ReadLimit) -> Offsets:  # noqa: ARG002, N802
        """Where the query is to end: all in one batch, which is the fastest."""
        return self._target

    def partitions(self, start: Offsets, end: Offsets) -> list[InputPartition]:
        """A task for each partition of the topic."""
        return [
            Range(int(name), start.get(name, 0), last)
            for name, last in end.items()
            if last > start.get(name, 0)
        ]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Messages in batches; called in a worker."""
        consumer = Consumer(self._settings)
        consumer.assign([TopicPartition(self._topic, partition.partition, partition.start)])
        following = partition.start
        while following < partition.end:
            messages = consumer.consume(min(10_000, partition.end - following), WAIT_SECONDS)
            if not messages:
                raise RuntimeError(f"The broker sends nothing from offset {following} on.")
            for message in messages:
                if message.error() is not None:
                    raise RuntimeError(str(message.error()))
            following = messages[-1].offset() + 1
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array([message.value() for message in messages], pa.binary()),
                    pa.array([message.partition() for message in messages], pa.int32()),
                    pa.array([message.offset() for message in messages], pa.int64()),
                ],
                ["value", "partition", "offset"],
            )
        consumer.close()

    def _watermarks(self) -> dict[str, tuple[int, int]]:
        """The first and the next offset of each partition."""
        if not self._found:
            consumer = Consumer({**self._settings, "fetch.wait.max.ms": 10})
            topics = consumer.list_topics(self._topic, WAIT_SECONDS).topics
            for number in topics[self._topic].partitions:
                self._found[str(number)] = self._watermark(consumer, number)
            consumer.close()
        return self._found

    def _watermark(self, consumer: Consumer, number: int) -> tuple[int, int]:
        # The broker lists the start of its last batch as the end; what comes with it is right.
        partition = TopicPartition(self._topic, number)
        low, high = consumer.get_watermark_offsets(partition, WAIT_SECONDS)
        if high > low:
            consumer.assign([TopicPartition(self._topic, number, high - 1)])
            if consumer.poll(WAIT_SECONDS) is None:
                raise RuntimeError(f"The broker sends nothing of partition {number}.")
            _, high = consumer.get_watermark_offsets(partition, cached=True)
        return low, high


class Topic(DataSource):  # type: ignore[misc]
    """The topic as a source of a streaming query."""

    @classmethod
    def name(cls) -> str:
        """The name for `format`."""
        return "topic"

    def schema(self) -> str:
        """Columns of a message."""
        return COLUMNS

    def streamReader(self, schema: object) -> Reader:  # noqa: ARG002, N802 - Spark's name
        """The reader of a query."""
        return Reader(dict(self.options))


TEXTS = ("order_id", "customer_id", "region")
KNOWN = (
    *("order_id", "customer_id", "region", "event_id", "product_id", "status"),
    *("order_value_gbp", "quantity", "event_timestamp", "order_date"),
)
TYPE = "schema_of_variant(fields['{}'])"


def _reason() -> str:
    """Why a line is no event, in SQL; null where it is one."""
    cases = ["WHEN json IS NULL THEN 'not_json'", "WHEN fields IS NULL THEN 'not_an_object'"]
    for name in TEXTS:
        cases += [
            f"WHEN coalesce({TYPE.format(name)}, 'VOID') = 'VOID' THEN 'missing_field'",
            f"WHEN {TYPE.format(name)} <> 'STRING' THEN 'wrong_type'",
            f"WHEN trim({name}) = '' THEN 'blank_value'",
        ]
    kind = TYPE.format("order_value_gbp")
    cases += [
        f"WHEN coalesce({kind}, 'VOID') = 'VOID' THEN 'missing_field'",
        f"WHEN NOT {kind} RLIKE '^(BIGINT|DECIMAL|DOUBLE|FLOAT)' THEN 'wrong_type'",
        "WHEN order_value_gbp <= 0 THEN 'not_positive'",
        (
            "WHEN fields['status'] IS NOT NULL AND coalesce(status, '') NOT IN ('completed',"
            " 'pending', 'cancelled', 'returned', 'refunded') THEN 'unknown_status'"
        ),
        (
            "WHEN fields['event_timestamp'] IS NOT NULL AND ordered_at IS NULL"
            " THEN 'invalid_timestamp'"
        ),
        "WHEN year(ordered_at) NOT BETWEEN 2000 AND 2100 THEN 'absurd_timestamp'",
    ]
    return f"CASE {' '.join(cases)} END AS reason"


def validated(messages: DataFrame) -> DataFrame:
    """Each line with its fields, and the reason why it is no event."""

    def text(name: str) -> str:
        return f"try_variant_get(fields['{name}'], '$', 'string') AS {name}"

    known = ", ".join(f"'{name}'" for name in KNOWN)
    return (
        messages.selectExpr("partition", "offset", "CAST(value AS string) AS payload")
        .selectExpr("*", "try_parse_json(payload) AS json")
        .selectExpr("*", "try_variant_get(json, '$', 'map<string, variant>') AS fields")
        .selectExpr(
            "*",
            *(text(name) for name in (*TEXTS, "event_id", "product_id", "status")),
            "try_variant_get(fields['order_value_gbp'], '$', 'double') AS order_value_gbp",
            "try_variant_get(fields['quantity'], '$', 'bigint') AS quantity",
            "try_to_timestamp(try_variant_get(fields['event_timestamp'], '$', 'string'))"
            " AS ordered_at",
        )
        .selectExpr(
            *("partition", "offset", "payload", _reason(), *TEXTS, "event_id", "product_id"),
            *("status", "order_value_gbp", "quantity", "ordered_at"),
            "coalesce(event_id, sha2(to_json(json), 256)) AS identity",
            f"to_json(map_filter(fields, (name, _) -> name NOT IN ({known}))) AS extra",
        )
    )


def enriched(events: DataFrame, products: DataFrame, customers: DataFrame) -> DataFrame:
    """Valid events with the attributes of their product and customer."""
    return (
        events.join(broadcast(products), "product_id", "left")
        .join(broadcast(customers), "customer_id", "left")
        .selectExpr(
            *("identity", "event_id", "order_id", "customer_id", "product_id", "region", "status"),
            *("order_value_gbp", "quantity", "ordered_at", "to_date(ordered_at) AS order_date"),
            "CASE WHEN order_value_gbp >= 500 THEN 'high' WHEN order_value_gbp >= 100 THEN 'mid'"
            " ELSE 'low' END AS value_tier",
            "coalesce(product_name, 'unknown') AS product_name",
            "coalesce(product_category, 'unknown') AS product_category",
            "coalesce(customer_segment, 'unknown') AS customer_segment",
            "coalesce(home_region, 'unknown') AS home_region",
            "extra",
        )
    )


def session() -> SparkSession:
    """Spark on this machine, its Python workers started."""
    # Workers import this module to unpickle the source.
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(f"local[{CORES}]")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", str(CORES))
        .config("spark.sql.session.timeZone", "Europe/London")
        .config("spark.sql.streaming.metricsEnabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    spark.sparkContext.parallelize(range(CORES), CORES).map(str).count()
    return spark


class Sink:
    """Writes a batch as Parquet: all lines, dead letters, and enriched events."""

    def __init__(self, spark: SparkSession, reference: Path, out: Path, *, unique: bool) -> None:
        self._spark = spark
        self._out = out
        self._unique = unique
        self._products, self._customers = (
            spark.read.csv(str(reference / f"{name}.csv"), header=True).cache()
            for name in ("products", "customers")
        )

    def __call__(self, batch: DataFrame, number: int) -> None:
        """Write the batch of a query, or write it again."""
        folder = f"batch={number:06}"
        lines = batch.persist(StorageLevel.MEMORY_AND_DISK)
        place = lines.select("partition", "offset", "payload", "reason")
        place.drop("reason").write.mode("overwrite").parquet(str(self._out / "raw" / folder))
        dead = place.filter("reason IS NOT NULL")
        dead.write.mode("overwrite").parquet(str(self._out / "dead" / folder))
        events = lines.filter("reason IS NULL")
        if self._unique:
            events = self._without_known(events.dropDuplicates(["identity"]), folder)
        enriched(events, self._products, self._customers).write.mode("overwrite").parquet(
            str(self._out / "events" / folder)
        )
        lines.unpersist()

    def _without_known(self, events: DataFrame, folder: str) -> DataFrame:
        earlier = (self._out / "events").glob("batch=*")
        before = [str(path) for path in earlier if path.name < folder]
        if not before:
            return events
        known = self._spark.read.parquet(*before).select("identity")
        return events.join(known, "identity", "left_anti")


def run(bootstrap: str, topic: str, data: Path, out: Path, *, unique: bool) -> dict[str, float]:
    """Take the whole topic; seconds are those of the batches, without the start of the query."""
    spark = session()
    spark.dataSource.register(Topic)
    _warm_up(spark, data, out / "warm", unique=unique)
    messages = (
        spark.readStream.format("topic")
        .option("bootstrap", bootstrap)
        .option("topic", topic)
        .option("group", f"spark-{uuid4()}")
        .load()
    )
    sink = Sink(spark, data / "reference", out, unique=unique)
    query = (
        validated(messages)
        .writeStream.foreachBatch(sink)
        .option("checkpointLocation", str(out / "checkpoint"))
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination()
    seconds = sum(each["durationMs"]["triggerExecution"] for each in query.recentProgress) / 1000
    peak = _peak_mb()
    spark.stop()
    return {"seconds": seconds, "peak_mb": peak}


def _warm_up(spark: SparkSession, data: Path, out: Path, *, unique: bool) -> None:
    """Do the same work on some lines, so that its code is compiled as in a resident job."""
    (path,) = (data / "events").glob("*/*.jsonl")
    with path.open("rb") as file:
        rows = [(line, 0, number) for number, line in enumerate(islice(file, 2000))]
    batch = spark.createDataFrame(rows, COLUMNS)
    Sink(spark, data / "reference", out, unique=unique)(validated(batch), 0)
    shutil.rmtree(out)


def _peak_mb() -> float:
    """The sum of the largest resident sizes of this process and all that it started."""
    parents = {}
    peaks = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
        except (OSError, ValueError):
            continue
        number = int(path.parent.name)
        parents[number] = int(fields["PPid"])
        peaks[number] = int(fields.get("VmHWM", "0 kB").split()[0]) / 1024
    mine = {os.getpid()}
    while grown := {number for number, parent in parents.items() if parent in mine} - mine:
        mine |= grown
    return sum(peaks[number] for number in mine)
