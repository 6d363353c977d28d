"""Runs in the environment of livekit-agents: imports it once, and gives each program that asks a fork of itself (`warm_python`)."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any, NoReturn

_STANDARD = 3
"""Standard input, output and error."""


def serve(listener: socket.socket) -> list[str]:
    """Answers for ever. Returns in a fork alone: with the arguments of its interpreter, and everything else set."""
    signal.signal(signal.SIGCHLD, reap)
    while True:
        asking, _ = listener.accept()
        if os.fork():
            asking.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listener.close()
        _, handed, _, _ = socket.recv_fds(asking, 1, _STANDARD)
        with asking.makefile("rb") as source:
            given = json.loads(source.readline())
        if program := os.fork():
            for each in handed:
                os.close(each)
            watch(asking, program)
        return become(given, handed)


def reap(*_: object) -> None:
    """Those that watch have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def watch(asking: socket.socket, program: int) -> NoReturn:
    """Says how the program ended, and kills it when who asked has gone."""
    over = os.pidfd_open(program)
    readable, _, _ = select.select([asking, over], [], [])
    if over not in readable:
        os.kill(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    if over in readable:
        asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def become(given: dict[str, Any], handed: list[int]) -> list[str]:
    """Takes over what makes a process another one's: files, environment, folder."""
    for at, each in enumerate(handed):
        os.dup2(each, at)
    os.closerange(_STANDARD, 256)
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["folder"])
    arguments: list[str] = given["arguments"]
    return arguments


def main() -> None:
    """`warm_server FD MODULE…`: a listening socket, and what is imported."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2:]:
        __import__(module)
    gc.freeze()
    kind, *arguments = serve(listener)
    sys.argv = [kind, *arguments]
    if kind in ("-m", "-c"):
        program = sys.argv.pop(1)
    if kind == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(kind))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
