"""What the pages tell a reader to type works, on the demo that the quickstart starts."""

from __future__ import annotations

from pathlib import Path

from tests.flows.harness.snippets import demo, snippets

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


def test_what_a_page_tells_to_type_works(tmp_path: Path) -> None:
    """All of it, in the order of the pages, on one demo."""
    with demo(tmp_path) as account:
        account.ask("CREATE DATABASE elsewhere")
        failed = []
        for snippet in RUN:
            ended = account.run(snippet)
            if ended.returncode != 0:
                failed.append(
                    f"{snippet.page}:{snippet.line}\n{snippet.text}{ended.stdout}{ended.stderr}"
                )
        assert failed == [], "\n\n".join(failed)
        written = "SELECT count(*) FROM stripe.customer WHERE email = 'ada@example.com'"
        assert int(account.ask(written)) > 1


def test_the_pages_have_snippets_that_run() -> None:
    assert {s.language for s in RUN} == {"sh", "sql", "python"}
    assert {s.page for s in RUN} >= {p for p in PAGES[:8] if p != "how-to/serve.md"}
