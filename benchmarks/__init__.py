"""What `make bench` runs; not shipped."""
