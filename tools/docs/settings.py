"""The page of settings, from the one table that flags and environment names are made from too."""

from __future__ import annotations

from pinstripe.config.settings import SETTINGS, Setting
from tools.docs.markdown import code, table


def settings_page() -> str:
    """`docs/reference/settings.md`."""
    rows = [(code(s.flag), code(s.env), _default(s), s.unit, s.help) for s in SETTINGS]
    return "\n".join(
        (
            "# Settings",
            "",
            "Each can be a flag or an environment variable; a flag wins. Nothing is read from files.",
            "",
            table(("Flag", "Environment", "Default", "Unit", "What it does"), rows),
        )
    )


def _default(setting: Setting) -> str:
    if setting.switch:
        return "off"
    return code(setting.default) if setting.default else "none"
