"""The code blocks of the pages, and a demo account to run them on as a reader would.

A block runs as it stands, with what a reader fills in filled in: the service's port, the key, ids. One
that cannot run has a comment before it that says why: `<!-- not run: it does not end -->`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
LANGUAGES = ("sh", "sql", "python", "js")
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.M | re.S,
)
_FOREIGN = ("STRIPE_", "PINSTRIPE_", "DATABASE_URL", "PG")
_FEW = "customer,subscription,subscription_item,invoice,price,product"
# What the snippets speak of. The demo of the quickstart has all tables, and takes some seconds longer.
_SHOWN = (
    f"{_FEW},event,charge,payment_intent,balance_transaction,line_item,upcoming_*"
    ",checkout_session,entitlements_*"
)
# An answer that is an error fails the snippet, where curl alone would be content with any answer.
_SHELL = 'set -euo pipefail\ncurl() { command curl --silent --show-error --fail-with-body "$@"; }\n'


@dataclass(frozen=True)
class Snippet:
    """A block of a page. `why` is the reason why it is not run, or empty."""

    page: str
    line: int
    language: str
    text: str
    why: str


def snippets(page: str) -> Iterator[Snippet]:
    """The blocks of `docs/<page>` that are in a language that could be run."""
    text = (ROOT / "docs" / page).read_text()
    for found in _BLOCK.finditer(text):
        if found["language"] in LANGUAGES:
            line = text.count("\n", 0, found.start("text")) + 1
            yield Snippet(page, line, found["language"], found["text"], found["why"] or "")


@dataclass(frozen=True)
class Demo:
    """A running `pinstripe demo`: where it answers, and what a reader sees of it."""

    gateway: str
    stripe: str
    key: str
    database: str
    psql: Path
    data_dir: Path

    def run(self, snippet: Snippet) -> subprocess.CompletedProcess[str]:
        """Runs it to its end."""
        text = self.filled_in(snippet.text)
        words: dict[str, list[str | Path]] = {
            "sh": ["bash", "-c", _SHELL + text],
            "sql": [self.psql, self.database, "-X", "-v", "ON_ERROR_STOP=1", "-c", text],
            "python": [sys.executable, "-W", "error", "-c", text],
        }
        return self._ended(words[snippet.language], self.environment())

    def ask(self, query: str) -> str:
        """The one value that a query gives."""
        ended = self._ended([self.psql, self.database, "-XAtc", query], self.environment())
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def _ended(
        self, words: list[str | Path], env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=env,
            cwd=self.data_dir,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def filled_in(self, text: str) -> str:
        """`text` with what a reader replaces: the port, the key, ids, the name of the read-only role."""
        for shown, id_of in (
            ("cus_...", "SELECT customer_id FROM stripe.subscription WHERE status = 'active'"),
            ("sub_1Mowry", "SELECT id FROM stripe.subscription"),
            ("price_...", "SELECT id FROM stripe.price WHERE active AND type = 'recurring'"),
            ("cs_...", "SELECT id FROM stripe.checkout_session"),
            ("evt_...", "SELECT id FROM stripe.event"),
        ):
            if shown in text:
                text = text.replace(shown, self.ask(f"{id_of} ORDER BY created LIMIT 1"))
        text = re.sub(r"\b[rs]k_test_\.\.\.", self.key, text)
        text = text.replace("pinstripe_reader_billing_stripe", "pinstripe_reader_pinstripe_stripe")
        text = text.replace("postgresql://USER:PASSWORD@HOST:5432/DATABASE", self._elsewhere())
        return text.replace("http://127.0.0.1:8377", self.gateway)

    def _elsewhere(self) -> str:
        """Another, empty database on the same server."""
        return f"'{self.database.replace('/pinstripe?', '/elsewhere?')}'"

    def environment(self) -> dict[str, str]:
        """The settings that a reader of the pages has exported."""
        return {
            **clean_environment(),
            "STRIPE_API_KEY": self.key,
            "STRIPE_API_BASE": self.stripe,
            "PINSTRIPE_DATA_DIR": str(self.data_dir / "demo"),
            "PINSTRIPE_PORT": self.gateway.rpartition(":")[2],
            "PINSTRIPE_TABLES": _FEW,
            "PINSTRIPE_RATE_LIMIT": "none",
            "PINSTRIPE_ENDPOINT_RATE_LIMIT": "none",
            "DATABASE_URL": self.database,
            "PATH": f"{Path(sys.executable).parent}:{self.psql.parent}:{os.environ['PATH']}",
        }


@contextmanager
def demo(data_dir: Path, python: Path = Path(sys.executable)) -> Iterator[Demo]:
    """A small demo account, until the end of the block; it stops as by `kill`."""
    argv: list[str | Path] = [python, "-m", "pinstripe", "demo", "--data-dir", data_dir]
    with (
        (data_dir / "stderr").open("w+") as said,
        subprocess.Popen(
            [*argv, "--port", "0", "--demo-scale", "60"],
            env={**clean_environment(), "PINSTRIPE_TABLES": _SHOWN},
            cwd=data_dir,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        try:
            yield _demo(_printed(process, data_dir / "stderr"), data_dir)
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _printed(process: subprocess.Popen[str], said: Path) -> str:
    """What it prints up to the address to wait at: the last line of what is for people."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith("Wait:"):
            return printed
    raise AssertionError(f"it ended: {printed}{said.read_text()}")


def _demo(printed: str, data_dir: Path) -> Demo:
    def told(pattern: str) -> str:
        found = re.search(pattern, printed)
        assert found is not None, f"{pattern} is not in: {printed}"
        return found[1]

    psql, database = shlex.split(told(r"Connect with:\n(.*)\n"))
    return Demo(
        gateway=told(r"Console:  (http\S+)/"),
        stripe=told(r"objects runs at (http[^;]+);"),
        key=told(r"; key: (\S+)"),
        database=database,
        psql=Path(psql),
        data_dir=data_dir,
    )


def clean_environment() -> dict[str, str]:
    """This one, without settings of ours and of Postgres's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)}
