"""Takes the rule apart, piece by piece, and shows that the random tests notice.

    python -m tests.mutations            each mutation in a copy of the tree; exits 1 if one survives
    python -m tests.mutations 2          the second alone

Each names the file, what stands there, what is put in its place, and the test that must fail then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_ORDERS = "tests/postgres/test_orders.py"
_TRUTH = "tests/flows/test_truth.py"
_HISTORIES = "tests/flows/test_histories.py"
_UPSERT = "src/pinstripe/mirror/upsert.py"
_RESPONSE = "src/pinstripe/client/response.py"


@dataclass(frozen=True)
class Mutation:
    """A mistake that somebody might make. `new` replaces `old` in `file`, once; `test` must see it."""

    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        "a replica is never behind",
        _RESPONSE,
        "self.write_interval()[0] - self.margins.replica_lag_s",
        "self.write_interval()[0]",
        _ORDERS,
    ),
    Mutation(
        "Date and created are one clock",
        _RESPONSE,
        "clock_s = self.margins.clock_s",
        "clock_s = 0.0",
        _ORDERS,
    ),
    Mutation(
        "what begins when the row ends is not newer (> for >=)",
        _UPSERT,
        "(to_timestamp(s._lo) >= t._as_of_latest OR",
        "(to_timestamp(s._lo) > t._as_of_latest OR",
        _ORDERS,
    ),
    Mutation(
        "what ends after the row is newer",
        _UPSERT,
        "(to_timestamp(s._lo) >= t._as_of_latest OR",
        "(to_timestamp(s._hi) >= t._as_of_latest OR",
        _ORDERS,
    ),
    Mutation(
        "what overlaps is dropped without a question",
        _UPSERT,
        "WHERE NOT same AND lasting AND to_timestamp(_lo) < _as_of_latest",
        "WHERE false",
        _ORDERS,
    ),
    Mutation(
        "what was seen again unchanged counts for nothing",
        _UPSERT,
        "WHERE c.as_of_latest > to_timestamp(s._lo)",
        "WHERE false",
        _ORDERS,
    ),
    Mutation(
        "another event of its second settles a hint",
        "src/pinstripe/store/refetch.py",
        "else self.since + 1.0",
        "else self.since",
        _TRUTH,
    ),
    Mutation(
        "a response that the row contradicts completes its refetch",
        "src/pinstripe/store/refetch.py",
        "left = {refetch.key for refetch in contested or ()}",
        "left: set[object] = set()",
        _TRUTH,
    ),
    Mutation(
        "a set takes nothing out",
        "src/pinstripe/mirror/orphans.py",
        "        if is_gone:\n            gone[found] = facts[number]",
        "        if is_gone:\n            continue",
        _HISTORIES,
    ),
)


def survives(mutation: Mutation) -> bool:
    """Whether the test passes with the mistake in it."""
    with tempfile.TemporaryDirectory(prefix="pinstripe-mutation-") as directory:
        copy = Path(directory)
        for name in ("src", "tests", "tools"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        file = copy / mutation.file
        text = file.read_text()
        if text.count(mutation.old) != 1:
            sys.exit(
                f"{mutation.file} has no single {mutation.old!r}: bring tests/mutations.py up to it"
            )
        file.write_text(text.replace(mutation.old, mutation.new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            mutation.test,
        ]
        paths = {"PYTHONPATH": f"{copy / 'src'}{os.pathsep}{copy}"}
        ended = subprocess.run(
            command,
            cwd=copy,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode not in (0, 1):
            sys.exit(ended.stdout[-3000:] + ended.stderr[-3000:])
        failed = [line for line in ended.stdout.splitlines() if line.startswith(("E  ", "FAILED"))]
        sys.stdout.write("".join(f"    {line[:200]}\n" for line in failed[:2]))
        return ended.returncode == 0


def main() -> int:
    chosen = [MUTATIONS[int(n) - 1] for n in sys.argv[1:]] or MUTATIONS
    left = 0
    for mutation in chosen:
        sys.stdout.write(f"{mutation.what}: {mutation.old!r} -> {mutation.new!r}\n")
        sys.stdout.flush()
        lives = survives(mutation)
        left += lives
        sys.stdout.write(f"  {'SURVIVED' if lives else 'caught'} by {mutation.test}\n")
        sys.stdout.flush()
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
