"""What the pages tell a reader to type works, on the demo that the quickstart starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.flows.snippets import Demo, Snippet, demo, snippets

PAGES = (
    "quickstart.md",
    "how-to/connect.md",
    "how-to/data-types.md",
    "how-to/proxy.md",
    "how-to/serve.md",
    "how-to/upcoming-invoices.md",
    "how-to/wait.md",
    "how-to/webhooks.md",
    "how-to/install-with-pip.md",
    "how-to/docker.md",
    "how-to/systemd.md",
    "how-to/kubernetes.md",
    "how-to/from-sequin.md",
    "how-to/from-stripe-sync-engine.md",
)
RUN = [s for page in PAGES for s in snippets(page) if not s.why]

# One demo for all of them, in one worker.
pytestmark = pytest.mark.xdist_group("snippets")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with demo(tmp_path_factory.mktemp("demo")) as running:
        running.ask("CREATE DATABASE elsewhere")
        yield running


@pytest.mark.parametrize("snippet", RUN, ids=lambda s: f"{s.page}:{s.line}")
def test_what_a_page_tells_to_type_works(account: Demo, snippet: Snippet) -> None:
    ended = account.run(snippet)
    assert ended.returncode == 0, f"{snippet.text}\n{ended.stdout}\n{ended.stderr}"


def test_the_pages_have_snippets_that_run() -> None:
    assert {s.language for s in RUN} == {"sh", "sql", "python"}
    assert {s.page for s in RUN} >= {p for p in PAGES[:8] if p != "how-to/serve.md"}


def test_what_the_pages_write_is_there(account: Demo) -> None:
    assert int(account.ask("SELECT count(*) FROM stripe.customer WHERE email = 'ada@example.com'"))
