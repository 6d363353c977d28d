"""The embedded models' processes: each is started when a conversation first needs it, and started again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.worker_pipe import end, log_errors

START_S = 60.0
"""A cold start reads 100 MB and compiles nothing: 2 s on two idle cores, many times that beside other load."""
_EXIT_S = 2.0
ROOT = Path(__file__).resolve().parents[2]
MODELS = {"llm": "smollm2-135m-instruct", "stt": "whisper-tiny.en"}
log = logging.getLogger(__name__)


class EmbeddedModel:
    """One model's server.

    Args:
        kind: `llm` or `stt`.
        python: interpreter of the environment that has it.
        threads: how many it may use.
    """

    def __init__(self, kind: str, python: str, threads: int) -> None:
        self.kind = kind
        self._command = (python, "-m", "orchestrator.conversation.embedded", kind, "--threads", str(threads))
        self._key = secrets.token_urlsafe(24)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._errors: asyncio.Task[None] | None = None
        self._port = 0

    async def provider(self) -> Provider:
        """Starts the server where it does not run, and returns its address.

        Raises ProblemError `conversation_unavailable` when it does not start. Cancelling while it starts ends it.
        """
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._stop()
                await self._start()
        return Provider(base_url=f"http://127.0.0.1:{self._port}/v1", model=MODELS[self.kind], api_key=self._key)

    async def aclose(self) -> None:
        """Ends the process, within seconds. Idempotent."""
        await self._stop()

    async def _start(self) -> None:
        pipe = asyncio.subprocess.PIPE
        environment = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "MODEL_API_KEY": self._key, "PATH": os.defpath}
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
            )
        except OSError as error:
            raise unavailable(f"the embedded {self.kind} cannot be started: {error.strerror}") from error
        self._errors = asyncio.create_task(log_errors(process, log, f"embedded {self.kind} stderr"))
        assert process.stdout is not None
        try:
            async with AsyncExitStack() as on_error:  # failed or cancelled: the process must not stay without an owner
                on_error.push_async_callback(self._stop)
                async with asyncio.timeout(START_S):
                    line = await process.stdout.readline()
                self._port = int(line)
                on_error.pop_all()
        except (TimeoutError, ValueError) as error:
            raise unavailable(
                f"the embedded {self.kind} did not start ({type(error).__name__}); see the log"
            ) from error

    async def _stop(self) -> None:
        process, self._process = self._process, None
        errors, self._errors = self._errors, None
        if process is not None:
            await end(process, _EXIT_S)
        if errors is not None:
            errors.cancel()
            await asyncio.wait([errors])


def unavailable(reason: str) -> ProblemError:
    """For a conversation that cannot be held here."""
    return ProblemError(
        ErrorCode.CONVERSATION_UNAVAILABLE,
        f"conversation: {reason}. Run `tools/setup conversation`, or start the session without a conversation.",
        field="conversation",
    )
