"""A Kafka topic as a source of the worker."""
