"""The embedded models' processes: each is started when a conversation first needs it, and kept running then."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator import worker_pipe
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.worker_process import NICE, WorkerLink, WorkerLost, WorkerProcess, WorkerTimes, bare_environment

START_S = 60.0
"""A cold start reads 100 MB and compiles nothing: 2 s on two idle cores, many times that beside other load."""
_EXIT_S = 2.0
ROOT = Path(__file__).resolve().parents[2]
MODELS = {"llm": "smollm2-135m-instruct", "stt": "whisper-tiny.en"}


class EmbeddedModel:
    """One model's server. Once it has started it is kept running, on the same port where that is free.

    Args:
        kind: `llm` or `stt`.
        python: interpreter of the environment that has it.
        threads: how many it may use.
        moved: is called when it runs again and has another port than before.
    """

    def __init__(self, kind: str, python: str, threads: int, moved: Callable[[], object]) -> None:
        self.kind = kind
        self._key = secrets.token_urlsafe(24)
        self._moved = moved
        self._starting = asyncio.Lock()
        self._settled = asyncio.Event()
        self._port = 0
        self._failure: str | None = None
        environment = bare_environment(threads, (str(ROOT),)) | {
            "MODEL_API_KEY": self._key,
            "PATH": os.defpath,
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to the others
        }
        self._arguments = (python, "-m", "orchestrator.conversation.embedded", kind, "--threads", str(threads))
        self._process = WorkerProcess(
            f"embedded {kind}",
            self._arguments,
            self._serve,
            times=WorkerTimes(exit_s=_EXIT_S),
            environment=environment,
            lost=self._on_lost,
            nice=NICE,
        )

    @property
    def pid(self) -> int | None:
        """Process id of its server while that runs."""
        return self._process.pid

    @property
    def provider(self) -> Provider:
        """Its address as of now; of use once `start` has returned."""
        return Provider(base_url=f"http://127.0.0.1:{self._port}/v1", model=MODELS[self.kind], api_key=self._key)

    async def start(self) -> None:
        """Starts the server where it has not been started.

        Raises ProblemError `conversation_unavailable` when it does not start. Cancelling is harmless.
        """
        async with self._starting:
            if self._port == 0:
                self._settled.clear()
                self._process.open()
                await self._settled.wait()
            if self._port == 0:
                await self._process.aclose()  # the next conversation tries again
                raise unavailable(f"the embedded {self.kind} did not start ({self._failure}); see the log")

    async def aclose(self) -> None:
        """Ends the process, within seconds. Idempotent."""
        await self._process.aclose()

    def _on_lost(self, reason: str) -> None:
        self._failure = reason
        self._settled.set()

    async def _serve(self, link: WorkerLink) -> None:
        head, _ = await link.receive(START_S)
        port = worker_pipe.decode_header(head).get("port")
        if not isinstance(port, int):
            raise WorkerLost("its first message has no port")
        moved, self._port = self._port not in (0, port), port
        self._process.command = (*self._arguments, "--port", str(port))
        self._settled.set()
        if moved:
            self._moved()
        await link.wait()
        raise WorkerLost("the process ended")


def unavailable(reason: str) -> ProblemError:
    """For a conversation that cannot be held here."""
    return ProblemError(
        ErrorCode.CONVERSATION_UNAVAILABLE,
        f"conversation: {reason}. Run `tools/setup conversation`, or start the session without a conversation.",
        field="conversation",
    )
