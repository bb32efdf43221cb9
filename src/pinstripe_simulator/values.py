"""What stands in a field: plausible values by name, and hostile ones on purpose.

One function a kind, each a pure function of (path, variant), so that an account is the same each
time it is made. The hostile values are what breaks copies of Stripe: quotes, NUL, right-to-left
text, amounts beyond 32 bits, currencies without decimals.
"""

from __future__ import annotations

from zlib import crc32

from pinstripe.catalog.model import Field

HOSTILE = (
    'O\'Brien "Bob" \\ & Söhne',
    "Zażółć gęślą 🦓🧾 café",
    "שלום — مرحبا \u202eevil\u202c",
    "<script>alert('x')</script>",
    "tab\tnew\nline\r\n end ",
    "'; DROP TABLE charge; --",
    "%s {0} $1 \\u0041 \\N null",
    "名前" * 40,
    "x" * 1500,
    "Ada Lovelace",
    "Grace Hopper",
    "  leading and trailing  ",
    "NaN",
    "1e400",
    "true",
    "{a,b}",
)
"""Names and descriptions, one a variant."""

_METADATA: tuple[dict[str, str], ...] = (
    {},
    {"order_id": "6735"},
    {"nul": "before\x00after", "plan": "gold"},
    {'quo"te': "it's", "back\\slash": "\\"},
    {"emoji 🦓": "👩‍👩‍👧", "rtl": "مرحبا"},
    {"empty": "", "space": " "},
    {"json": '{"a": [1, 2, {"b": null}]}', "html": "<b>&amp;</b>"},
    {"long": "y" * 500},
    {"__proto__": "x", "id": "not_an_id", "object": "customer", "deleted": "true"},
    {"line\nbreak": "a\tb\r\nc", "dollar$": "$$"},
    {f"key_{n}": str(n) for n in range(50)},
    {"big": "9" * 40},
    {"surrogate": "\U0001f600\U0010ffff"},
    {"A": "upper", "a": "lower"},
    {},
    {"note": "last"},
)

CURRENCIES = ("usd", "eur", "gbp", "jpy", "usd", "kwd", "usd", "krw")
_DECIMALS = ("1000", "12.5", "0.000000000001", "33.333333333333", "-7.25", "99999999999999.99")
_COUNTRIES = ("US", "DE", "JP", "GB", "IE", "BR")

_EXACT = {
    "country": _COUNTRIES,
    "state": ("CA", "BE", "", "NY"),
    "city": ("San Francisco", "München", "大阪市", "Dún Laoghaire"),
    "line1": ("1 Main St", 'Straße "7"', "中央区1-2-3"),
    "line2": ("Apt \\4", "c/o O'Neil"),
    "postal_code": ("94102", "80331", "541-0041"),
    "last4": ("4242", "0005", "0000", "1117"),
    "brand": ("visa", "mastercard", "amex"),
    "display_brand": ("visa", "mastercard"),
    "funding": ("credit", "debit", "prepaid"),
    "network": ("visa", "mastercard"),
    "interval": ("month", "year", "week", "day"),
    "timezone": ("Etc/UTC",),
    "ip_address": ("203.0.113.7", "2001:db8::1"),
    "user_agent": ("Mozilla/5.0 (X11; Linux x86_64)",),
    "code": ("SAVE20", "été-2026", "A B"),
    "api_version": ("2026-10-28.endive",),
    "default_currency": CURRENCIES,
}
_SUFFIX = {
    "email": ("ada@example.com", "o'hara+tag@example.org", "用户@example.com", "UPPER@EXAMPLE.COM"),
    "phone": ("+15555550100", "+49 89 1234567"),
    "url": ("https://example.com/a?b=c&d=%20", "https://example.com/é"),
    "currency": CURRENCIES,
    "country": _COUNTRIES,
    "descriptor": ("PINSTRIPE* TEST", "A<B>'C"),
    "secret": ("secret_hidden",),
    "token": ("tok_placeholder",),
}


def pick(path: str, variant: int, size: int) -> int:
    """A dice that always falls the same way: 0 <= result < size."""
    return crc32(f"{path}#{variant}".encode()) % size


def text(field: Field, path: str, variant: int) -> str:
    """A string for a field of kind "string"."""
    if field.enum:
        return field.enum[(variant + crc32(path.encode())) % len(field.enum)]
    name = field.name
    if name in _EXACT:
        return _EXACT[name][variant % len(_EXACT[name])]
    if name in ("name", "description", "nickname", "memo", "title", "reason", "message"):
        return HOSTILE[variant % len(HOSTILE)]
    for suffix, choices in _SUFFIX.items():
        if name.endswith(suffix):
            return choices[variant % len(choices)]
    return f"{name}_{pick(path, variant, 900) + 100}"


def metadata(variant: int) -> dict[str, str]:
    return dict(_METADATA[variant % len(_METADATA)])


def decimal(variant: int) -> str:
    return _DECIMALS[variant % len(_DECIMALS)]


def number(path: str, variant: int) -> float:
    return (0.5, 20.0, 8.875, 0.1, 1e-7, 12345678.9)[pick(path, variant, 6)]


def integer(name: str, path: str, variant: int) -> int:
    """A whole number that is not an amount of money (those differ from object to object)."""
    if name == "exp_month":
        return 1 + variant % 12
    if name == "exp_year":
        return 2027 + variant % 9
    if name in ("quantity", "interval_count", "attempt_count"):
        return 1 + variant % 3
    if name in ("day", "day_of_month"):
        return 1 + variant % 28
    if name == "month":
        return 1 + variant % 12
    if name == "year":
        return 1960 + variant
    return pick(path, variant, 100)


_AMOUNT_WORDS = ("amount", "total", "subtotal", "net", "balance", "gross", "fee")


def is_amount(name: str) -> bool:
    """Whether a field of kind "integer" holds money."""
    return any(word in _AMOUNT_WORDS for word in name.split("_")) and "percent" not in name


_LATER = {"expires_at": 2_592_000, "available_on": 172_800, "arrival_date": 172_800}
_ENDS = ("_end", "end", "due_date", "due_by", "_until", "ends_at", "period_end")


def time_offset(name: str) -> int:
    """Seconds after the object's own `created`; few different ones, each costs rendering time."""
    if name in _LATER:
        return _LATER[name]
    if name.endswith(_ENDS):
        return 2_592_000
    if name in ("created", "date", "start", "start_date", "effective_at") or "start" in name:
        return 0
    return 60
