"""Writes: what each POST and DELETE does to the account.

`generic` does what the catalog's types alone can tell; the modules beside it behave as Stripe does
for the core of billing and payments. `registry.write` picks.
"""
