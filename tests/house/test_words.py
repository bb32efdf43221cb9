"""What the repository must not say: where it was made, with what, and whose secrets.

The words are put together from pieces, so that this file does not hold them.
"""

from __future__ import annotations

import re
import tomllib

from tests.house.tree import ROOT, files, shown

PLACES = ("/wo" + "rk/", "/ho" + "me/", "/Use" + "rs/", "/ro" + "ot/.")
HOSTS = ("pypi" + ".org", "python" + "hosted", "npm" + "js", "artifact" + "ory", "index" + "-url =")
TOOLS = ("clau" + "de", "anthro" + "pic", "chat" + "gpt", "copi" + "lot", "open" + "ai")
FORBIDDEN = re.compile("|".join(map(re.escape, PLACES + HOSTS + TOOLS)), re.IGNORECASE)

# A live key of any length, and a test key that is long enough to be real.
KEY = re.compile(r"\b[sr]k_" + r"live_[A-Za-z0-9]{16,}|\b[sr]k_" + r"test_[A-Za-z0-9]{40,}")


def texts() -> list[tuple[str, str]]:
    """(name, text) of every file that is text."""
    found = []
    for path in files():
        try:
            found.append((shown(path), path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


def test_no_file_speaks_of_where_or_with_what_it_was_made() -> None:
    said = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1} {match.group()}"
        for name, text in texts()
        for match in FORBIDDEN.finditer(text)
    ]
    assert said == []


def test_no_file_holds_a_key_that_could_be_real() -> None:
    assert [name for name, text in texts() if KEY.search(text)] == []


def test_requirements_carry_hashes_and_no_addresses() -> None:
    for path in sorted((ROOT / "requirements").iterdir()):
        text = path.read_text()
        assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text), (
            path.name
        )
        pinned = re.findall(r"^[a-z0-9][\w.-]*(?:\[[^\]]+\])?==[^ \\]+", text, flags=re.M | re.I)
        blocks = re.split(r"\n(?=[A-Za-z0-9])", text)
        assert pinned, path.name
        for block in blocks:
            if "==" in block.split("\n")[0]:
                assert "--hash=sha256:" in block, f"{path.name}: {block.splitlines()[0]}"


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    explained = (ROOT / "docs" / "decisions" / "002-dependencies.md").read_text()
    names = [re.split(r"[<>=\[ ]", d)[0] for d in project["dependencies"]]
    assert [
        n for n in names if not re.search(rf"(?<![\w-]){re.escape(n)}(?![\w-])", explained)
    ] == []


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = (ROOT / "requirements" / "main.txt").read_text().lower()
    names = [re.split(r"[<>=\[ ]", d)[0].lower() for d in project["dependencies"]]
    assert [n for n in names if f"\n{n}==" not in f"\n{pinned}"] == []


def test_make_has_few_targets_and_explains_each() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, flags=re.M)
    assert phony is not None
    targets = phony.group(1).split()
    assert [t for t in targets if not re.search(rf"^{t}:.* ## \S", text, flags=re.M)] == []
    assert len(targets) <= 16
