"""What the worker makes of the orchestrator's speech events, in the environment of livekit-agents."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from orchestrator.conversation.conversations import PLUGIN, find_python
from orchestrator.conversation.embedded_model import ROOT
from orchestrator.worker_process import bare_environment
from tests.integrations.conversation import warm_python
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
PROGRAM = """
import asyncio, json, sys
from livekit.agents import APIConnectionError, APIConnectOptions, APIStatusError
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.worker.timed_voice import TimedVoice
async def spoken(url):
    voice = TimedVoice(Provider(base_url=url, model="m"), "")
    try:
        frames = [each.frame async for each in voice.synthesize("Hello.", conn_options=APIConnectOptions(max_retry=0))]
        return {"samples": sum(frame.samples_per_channel for frame in frames)}
    except APIConnectionError as error:
        return {"error": str(error)}
    except APIStatusError as error:
        return {"error": str(error), "status": error.status_code}
    finally:
        await voice.aclose()
print(json.dumps([asyncio.run(spoken(url)) for url in sys.argv[1:]]))
"""


@contextmanager
def answering(*events: dict[str, Any], status: int = 200) -> Iterator[str]:
    """A server that answers each POST with these events; yields its base URL."""
    body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def spoken(*urls: str) -> list[dict[str, Any]]:
    """How much audio comes of one text from each server, or the error."""
    environment = bare_environment(path=(str(PLUGIN), str(ROOT)))
    done = subprocess.run(
        [warm_python.path(), "-c", PROGRAM, *urls], env=environment, stdout=subprocess.PIPE, timeout=NEVER_S
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def delta(samples: int) -> dict[str, Any]:
    return {
        "type": "speech.audio.delta",
        "audio": base64.b64encode(bytes(range(200)) * (samples // 100)).decode(),
        "words": [],
    }


def test_one_event_may_hold_a_long_sentence_and_a_voice_that_breaks_is_a_failure() -> None:
    broken = {"type": "error", "error": {"message": "The voice broke: try again."}}
    with (
        answering(delta(240_000), {"type": "speech.audio.done"}) as whole,
        answering(delta(2400), broken) as breaks,
        answering(broken, status=503) as refuses,
    ):
        long, short, none = spoken(whole, breaks, refuses)
        assert 240_000 <= long["samples"] < 245_000, "livekit-agents adds a block of silence"
        assert "The voice broke" in short["error"]
        assert none["status"] == 503 and "try again" in none["error"]
