"""Errors as messages: the right one out of many, without secrets, with its exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pinstripe.cli.app import main
from pinstripe.cli.runtime import UNEXPECTED, report, root_cause, tell
from pinstripe.errors import Misconfigured, Unreachable, Unwritable

SECRET = "sk_test_thisisthesecretofatest123"


def test_our_own_error_is_found_inside_groups_of_others() -> None:
    ours = Unwritable("The disk is full.", hint="Make room.")
    inner = ExceptionGroup("inner", [ValueError("x"), ours])
    assert root_cause(BaseExceptionGroup("outer", [inner])) is ours


def test_a_plain_error_is_its_own_cause() -> None:
    error = Unreachable("gone")
    assert root_cause(error) is error


def test_an_expected_error_has_message_remedy_and_code_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = report(Misconfigured("No key.", hint="Set one."), as_json=False, debug=False)
    out, err = capsys.readouterr()
    assert (code, out, err) == (2, "", "error: No key.\n  remedy: Set one.\n")


def test_what_is_told_meanwhile_never_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"Checking {SECRET} at https://me:hunter22@stripe.example")
    assert capsys.readouterr().err == "Checking sk_test_… at https://me:…@stripe.example\n"


@pytest.mark.parametrize(("text", "shown"), [("0", False), ("off", False), ("1", True)])
def test_the_variable_for_tracebacks_is_a_switch_like_the_others(
    text: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PINSTRIPE_DEBUG", text)
    assert main(["schema", "tables", "chrage"]) == 2
    assert ("Traceback" in capsys.readouterr().err) is shown


def test_an_unexpected_error_is_one_line_and_never_shows_a_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = report(RuntimeError(f"key {SECRET}\nmore"), as_json=True, debug=False)
    out, err = capsys.readouterr()
    assert code == UNEXPECTED
    assert SECRET not in out + err
    assert "--debug" in err
    assert json.loads(out)["error"]["exit_code"] == UNEXPECTED


def test_debug_shows_the_traceback_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(SECRET)
    except RuntimeError as error:
        report(error, as_json=False, debug=True)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert SECRET not in err


def test_an_error_without_any_text_is_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(RuntimeError(), as_json=False, debug=False) == UNEXPECTED
    assert "RuntimeError" in capsys.readouterr().err


_LIBRARY_FAILS = """
import logging
from pinstripe.cli.runtime import configure
from pinstripe.config.config import Config
configure(Config(log_json=True))
try:
    raise OSError("postgresql://me:hunter2@host/db")
except OSError:
    logging.getLogger("asyncpg.pool").exception("Failed to restore the pool; retrying")
"""


def test_what_a_library_logs_is_one_line_of_ours_without_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIBRARY_FAILS], capture_output=True, text=True, check=True
    )
    (line,) = done.stderr.splitlines()
    assert json.loads(line) | {"timestamp": ""} == {
        "event": "library.log",
        "level": "warning",
        "library": "asyncpg.pool",
        "message": "Failed to restore the pool; retrying",
        "error": "OSError",
        "timestamp": "",
    }
