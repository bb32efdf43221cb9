"""How a command gets its settings and runs: flags, event loop, logs, signals, errors, exit code, memory.

An error is printed as one message with its remedy and mapped to its exit code. Log lines go to stderr, one
line each, without secrets. The first Ctrl-C or SIGTERM shuts down in order, the second one immediately.

Decoded pages are hundreds of thousands of small acyclic objects a second, in bodies of hundreds of KB. With
default settings the cycle collector takes an eighth of all CPU to scan them, and freed bodies leave holes
that grow the process by tens of MB; so collector and allocators are tuned for it.

    @with_settings("schema", "data_dir")
    def status(config: Config, *, exact: bool = False) -> None: ...

Such a command gets a `Config`; the command line shows its own parameters and those of the table of
settings, each with the name of its environment variable.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Annotated, TypeVar, get_type_hints

import structlog
from cyclopts import Group, Parameter

from pinstripe.config.config import Config, read_config
from pinstripe.config.settings import SETTINGS, Setting
from pinstripe.errors import PinstripeError, redact

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)


class Exit(Exception):
    """The command is over, and not with 0. Raised through cyclopts to `main`."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def execute(config: Config, work: Coroutine[object, object, int], *, stopped: int = 130) -> None:
    """Runs `work` to its end, or until a signal; `stopped` is the exit code then (130: as after Ctrl-C)."""
    configure(config)
    set_allocators()
    try:
        code = _runner()(until_told(work))
    except Stopped:
        code = stopped
    if code:
        raise Exit(code)


def _runner() -> Callable[[Coroutine[object, object, int]], int]:
    try:
        import uvloop
    except ImportError:  # no wheel for this platform: asyncio's own loop does it, slower
        return asyncio.run
    return uvloop.run


UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: a mistake of ours, not of the user's."""

BAD_USAGE = 2


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Print `error` to stderr, with `as_json` to stdout too, and return the exit code."""
    cause = root_cause(error)
    if isinstance(cause, PinstripeError):
        message, remedy, code = cause.message, cause.hint, cause.exit_code
    else:
        message = redact(f"{type(cause).__name__}: {cause}".splitlines()[0])
        message = f"Internal error in Pinstripe ({message})"
        remedy = "Please report it with the traceback shown by --debug."
        code = UNEXPECTED
    if debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    complain(message, remedy)
    if as_json:
        kind = type(cause).__name__
        body = {"error": {"type": kind, "message": message, "remedy": remedy, "exit_code": code}}
        show(json.dumps(body))
    return code


def show(text: str) -> None:
    """To stdout: what the command was run for."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def tell(text: str) -> None:
    """To stderr: what goes on meanwhile."""
    sys.stderr.write(redact(text) + "\n")
    sys.stderr.flush()


def complain(message: str, remedy: str) -> None:
    """The one form in which trouble is printed."""
    sys.stderr.write(f"error: {redact(message)}\n")
    if remedy:
        sys.stderr.write(f"  remedy: {redact(remedy)}\n")


def root_cause(error: BaseException) -> BaseException:
    """Return the first PinstripeError in a group, else its first error; any other error unchanged."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(inner) for inner in error.exceptions]
    return next((c for c in causes if isinstance(c, PinstripeError)), causes[0])


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
    for name in ("asyncpg", "procrastinate", "psycopg"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_LogLines(logging.WARNING)], False


class _LogLines(logging.Handler):
    """Passes what the libraries log on to our log, without tracebacks: their lines may hold secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        kind = error.__name__ if error is not None else ""
        text = record.getMessage().strip().splitlines()
        _log.warning(
            "library.log", library=record.name, message=text[0] if text else "", error=kind
        )


def _to_stderr(*_: object) -> structlog.PrintLogger:
    return structlog.PrintLogger(sys.stderr)


def _without_secrets(
    _: object, __: str, line: structlog.typing.EventDict | str
) -> structlog.typing.EventDict | str:
    return redact(line) if isinstance(line, str) else line


_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 0.5
"""A signal to the whole process group and one to us alone are one wish, not two."""


