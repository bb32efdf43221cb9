"""What a sync says at its end."""

from __future__ import annotations

import pytest

from pinstripe.cli.summary import psql_command
from pinstripe.service import Database


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("postgresql://me:hidden@h/d", "psql postgresql://me@h/d"),
        (
            "postgresql://?host=h&dbname=d&user=me&password=hidden",
            "psql 'postgresql://me@/?host=h&dbname=d'",
        ),
    ],
)
def test_the_command_for_psql_names_the_user_and_no_password(url: str, command: str) -> None:
    assert psql_command(Database(url, None, "18")) == command
