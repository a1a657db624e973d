"""Marts: tables of the lake in a database or a folder that other tools read."""
