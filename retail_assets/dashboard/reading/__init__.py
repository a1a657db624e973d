"""What the board shows, read from the lake: pure functions of a read-only connection, no page.

A page costs what its days have, never what the history has.
"""
