"""A process that has the product imported and forks one command after another out of itself.

    python -m tests.flows.harness.launcher SOCKET

A start of `pinstripe` costs a second of CPU, nearly all of it imports; a fork of this process costs 20 ms.
A request is a JSON object with the words, environment and folder of a command, and three descriptors: its
standard output, its standard error, and a pipe that gets the command's process id and, later, how it ended.
Everything else is as in a process of its own: a fork has its own environment, signals and exit.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

_LARGEST = 1 << 20


def main() -> int:
    """Forks for each request until the other side closes the socket; in a fork: the command."""
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        _import_everything()
        gc.freeze()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Nothing to reap: a keeper reports itself.
        while True:
            text, pipes, _, _ = socket.recv_fds(requests, _LARGEST, 3)
            if not text:
                return 0
            if os.fork() == 0 and _is_command(json.loads(text), pipes):
                break
            for pipe in pipes:
                os.close(pipe)
    from pinstripe.cli import main as pinstripe

    return pinstripe()


def _import_everything() -> None:
    import pinstripe
    from pinstripe.catalog.model import spec
    from pinstripe.catalog.tables import tables

    for module in pkgutil.walk_packages(pinstripe.__path__, "pinstripe."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    spec()
    tables()


def _is_command(request: Mapping[str, Any], pipes: list[int]) -> bool:
    """True in the process of the command; its parent, the keeper, ends here when the command has."""
    out, err, report = pipes
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        os.close(out)
        os.close(err)
        os.write(report, b"%d\n" % pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(report, b"%d\n" % code)
        os._exit(0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for pipe in pipes:
        os.close(pipe)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["pinstripe", *request["words"]]
    return True


if __name__ == "__main__":
    sys.exit(main())
