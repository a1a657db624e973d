"""The shop's database into order exports and reference files, which are ingested from there."""
