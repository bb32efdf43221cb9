"""Older API versions: what a request with an old `Stripe-Version`, or an old event, looks like.

Two majors differ here in what matters most to a copy: basil (2025-03-31) moved `current_period_*`
from the subscription to its items and took `subscription`, `charge` and `payment_intent` off the
invoice.
"""

from __future__ import annotations

import re
from typing import Any

from pinstripe_simulator.replies import StripeError

StripeObject = dict[str, Any]

ACACIA = "2025-02-24.acacia"
BASIL = "2025-03-31.basil"
# Previews are asked for behind the date: `2026-10-28.preview; some_beta=v1`.
_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z_]+)?(; ?[a-z0-9_]+=v\d+)*\Z")
_OUTDATED_BEFORE = "2024"


def known_version(version: str, newest: str) -> str:
    """`version`, or Stripe's 400 for what is none (yet), which has neither code nor log."""
    if not _VERSION.match(version) or version[:10] > newest[:10]:
        raise StripeError(400, f"Invalid Stripe API version: {version}", logged=False)
    return version


def notice(version: str) -> str:
    """`Stripe-Notice` (new in 2026) names outdated versions; "" for others. The words are ours."""
    if version[:4] >= _OUTDATED_BEFORE:
        return ""
    return f"API version {version[:10]} is outdated; upgrade to a current version."


def before_basil(version: str) -> bool:
    return version[:10] < BASIL[:10]


def rendered(found: StripeObject, version: str) -> StripeObject:
    """`found` (in the newest version) as `version` shows it, objects inside included."""
    return _old(found) if before_basil(version) else found


def _old(found: StripeObject) -> StripeObject:
    made: StripeObject = {k: _inner(v) for k, v in found.items()}
    if made.get("object") == "subscription":
        items = made.get("items", {}).get("data", [])
        for field in ("current_period_end", "current_period_start"):
            made[field] = next((i[field] for i in items if field in i), made.get("created"))
        made["items"]["data"] = [
            {k: v for k, v in i.items() if not k.startswith("current_period_")} for i in items
        ]
    elif made.get("object") == "invoice":
        parent = made.pop("parent", None) or {}
        details = parent.get("subscription_details") or {}
        made |= {"subscription": details.get("subscription"), "charge": None, "paid": False}
        made |= {"payment_intent": None, "paid": made.get("status") == "paid"}
    elif made.get("object") == "charge":
        made.setdefault("invoice", None)
    return made


def _inner(value: object) -> object:
    if isinstance(value, dict):
        return _old(value)
    if isinstance(value, list):
        return [_inner(v) for v in value]
    return value