class Stopped(Exception):
    """The user stopped the command. `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by signal {number}")
        self.number = number


async def until_told(work: Coroutine[object, object, _T]) -> _T:
    """Return the result of `work`. Raises Stopped, after cleanup, if a signal cancelled it."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    told: list[int] = []
    told_at = 0.0

    def stop(number: int) -> None:
        nonlocal told_at
        if told and loop.time() - told_at < _SAME_S:
            return
        if told:
            # Child processes (Postgres, the simulator) detect our exit and end.
            os._exit(128 + number)
        told.append(number)
        told_at = loop.time()
        tell("Stopping (press again to force) ...")
        task.cancel()

    for number in _SIGNALS:
        # nohup ignores SIGHUP on purpose; a shell ignores SIGINT for `&` by default.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except BaseException:
        if told:
            raise Stopped(told[0]) from None
        raise
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


_GENERATIONS = (50_000, 20, 20)
"""Collections by generation: the youngest after so many new containers, about ten pages."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Names of mallopt(3) in glibc's malloc.h."""

_LARGE_BYTES = 64 * 1024
"""Blocks from this size come from the kernel and go back to it when freed. Left to itself, glibc
raises the threshold to the largest block that was ever freed."""

_SPARE_BYTES = 1024 * 1024


def set_allocators() -> None:
    """Once, at the start. Where C's allocator is not glibc's, only Python's is set."""
    gc.set_threshold(*_GENERATIONS)
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES)
        mallopt(_M_ARENA_MAX, 1)


def freeze_loaded() -> None:
    """Exclude everything loaded so far from garbage collection."""
    gc.collect()
    gc.freeze()


_GROUP = Group("Settings", sort_key=10)
ACCOUNT = ("api_key", "stripe_url", "stripe_account", "rate_limit", "endpoint_rate_limit", "tables")
PERSONAL = ("personal_data", "columns", "hash_key")
DATABASE = ("database_url", "schema", "data_dir")
LIVE = (
    *("since", "deep", "poll_interval", "event_window", "replica_lag", "clock_margin"),
    *("hold_poll_rate", "changes", "change_days", "event_days", "erase_deleted_after"),
    *("verify_every", "no_metrics", "foreign_keys", "compat"),
)
GATEWAY = (
    *("host", "port", "public_url", "admin_token", "reader_url", "wait_token", "wait_settle"),
    *("webhook_secret", "webhook_tolerance", "secret_key", "mirror_patience", "proxy_body_limit"),
)
OUTPUT = ("log_level", "log_json", "debug")
_MAY_BEGIN_WITH_A_HYPHEN = frozenset({"tables", "columns", "admin_token", "wait_token"})
"""`--tables '-event'` leaves a table out; a token is made of any characters."""


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a function of a `Config` into one of the settings `names`, for cyclopts."""
    chosen = [s for s in SETTINGS if s.name in (*names, *OUTPUT)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        _, *own = inspect.signature(command).parameters.values()
        parameters = [p.replace(annotation=hints[p.name]) for p in own]
        parameters += [_parameter(s) for s in chosen]

        def run(*words: object, **values: object) -> None:
            given = {s.name: _flag(values.pop(s.name, None)) for s in chosen}
            command(read_config(given, os.environ), *words, **values)

        paragraphs = (command.__doc__ or "").split("\n\n")
        run.__name__ = command.__name__
        run.__doc__ = "\n\n".join(" ".join(text.split()) for text in paragraphs)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        # cyclopts reads this instead of the signature above.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _flag(value: object) -> str | bool | None:
    return value if isinstance(value, (str, bool)) else None


_SHOWN_UNITS = frozenset({"seconds", "days", "MB"})


def _parameter(setting: Setting) -> inspect.Parameter:
    unit = f" {setting.unit}" if setting.unit in _SHOWN_UNITS else ""
    about = [f"default: {setting.default}{unit}"] if setting.default else []
    about.append(f"env: {setting.env}")
    shown = Parameter(
        name=setting.flag,
        help=f"{setting.help} [{', '.join(about)}]",
        group=_GROUP,
        negative="",
        show_default=False,
        allow_leading_hyphen=setting.name in _MAY_BEGIN_WITH_A_HYPHEN,
    )
    kind: object = bool if setting.switch else str | None
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if setting.switch else None,
        annotation=Annotated[kind, shown],
    )
