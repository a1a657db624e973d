"""Repair: events validated again by today's rules, or corrected by hand."""
