"""Generates `src/pinstripe/catalog/data/` from the source of the installed `stripe` package."""
