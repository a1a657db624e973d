"""Order exports and reference data: files into tables, day by day."""
