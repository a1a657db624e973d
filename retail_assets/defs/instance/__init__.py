"""What an instance of Dagster is made of: its event log and its run launcher."""
