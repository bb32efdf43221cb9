"""Pure: any Stripe object becomes the rows that hold it (see `extract`)."""
