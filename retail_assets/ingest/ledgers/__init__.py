"""Ledgers: what was ingested, how far, and by whom; written in the transaction of the rows."""
