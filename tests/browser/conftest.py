"""What the page's tests share: a Chromium, the page's files on loopback, and the whole demo as a process."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.conversation.conversations import find_python
from tests.browser.chromium import Chromium, Page, find_chromium
from tests.fakes.openai_models import KEY, FakeModels
from tests.fakes.serving import plain_config, serving
from tests.integrations.conversation import lasting_agent, warm_python
from tests.waiting import NEVER_S

ROOT = Path(__file__).resolve().parents[2]
STACK_READY_S = NEVER_S
CHEAP = """(() => {
  const ask = globalThis.fetch;
  globalThis.fetch = (url, options) => {
    if (!String(url).endsWith("/session/start") || !options?.body) return ask(url, options);
    return ask(url, {...options, body: JSON.stringify({width: 192, height: 192, fps: 15, ...JSON.parse(options.body)})});
  };
})();"""
"""What a page asks for without a size is small and slow: half of what the demo and Chromium take for each second of a session."""
CHEAP_VOICE = {"VOICE": "espeak:en-us"}
"""Speaks as the neural voice does, without its network."""


@dataclass(frozen=True)
class Stack:
    """The running demo."""

    url: str
    api_key: str
    pid: int

    def get(self, path: str) -> httpx.Response:
        return httpx.get(
            self.url + path, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=NEVER_S, trust_env=False
        )

    def post(self, path: str, body: dict[str, object] | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.post(self.url + path, headers=headers, json=body, timeout=NEVER_S, trust_env=False)


@pytest.fixture(scope="session", autouse=True)
def _what_lasts_ends() -> Iterator[None]:
    yield
    lasting_agent.end()
    warm_python.end()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A Chromium for all tests."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on PATH")
    made = Chromium(program)
    yield made
    made.close()


@pytest.fixture
async def whole_page(chromium: Chromium) -> AsyncIterator[Page]:
    """A fresh tab."""
    async with chromium.tab() as tab:
        yield tab


@pytest.fixture
async def unseen_page(chromium: Chromium) -> AsyncIterator[Page]:
    """A fresh tab without a window, for what needs no picture and no click."""
    async with chromium.tab(painted=False) as tab:
        yield tab


@pytest.fixture
async def page(whole_page: Page) -> Page:
    """A fresh tab whose sessions are cheap."""
    await whole_page.send("Page.addScriptToEvaluateOnNewDocument", source=CHEAP)
    return whole_page


@pytest.fixture(scope="session")
def web() -> Iterator[str]:
    """Address of the page's files, served as files are, without an orchestrator."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(ROOT / "orchestrator" / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def stack(demo: Stack) -> Iterator[Stack]:
    """The demo, with no session left behind for the next test."""
    yield demo
    stop_sessions(demo)


def stop_sessions(stack: Stack) -> None:
    """Those that are not over; the orchestrator lists the others as well."""
    for session in stack.get("/sessions").json()["sessions"]:
        if session["state"] not in ("stopped", "failed"):
            stack.post(f"/session/{session['session_id']}/stop")


@pytest.fixture(scope="session")
def models() -> Iterator[tuple[FakeModels, str]]:
    """Stand-ins for the models of conversations and their address, served by a thread for all tests."""
    fake, ready, address = FakeModels(), threading.Event(), list[str]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(plain_config(fake.app)) as url:
            address.append(url + "/v1")
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(NEVER_S)
    yield fake, address[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()


@pytest.fixture
def fake(models: tuple[FakeModels, str]) -> FakeModels:
    """The models, as new."""
    made, fresh = models[0], FakeModels()
    for name in ("replies", "transcripts", "asked", "heard_s", "_answer", "_speech"):
        setattr(made, name, getattr(fresh, name))
    return made


@pytest.fixture(scope="session")
def demo(models: tuple[FakeModels, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`musetalk-orchestrator demo`: livekit-server, agent and orchestrator, as processes. Conversations use `models`."""
    log, url = tmp_path_factory.mktemp("demo") / "log", models[1]
    providers = {"LLM_BASE_URL": url, "LLM_API_KEY": KEY, "STT_BASE_URL": url, **CHEAP_VOICE}
    options = [] if find_python() else ["--no-conversation"]
    if find_python():
        providers["CONVERSATION_PYTHON"] = warm_python.path()
    with running_demo(log, *options, **providers) as stack:
        yield stack


@pytest.fixture(scope="session")
def speech(demo: Stack) -> NDArray[np.int16]:
    """A sentence of the product's neural voice, at 48 kHz."""
    asked = {"model": "tts-1", "voice": "piper:joe", "input": "What is your name?", "response_format": "pcm"}
    answer = demo.post("/v1/audio/speech", asked)
    assert answer.status_code == 200, answer.text
    return np.repeat(np.frombuffer(answer.content, np.int16), 2)  # it comes at 24 kHz


@contextmanager
def running_demo(log: Path, *options: str, **environment: str) -> Iterator[Stack]:
    """The demo with these options and variables beside the environment's; it has ended afterwards."""
    command = [sys.executable, "-m", "orchestrator", "demo", "--json", "--port", "0", *options]
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}
        ) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], STACK_READY_S)
            line = process.stdout.readline() if readable else b""
            if not line:
                pytest.fail(f"the demo did not start:\n{log.read_text()[-4000:]}")
            info = json.loads(line)
            yield Stack(url=info["orchestrator_url"], api_key=info["api_key"], pid=process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(NEVER_S)
            except subprocess.TimeoutExpired:
                process.kill()
