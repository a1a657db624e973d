"""Telling people of alerts and failures: what to say, the outbox in the lake, and sending."""
