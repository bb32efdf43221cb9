"""`pinstripe schema erd`: what it draws, where it writes, what it answers to a wrong name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pinstripe.cli.app import main


@pytest.fixture(autouse=True)
def _no_settings_of_the_tester(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINSTRIPE_TABLES", raising=False)


@pytest.mark.parametrize(
    ("words", "title", "shown"),
    [
        ([], "All domains", "Billing"),
        (["--domain", "issuing"], "Issuing", "issuing_card"),
        (["--table", "charge"], "charge", "payment_intent"),
        (["--tables", "charge,customer"], "2 tables", "customer_id"),
        (["--tables", "issuing_*", "--domain", "issuing"], "Issuing", "issuing_token"),
    ],
)
def test_it_draws_what_it_is_asked_for(
    words: list[str], title: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", "erd", *words]) == 0
    svg = capsys.readouterr().out
    assert svg.startswith("<svg")
    assert f'<title id="erd-title">{title}</title>' in svg
    assert f">{shown}</text>" in svg


def test_tables_that_are_left_out_are_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "erd", "--table", "charge", "--tables", "charge,refund"]) == 0
    svg = capsys.readouterr().out
    assert 'id="box-refund"' in svg
    assert 'id="box-customer"' not in svg


@pytest.mark.parametrize(("words", "name"), [(["--format", "mermaid"], "tax.txt"), ([], "tax.mmd")])
def test_it_writes_mermaid_where_that_is_asked_or_the_ending_says_so(
    words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    assert main(["schema", "erd", "--domain", "tax", *words, "--output", str(file)]) == 0
    assert "erDiagram" in file.read_text()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--domain", "shop"], "There are: core, "),
        (["--table", "custom"], "Did you mean customer"),
        (["--domain", "tax", "--table", "charge"], "either one domain or one table"),
        (["--output", "/nowhere/at/all.svg"], "Cannot write /nowhere/at/all.svg"),
    ],
)
def test_what_it_cannot_do_it_says_with_a_remedy(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", "erd", *words]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "remedy: " in said.err
    assert said.out == ""
