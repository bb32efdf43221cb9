"""How the process that syncs and the gateway share what Stripe allows one account.

Both ask Stripe with the same key, and neither sees the other's requests. The gateway gets half of the
configured rate on top of it, where that stays within what Stripe allows; where it would not, a fifth,
taken from the process that syncs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pinstripe.client.key import ApiKey
from pinstripe.config import ACCOUNT_CEILING, ENDPOINT_CEILING, Config, Rate

_ON_TOP = 0.5
_AT_LEAST = 0.2


@dataclass(frozen=True, slots=True)
class Shares:
    """The settings of each side; they differ in their rates only."""

    worker: Config
    gateway: Config


def shared(config: Config, key: ApiKey) -> Shares:
    """`config`, for both."""
    account, endpoint = config.rates(key.mode)
    # Half of what Stripe allows is the default: so this is what it allows in this mode.
    of_mode, _ = replace(config, rate_limit="default").rates(key.mode)
    ceiling = min(2 * (of_mode or ACCOUNT_CEILING), ACCOUNT_CEILING)
    worker_account, gateway_account = _split(account, ceiling)
    worker_endpoint, gateway_endpoint = _split(endpoint, ENDPOINT_CEILING)
    return Shares(
        replace(config, rate_limit=worker_account, endpoint_rate_limit=worker_endpoint),
        replace(config, rate_limit=gateway_account, endpoint_rate_limit=gateway_endpoint),
    )


def _split(rate: float | None, ceiling: float) -> tuple[Rate, Rate]:
    """(worker, gateway).

    >>> _split(12.5, 25.0), _split(25.0, 25.0), _split(None, 25.0)
    ((12.5, 6.25), (20.0, 5.0), ('none', 'none'))
    """
    if rate is None:
        return "none", "none"
    ceiling = max(ceiling, rate)
    gateway = max(_AT_LEAST * rate, min(_ON_TOP * rate, ceiling - rate))
    return min(rate, ceiling - gateway), gateway
