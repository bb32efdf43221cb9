"""Every error as one message with its remedy, and the exit code that goes with it."""

from __future__ import annotations

import json
import sys
import traceback

from pinstripe.errors import PinstripeError, redact

UNEXPECTED = 70
"""EX_SOFTWARE of sysexits.h: a mistake of ours, not of the user's."""
BAD_USAGE = 2


def report(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Prints `error` to stderr, with `as_json` to stdout too; gives the exit code."""
    cause = root_cause(error)
    if isinstance(cause, PinstripeError):
        message, remedy, code = cause.message, cause.hint, cause.exit_code
    else:
        message = redact(f"{type(cause).__name__}: {cause}".splitlines()[0])
        message = f"Something went wrong inside Pinstripe ({message})"
        remedy = "Please report it, with the traceback that --debug shows."
        code = UNEXPECTED
    if debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    complain(message, remedy)
    if as_json:
        kind = type(cause).__name__
        body = {"error": {"type": kind, "message": message, "remedy": remedy, "exit_code": code}}
        sys.stdout.write(json.dumps(body) + "\n")
    return code


def complain(message: str, remedy: str) -> None:
    """The one form in which trouble is printed."""
    sys.stderr.write(f"error: {redact(message)}\n")
    if remedy:
        sys.stderr.write(f"  remedy: {redact(remedy)}\n")


def root_cause(error: BaseException) -> BaseException:
    """Out of a group of errors the first of ours, else the first; any other error as it is."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [root_cause(inner) for inner in error.exceptions]
    return next((c for c in causes if isinstance(c, PinstripeError)), causes[0])
