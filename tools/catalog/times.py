"""Which integers are Unix times, and which strings of v2 are RFC 3339 times.

The SDK types them as plain `int` and `str`. We tell them by name, and every name that looks like a time or
whose text speaks of one must stand in one of these lists, so that a new SDK cannot slip one past us.
"""

from __future__ import annotations

import re

from tools.catalog.source import UnknownShape

# Names that are Unix seconds wherever they occur as an integer.
TIMES = frozenset(
    """
    accepted_at active_from arrival_date as_of automatically_finalizes_at available_on billed_until
    billing_cycle_anchor cancel_at canceled_at capture_before charge_attempt_at check_in_at
    completed_at completes_at computed_timestamp confirmed_at created created_at current_deadline
    current_period_end current_period_start data_available_end data_available_start data_load_time
    date deactivated_at deadline delayed_at deletes_after delivered_at departure_at disabled_at due_by
    due_date effective_at effective_date email_sent_at end end_date end_time ended_at eta evaluated_at
    expected_arrival_date expected_at expected_availability_date expected_deactivation_date
    expected_expiry_date expires expires_after expires_at expires_on failed_at finalized_at
    frozen_time interval_end interval_start last_attempted_at marked_uncollectible_at
    network_updated_at next_payment_attempt next_pending_invoice_item_invoice
    next_refresh_available_at occurred_at paid_at pause_at period_end period_start posted_at
    product_substituted_at received_at redeem_by refreshed_at release_after released_at requested_at
    result_available_until resume_at resumes_at returned_at scheduled_release shipped_at start
    start_date start_time started_at stored_at subscription_proration_date succeeded_at
    target_frozen_time tax_date timestamp transacted_at transitioned_at trial_end trial_start
    updated updated_at void_at voided_at webhooks_delivered_at
    """.split()  # noqa: SIM905 - reads better as a block
)

# Milliseconds (the property's text says so).
MILLISECONDS = frozenset({"terminal.reader.last_seen_at"})

# Look like times by name or text, and are not: counts, amounts, durations, hours of the day.
NOT_TIMES = frozenset(
    """
    amount amount_charged amount_due days_until_due destination_duration divide_by end_hour
    ending_balance expires_after_days expires_after_seconds fee inbound_pending interval_count
    merchant_amount next_invoice_sequence next_sequence payment_count payments_per_period quantity
    start_hour timezone_offset transfer_up_to_amount trial_period_days version
    """.split()  # noqa: SIM905 - reads better as a block
)

# RFC 3339 in v2 objects.
ISO_TIMES = frozenset(
    """
    acknowledged_at canceled_at consumed_at created date effective_at expires expires_at failed_at
    lock_expires_at minimum_transition_date posted_at processing_at requires_action_at returned_at
    succeeded_at time timestamp updated url_expires_at void_at
    """.split()  # noqa: SIM905 - reads better as a block
)

# Strings of v2 that look like times and are not: days, hours of the day, names.
NOT_ISO_TIMES = frozenset(
    "end_time events_from execute_on expected_arrival_date fiscal_year_end start_time".split()  # noqa: SIM905
)

_LOOKS = re.compile(
    r"(_at|_on|_date|_time|_start|_end|_until|_since|_from|_after|_before|_by|_timestamp|time|due)$"
    r"|^(created|updated|date|start|end|expires|timestamp|deadline|eta|as_of)$"
)
_SPEAKS = re.compile(r"epoch|timestamp|\btime\b|\bdate\b", re.IGNORECASE)
_SPEAKS_ISO = re.compile(r"timestamp|RFC ?3339|ISO 8601", re.IGNORECASE)


def integer_kind(owner: str, name: str, doc: str) -> str:
    """Gives "time", "time_ms" or "integer" for the integer `name` of object `owner`.

    Raises UnknownShape where name or text suggests a time and no list decides.
    """
    if f"{owner}.{name}" in MILLISECONDS:
        return "time_ms"
    if name in TIMES:
        return "time"
    if name not in NOT_TIMES and (_LOOKS.search(name) or _SPEAKS.search(doc)):
        raise UnknownShape(
            f"{owner}.{name}: is it a time? Its text: {doc!r}. Add it to tools/catalog/times.py"
        )
    return "integer"


def string_kind(owner: str, name: str, doc: str) -> str:
    """Gives "time_iso" or "string" for the string `name` of object `owner`; only v2 has such times.

    Raises UnknownShape where name or text suggests a time and no list decides.
    """
    if not owner.startswith("v2."):
        return "string"
    if name in ISO_TIMES:
        return "time_iso"
    if name not in NOT_ISO_TIMES and (_LOOKS.search(name) or _SPEAKS_ISO.search(doc)):
        raise UnknownShape(
            f"{owner}.{name}: is it a time? Its text: {doc!r}. Add it to tools/catalog/times.py"
        )
    return "string"
