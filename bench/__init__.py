"""The measurements of `make bench`, `make bench-import` and `make bench-reaper`."""
