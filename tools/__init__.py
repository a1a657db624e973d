"""Shared by documentation, tests and benchmarks; no part of the package."""
