"""Dagster's view of the platform, the only room that imports Dagster. No rule is written here."""
