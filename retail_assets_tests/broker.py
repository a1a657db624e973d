"""The old path of `tools.broker`."""

from tools.broker import Broker, running_broker

__all__ = ["Broker", "running_broker"]
