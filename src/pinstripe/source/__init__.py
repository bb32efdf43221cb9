"""One account at Stripe and its mirror; see `source.account`."""
