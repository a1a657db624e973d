"""Dagster's view of the platform: assets, checks and metadata. No rule is written here."""
