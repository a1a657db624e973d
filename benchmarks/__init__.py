"""Side-by-side measurements, run by hand: `make bench`; never a timed test."""
