"""The parts of a Dagster instance: its event log and its run launcher."""
