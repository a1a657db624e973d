"""Side-by-side measurements of the batch lane, run by hand: `make bench`; never a timed test."""
