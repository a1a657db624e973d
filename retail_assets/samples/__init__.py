"""Data to try the platform on: a generator, and an importer of real grocery data."""
