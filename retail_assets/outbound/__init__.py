"""Outgoing data: messages to Kafka, and notifications to people."""
