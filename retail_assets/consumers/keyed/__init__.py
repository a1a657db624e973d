"""Consumers on keyed state: a copy by key of what they read, so that a round follows its batch."""
