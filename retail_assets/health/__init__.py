"""The state of the platform: what is pending, failed and behind, and one verdict on all of it."""
