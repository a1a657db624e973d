"""Side-by-side measurements of the batch lane, run by hand with `make bench`; never a timed test."""
