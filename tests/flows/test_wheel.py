"""The wheel holds all that it needs, and runs where only it and the locked requirements are."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.flows.harness.snippets import clean_environment, demo

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make wheel` builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    _uv("build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder)
    (built,) = folder.glob("pinstripe-*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    there = {
        p.relative_to(SOURCE).as_posix()
        for p in SOURCE.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert held == there


def test_the_wheel_runs_with_the_locked_requirements(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    _uv("venv", "--python", sys.executable, environment)
    python = environment / "bin" / "python"
    locked = ROOT / "requirements" / "main.txt"
    _uv("pip", "install", "--python", python, "--require-hashes", "--requirement", locked)
    _uv("pip", "install", "--python", python, "--no-deps", wheel)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with demo(data_dir, python) as running:
        assert int(running.ask("SELECT count(*) FROM stripe.customer"))
        for path in ("/healthz", "/login", "/static/console.css"):
            subprocess.run(
                ["curl", "--silent", "--fail", "--output", "/dev/null", running.gateway + path],
                check=True,
                timeout=30,
            )


def _uv(*words: str | Path) -> None:
    """uv of the environment that the tests run in; what it has downloaded for that it takes again."""
    subprocess.run(
        [Path(sys.executable).parent / "uv", "--quiet", *words],
        cwd=ROOT,
        env=clean_environment(),
        check=True,
        timeout=300,
    )
