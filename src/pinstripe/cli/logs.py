"""Where log lines go and how they look: stderr, one line each, without secrets."""

from __future__ import annotations

import logging
import sys

import structlog

from pinstripe.config import Config
from pinstripe.errors import redact


def configure(config: Config) -> None:
    """Once, before anything logs."""
    level = logging.getLevelNamesMapping()[config.log_level.upper()]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(default=str)
        if config.log_json
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
            _without_secrets,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_to_stderr,
        # Not cached: the progress display takes stderr over for a while.
        cache_logger_on_first_use=False,
    )


def _to_stderr(*_: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def _without_secrets(
    _: object, __: str, line: structlog.typing.EventDict | str
) -> structlog.typing.EventDict | str:
    return redact(line) if isinstance(line, str) else line
