"""What the rows of a first copy say of references without a row."""

from __future__ import annotations

from pinstripe.catalog.tables import tables
from pinstripe.client.response import StripeObject
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.sync.backfill.references import Mentions, columns_by_target


def test_only_tables_that_mention_an_id_without_a_row_are_looked_at() -> None:
    mentions = Mentions(columns_by_target(tables()))
    rows = RowSet()
    extractor = Extractor()
    objects: list[StripeObject] = [
        {"id": "cus_1", "object": "customer"},
        {"id": "ch_1", "object": "charge", "customer": "cus_1", "invoice": None},
        {"id": "pi_1", "object": "payment_intent", "customer": "cus_hidden"},
        {"id": "txn_1", "object": "balance_transaction", "source": "ch_1"},
    ]
    for obj in objects:
        extractor.object(obj, rows)
    mentions.add(rows)
    read = {"charge", "payment_intent", "balance_transaction"}
    assert mentions.referring("customer", read) == {"payment_intent"}
    assert mentions.referring("price", read) == set()


def test_beyond_what_memory_holds_every_table_is_looked_at() -> None:
    mentions = Mentions(columns_by_target(tables()), most=1)
    rows = RowSet()
    Extractor().object({"id": "cus_1", "object": "customer"}, rows)
    mentions.add(rows)
    assert mentions.referring("price", {"plan"}) == {"plan"}
