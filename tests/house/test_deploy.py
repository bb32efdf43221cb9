"""What `deploy` holds is well-formed, and speaks of settings and files that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml  # type: ignore[import-untyped]
from tests.house.tree import ROOT, shown

from pinstripe.config.settings import SETTINGS

DEPLOY = ROOT / "deploy"
_SETTINGS = {s.env for s in SETTINGS}
_OURS = re.compile(r"\b(?:PINSTRIPE|STRIPE)_[A-Z_]+\b|\bDATABASE_URL\b")

Tree = dict[str, "Tree"]


def manifests() -> Iterator[tuple[Path, Tree]]:
    for path in sorted(DEPLOY.rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def test_every_manifest_is_yaml() -> None:
    kinds = [cast("str", m["kind"]) for path, m in manifests() if path.parent.name == "kubernetes"]
    assert sorted(kinds) == ["Deployment", "Kustomization", "Secret", "Service"]


def test_every_setting_that_is_named_exists() -> None:
    unknown = {
        f"{shown(path)}: {name}"
        for path in DEPLOY.rglob("*")
        if path.is_file() and "secrets" not in path.parts
        for name in _OURS.findall(path.read_text())
        if name not in _SETTINGS
    }
    assert unknown == set()


def test_the_deployment_takes_its_secrets_from_the_secret() -> None:
    by_kind = {cast("str", m["kind"]): m for _, m in manifests() if "kind" in m}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = cast("list[Tree]", pod["containers"])
    (source,) = cast("list[Tree]", container["envFrom"])
    assert source["secretRef"]["name"] == by_kind["Secret"]["metadata"]["name"]
    assert set(by_kind["Secret"]["stringData"]) <= _SETTINGS
    (port,) = cast("list[Tree]", by_kind["Service"]["spec"]["ports"])
    (named,) = cast("list[Tree]", container["ports"])
    assert port["targetPort"] == named["name"]


def test_what_the_image_copies_is_in_its_context() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {
        word
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert copied == let_in
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_secrets_in_files_become_variables(tmp_path: Path) -> None:
    for name, text in {"STRIPE_API_KEY": "rk_test_1\n", "..data": "no", "lower": "no"}.items():
        (tmp_path / name).write_text(text)
    script = DEPLOY / "with-secrets"
    for folder, wanted in ((tmp_path, "STRIPE_API_KEY=rk_test_1\n"), (tmp_path / "none", "")):
        ended = subprocess.run(
            ["env", "-i", "PATH=/usr/bin:/bin", script, folder, "env"],
            capture_output=True,
            text=True,
            check=True,
        )
        ours = [line for line in ended.stdout.splitlines(keepends=True) if "rk_test" in line]
        assert "".join(ours) == wanted
        assert "=no" not in ended.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    unit = tmp_path / "pinstripe.service"
    text = (DEPLOY / "pinstripe.service").read_text()
    # The program need not be installed here; all else must be right.
    unit.write_text(text.replace("/opt/pinstripe/bin/with-secrets", "/bin/true"))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
