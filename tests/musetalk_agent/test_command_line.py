"""The agent's command line: what it knows, and how a start that cannot be ends, without a server."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from musetalk_agent import __main__ as command_line
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.protocol.http import VERSION
from musetalk_agent.service import agent_app

COMMANDS = {
    "serve": ["--port", "8091"],
    "prepare": ["clip.zip"],
    "render": ["--avatar", "demo", "--audio", "a.wav", "--out", "a.mp4"],
    "restore": ["clip.mp4", "-o", "out.mp4"],
    "render-worker": ["--stay"],
    "measure-sync": ["film.mp4"],
    "judge": ["film.mp4"],
    "dataset": ["films"],
    "monitor": ["http://127.0.0.1:8090"],
    "profile": [],
    "fetch-models": [],
    "convert-weights": [],
    "build-engine": [],
    "doctor": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_in_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    reported = capsys.readouterr().out
    assert reported.startswith(f"usage: musetalk-agent {command}") and len(reported.splitlines()) > 3


def test_the_overview_names_every_command_and_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, code in ((["--help"], 0), (["--version"], 0), ([], 2), (["sing"], 2)):
        with pytest.raises(SystemExit) as ended:
            command_line.parser().parse_args(argv)
        assert ended.value.code == code
        reported = capsys.readouterr()
        if argv == ["--help"]:
            assert [name for name in COMMANDS if f"    {name}" not in reported.out] == []
        elif argv == ["--version"]:
            assert reported.out == f"musetalk-agent {VERSION}\n"
        else:
            assert "usage: musetalk-agent" in reported.err


def test_a_server_loads_no_other_command() -> None:
    script = """
import sys
from musetalk_agent import __main__ as command_line
command_line.parser().parse_args(["serve"])
print([name for _, name, _ in command_line._TOOLS if f"musetalk_agent.{name}" in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


@pytest.mark.parametrize("where", ["parser", "command"])
def test_an_interrupt_at_any_time_ends_with_130_and_no_traceback(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> argparse.ArgumentParser:
        raise KeyboardInterrupt

    class Commands:
        def parse_args(self) -> SimpleNamespace:
            return SimpleNamespace(run=interrupted)

    monkeypatch.setattr(command_line, "parser", interrupted if where == "parser" else Commands)
    monkeypatch.setattr(command_line, "_leave", lambda code: code)
    assert command_line.main() == 130
    assert capsys.readouterr().err == "musetalk-agent: interrupted.\n"


def serve(*argv: str) -> int:
    """`musetalk-agent serve` in this process."""
    args = command_line.parser().parse_args(["serve", *argv])
    code: int = args.run(args)
    return code


def test_wrong_settings_are_recognised_by_the_names_of_their_variables_and_end_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGENT_MAX_SESSIONS", "none")
    assert serve() == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["musetalk-agent", "AGENT_API_KEY"],
        ["musetalk-agent", "AGENT_MAX_SESSIONS"],
    ]


class Server:
    """Stands in for the one that listens."""

    started = True
    made: argparse.Namespace

    def __init__(self, app: object, settings: object, *, host: str, port: int) -> None:
        Server.made = argparse.Namespace(host=host, port=port)
        self.should_exit = False

    def run(self) -> None:
        self.during(self)

    during: Callable[[Server], None]


class Watchdog:
    """A timer that never comes to its end."""

    daemon = False
    begun: tuple[object, ...] = ()

    def __init__(self, *given: object) -> None:
        self._given = given

    def start(self) -> None:
        assert self.daemon, "it must not keep the process itself"
        Watchdog.begun = self._given


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A service that is not made, and its pool of engines."""
    made = SimpleNamespace(lost=False, on_lost=None)
    made.warmup = SimpleNamespace(error=None, on_failed=None)
    state = SimpleNamespace(engines=made, warmup=made.warmup)
    monkeypatch.setenv("AGENT_API_KEY", "k")

    def make(_: object, *, on_start_failed: object, on_engine_lost: object) -> SimpleNamespace:
        made.warmup.on_failed, made.on_lost = on_start_failed, on_engine_lost
        return SimpleNamespace(state=state)

    monkeypatch.setattr(agent_app, "create_app", make)
    monkeypatch.setattr(agent_app, "AgentServer", Server)
    monkeypatch.setattr("musetalk_agent.protocol.logs.configure", lambda _: None)
    monkeypatch.setattr(command_line, "_limit_arenas", lambda: None)
    monkeypatch.setattr(command_line.threading, "Timer", Watchdog)
    monkeypatch.setattr(Server, "during", staticmethod(lambda _: None), raising=False)
    monkeypatch.delitem(sys.modules, "livekit.rtc", raising=False)
    return made


def test_an_engine_that_cannot_run_here_ends_the_start_with_its_code_and_sentence(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object, **__: object) -> None:
        raise EngineUnavailable("torch is not installed: install the extra [musetalk].")

    monkeypatch.setattr(agent_app, "create_app", refuse)
    assert serve() == 1
    reported = capsys.readouterr().err
    assert reported == "musetalk-agent: engine_unavailable: torch is not installed: install the extra [musetalk].\n"


@pytest.mark.parametrize(("started", "code"), [(True, 0), (False, 1)])
def test_a_server_that_ran_ends_well_and_one_that_never_listened_does_not(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, started: bool, code: int
) -> None:
    monkeypatch.setattr(Server, "started", started)
    assert serve("--host", "0.0.0.0", "--port", "9999") == code
    assert vars(Server.made) == {"host": "0.0.0.0", "port": 9999}


def test_an_engine_that_does_not_start_ends_the_server_and_is_reported(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(server: Server) -> None:
        engines.warmup.error = EngineUnavailable("The engine 'musetalk' did not start: no memory.")
        engines.warmup.on_failed()
        assert server.should_exit

    monkeypatch.setattr(Server, "during", staticmethod(fails))
    assert serve() == 1
    assert (
        capsys.readouterr().err
        == "musetalk-agent: engine_unavailable: The engine 'musetalk' did not start: no memory.\n"
    )


def test_ctrl_c_is_a_clean_end(engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Server) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "during", staticmethod(interrupted))
    assert serve() == 0


def test_a_lost_engine_ends_the_server_and_then_the_process_with_70(
    engines: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: the interpreter's own end would wait for threads that hang in the device."""

    class Left(BaseException):
        pass

    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        raise Left

    def lose(server: Server) -> None:
        assert not server.should_exit
        engines.lost = True
        engines.on_lost()
        assert server.should_exit

    monkeypatch.setattr(Server, "during", staticmethod(lose))
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with pytest.raises(Left):
        serve()
    assert codes == [70] and Watchdog.begun == (5.0, leave, (70,)), "and whatever hangs, in seconds"


@pytest.mark.parametrize(("given", "used"), [(None, "1"), ("3", "3")])
def test_blas_is_limited_to_one_thread_before_numpy_is_loaded(given: str | None, used: str) -> None:
    script = """
import os, sys
from musetalk_agent import __main__ as command_line
def parser():
    print("numpy" in sys.modules, os.environ.get("OPENBLAS_NUM_THREADS"))
    sys.exit()
command_line.parser = parser
command_line.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    environment |= {} if given is None else {"OPENBLAS_NUM_THREADS": given}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", used]
