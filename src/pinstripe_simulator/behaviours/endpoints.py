"""Webhook endpoints: a secret that is shown once, a limit to how many, a switch."""

from __future__ import annotations

from urllib.parse import urlsplit

from pinstripe_simulator.answers import Request
from pinstripe_simulator.behaviours.generic import create, taken_over, target
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.replies import refused
from pinstripe_simulator.table import StripeObject

_MOST = 16
"""Made while the simulator runs; those that it begins with are scenery."""


def create_endpoint(request: Request, ledger: Ledger) -> StripeObject:
    """The secret is shown once, in this answer, and kept by the account to sign with."""
    _check_url(request)
    secrets = request.account.webhook_secrets
    table = request.account.world.tables["webhook_endpoint"]
    alive = sum(not table.gone(at) for at in range(table.base, table.total))
    if alive >= _MOST:
        mode = "live" if request.account.doors.livemode else "test"
        raise refused(f"You have reached the maximum of {_MOST} {mode} webhook endpoints.")
    made = create(request, ledger, status="enabled")
    secret = f"whsec_{made['id'][-14:]}{ledger.now():x}"
    secrets[str(made["id"])] = secret
    if str(request.params.get("connect", "")).lower() == "true":
        request.account.connect_endpoints.add(str(made["id"]))
    return made | {"secret": secret}


def update_endpoint(request: Request, ledger: Ledger) -> StripeObject:
    """`disabled` is a switch, and shows as `status`."""
    if "url" in request.params:
        _check_url(request)
    found = target(request, ledger)
    changes = taken_over(ledger, request, found)
    if "disabled" in request.params:
        off = str(request.params["disabled"]).lower() == "true"
        changes = {**changes, "status": "disabled" if off else "enabled"}
    return ledger.change(found, changes, event="")


def _check_url(request: Request) -> None:
    url = str(request.params.get("url") or "")
    if urlsplit(url).scheme not in ("http", "https"):
        raise refused(
            "Invalid URL: An explicit scheme (such as https) must be provided.",
            code="url_invalid",
            param="url",
        )
    if request.account.doors.livemode and not url.startswith("https://"):
        raise refused("Invalid URL: URL must be HTTPS.", code="url_invalid", param="url")
