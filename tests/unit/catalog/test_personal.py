"""The review of personal data, held against every field of the catalog, and the settings that use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.personal import UNREVIEWED, Policy, is_free_text, kind_at, kinds, review
from pinstripe.errors import Misconfigured


def texts() -> Iterator[tuple[str, tuple[str, ...]]]:
    """(object name, path) of every field that can hold any text."""
    for object_type in object_types().values():
        yield from _texts(object_type.name, object_type.fields, ())


def _texts(
    name: str, fields: tuple[Field, ...], above: tuple[str, ...]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for part in fields:
        here = (*above, part.name)
        if is_free_text(part) and part.kind != "any":
            yield name, here
        yield from _texts(name, part.fields, here)
        if part.items is not None:
            yield from _texts(name, part.items.fields, here)


def test_every_text_of_the_catalog_is_reviewed() -> None:
    missing = {
        f"{name}.{'.'.join(path)}"
        for name, path in texts()
        if (kind_at(name, path) or ("",))[0] == UNREVIEWED
    }
    assert not missing, "Add these names to data/personal.toml, with a kind or as harmless"


def test_no_name_is_of_two_kinds_and_every_type_exists() -> None:
    lists = [kind.names for kind in review().kinds.values()]
    names = [name for named in (*lists, review().harmless.names) for name in named]
    assert len(names) == len(set(names)), {n for n in names if names.count(n) > 1}
    assert set(review().types.names) <= set(object_types())
    assert set(review().places.values()) <= {*kinds(), "harmless"}


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("customer.email", "email"),
        ("customer.address.city", "address"),
        ("charge.billing_details.name", "name"),
        ("charge.receipt_email", "email"),
        ("charge.payment_method_details.card.last4", "bank"),
        ("charge.receipt_url", "link"),
        ("checkout.session.customer_details.tax_ids", "tax_id"),
        ("dispute.evidence.customer_purchase_ip", "text"),
        ("invoice.customer_address.country", "address"),
        ("invoice.customer_name", "name"),
        ("person.dob.day", "birth"),
        ("review.ip_address", "ip"),
        ("subscription.metadata", "text"),
        ("tax_id.value", "text"),
        ("charge.something_new", UNREVIEWED),
        ("charge.currency", None),
        ("charge.status", None),
        ("customer.id", None),
        ("invoice.number", None),
        ("product.description", None),
        ("tax.calculation.tax_breakdown.tax_rate_details.display_name", None),
    ],
)
def test_known_places_have_the_kind_that_a_reader_expects(place: str, kind: str | None) -> None:
    name = next(n for n in sorted(object_types(), reverse=True) if place.startswith(f"{n}."))
    found = kind_at(name, tuple(place.removeprefix(f"{name}.").split(".")))
    assert (found[0] if found else None) == kind


def test_a_later_word_is_an_exception_from_an_earlier_one() -> None:
    policy = Policy.parse(
        personal_data=("drop", "keep:text", "hash:email"),
        columns=("-charge.description", "hash:*.receipt_email", "keep:customer.name"),
    )
    assert policy.action("customer", ("email",)) == "hash"
    assert policy.action("customer", ("name",)) == "keep"
    assert policy.action("charge", ("metadata",)) == "keep"
    assert policy.action("charge", ("description",)) == "drop"
    assert policy.action("charge", ("billing_details", "phone")) == "drop"
    assert policy.hashes
    assert not policy.keeps_all


@pytest.mark.parametrize(
    ("personal_data", "columns", "says"),
    [
        (("shred",), (), "shred"),
        (("drop:nothing",), (), "drop:nothing"),
        ((), ("customer.email",), "customer.email"),
        ((), ("-customer.emial",), "customer.emial"),
        ((), ("-customer.id",), "customer.id"),
        ((), ("hash:charge.customer_id",), "charge.customer_id"),
    ],
)
def test_a_word_that_means_nothing_is_named(
    personal_data: tuple[str, ...], columns: tuple[str, ...], says: str
) -> None:
    with pytest.raises(Misconfigured, match=says):
        Policy.parse(personal_data=personal_data, columns=columns)


def test_only_a_policy_that_keeps_more_is_looser() -> None:
    keep, drop = Policy.everything("keep"), Policy.everything("drop")
    hashed = Policy.parse(personal_data=("keep",), columns=("hash:customer.email",))
    assert keep.is_looser_than(drop)
    assert not drop.is_looser_than(keep)
    assert keep.is_looser_than(hashed)
    assert not hashed.is_looser_than(keep)
    assert not keep.is_looser_than(keep)
