"""Turn-taking: holds the avatar's voice while a user speaks, and resumes or ends it depending on what the user said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from livekit.agents import AgentSession
from livekit.plugins.musetalk.output import AvatarOutput

from orchestrator.conversation.worker.interruption import is_backchannel, spoken

log = logging.getLogger(__name__)

ANSWER_S = 1.0
"""A word said within the last second of a reply answers it: "yes" is no backchannel then."""
HELD_MOST_S = 6.0
"""After so long without a person's voice the avatar goes on, even if the recogniser has not answered."""


class Floor:
    """Turn-taking of one conversation. `hold` may come at any time and often; each end of speech brings one `settle`.

    Args:
        session: whose speech is held and interrupted.
        output: where it is heard.
        language: of the user, BCP 47.
    """

    def __init__(self, session: AgentSession[None], output: AvatarOutput, language: str) -> None:
        self._session = session
        self._output = output
        self._language = language
        self._held = self._cut = False
        self._speaking = False
        self._remaining_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def hold(self) -> None:
        """A person speaks."""
        self._speaking = True
        self._watch()
        if self._held or self._session.current_speech is None:
            return
        self._held, self._remaining_s = True, self._output.remaining_s
        self._session.output.audio.pause()

    def cut(self) -> None:
        """A person speaks, and says more than "mhm": what the avatar says is over."""
        if self._held and not self._cut:
            self._cut = True
            self._spawn(self._interrupt)

    def interrupt(self) -> None:
        """The service asks for silence."""
        self._spawn(self._interrupt)

    def quiet(self) -> None:
        """The person speaks no more; what was said is not known yet."""
        self._speaking = False

    async def settle(self, text: str) -> str:
        """What the recogniser heard; empty for nothing. Returns the text if it is a turn of the user, and else nothing.

        Cancelling leaves the voice held until `HELD_MOST_S`.
        """
        text = spoken(text)
        # a person may say "mhm" without a hold: the recogniser was slower than `HELD_MOST_S`, or the avatar was about to go on
        if (self._held or self._session.agent_state == "speaking") and not self._cut and self._ignored(text):
            text = ""
        if text and self._held:
            await self._interrupt()
        if not self._speaking:
            self._go_on()
        return text

    def close(self) -> None:
        """Ends what is under way. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def _ignored(self, text: str) -> bool:
        remaining_s = self._remaining_s if self._held else self._output.remaining_s
        near_the_end = remaining_s is not None and remaining_s < ANSWER_S
        return not text or (is_backchannel(text, self._language) and not near_the_end)

    async def _interrupt(self) -> None:
        try:
            await self._session.interrupt()
        except RuntimeError as error:  # the session ends
            log.info("nothing to interrupt", extra={"error": repr(error)})

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._held:
            self._held = self._cut = False
            self._session.output.audio.resume()

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(HELD_MOST_S, self._go_on)

    def _spawn(self, job: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            await job()

        task = asyncio.create_task(run(), name="floor")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
