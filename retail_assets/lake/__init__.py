"""The warehouse: connect, transaction and lock, stage/audit/publish, the I/O manager, upkeep.

Knows tables and days; knows nothing of orders.
"""
