"""The wheel holds all that it needs, and runs where only it and the locked requirements are."""

from __future__ import annotations

import os
import shutil
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


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_one_line_runs_the_demo_in_an_empty_home(minor: int, wheel: Path, tmp_path: Path) -> None:
    """As `uvx pinstripe demo`, with the newest dependencies that the index has."""
    if minor != sys.version_info.minor and not os.environ.get("ALL_PYTHONS"):
        pytest.skip("each other Python downloads all dependencies anew: set ALL_PYTHONS")
    python = _interpreter(minor)
    if python is None:
        pytest.skip(f"there is no Python 3.{minor} here")
    uvx = Path(sys.executable).parent / "uvx"
    run = tmp_path / "run"
    home = tmp_path / "home"
    home.mkdir()
    # `demo` calls it as a Python: without "-m".
    run.write_text(
        f"#!/bin/sh\nshift\nexport HOME={home}\n"
        f'exec {uvx} --quiet --cache-dir {_cache()} --python {python} --from {wheel} "$@"\n'
    )
    run.chmod(0o755)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with demo(data_dir, run) as running:
        assert int(running.ask("SELECT count(*) FROM stripe.customer"))


def test_the_demo_starts_without_the_library_that_draws_and_the_page_says_so(
    tmp_path: Path,
) -> None:
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "graphlay.py").write_text("raise ImportError\n")
    run = tmp_path / "run"
    run.write_text(f'#!/bin/sh\nPYTHONPATH={hiding} exec {sys.executable} "$@"\n')
    run.chmod(0o755)
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with demo(data_dir, run) as running:
        page = subprocess.run(
            ["curl", "--silent", running.gateway + "/syncs/default/diagram"],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout
    assert "graphlay, is not installed" in page
    assert "pip install graphlay" in page


def _interpreter(minor: int) -> str | None:
    """The path of a Python 3.minor that works, on PATH or of pyenv."""
    found = shutil.which(f"python3.{minor}")
    others = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
    for path in [*map(str, others), *([found] if found else [])]:
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return None


def _cache() -> str:
    words: list[str | Path] = [Path(sys.executable).parent / "uv", "cache", "dir"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _uv(*words: str | Path) -> None:
    """uv of the environment that the tests run in; what it has downloaded for that it takes again."""
    subprocess.run(
        [Path(sys.executable).parent / "uv", "--quiet", *words],
        cwd=ROOT,
        env=clean_environment(),
        check=True,
        timeout=300,
    )
