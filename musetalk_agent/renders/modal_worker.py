"""A worker at Modal: does the tickets that Modal brings, one at a time; see `protocol.modal_renders`."""

from __future__ import annotations

import asyncio
from typing import Self

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.modal_renders import ModalRenders
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import RenderFolder
from musetalk_agent.renders.render_job import RenderJobs


class ModalWorker:
    """Engines that are loaded once, and the folder of renders.

    Args:
        settings: `renders_dir` is the volume's, `renders_queue` is `modal://APP`; None reads them from the environment.

    Raises ValueError where one of them is missing.
    """

    def __init__(self, settings: AgentSettings | None = None) -> None:
        settings = settings or offline_settings()
        if settings.renders_dir is None or settings.renders_queue is None:
            raise ValueError("RENDERS_DIR and RENDERS_QUEUE are to be set: the volume's folder, and modal://APP")
        self._modal = ModalRenders(settings.renders_queue.get_secret_value())
        self._factory = Factory(settings)
        self._folder = RenderFolder(settings.renders_dir, self._modal)

    async def start(self) -> Self:
        """Loads the engines. Raises EngineUnavailable and the like where none can run."""
        await self._factory.start()
        return self

    async def do(self, render_id: str, span: int | None) -> None:
        """Does a ticket. What it raises makes Modal bring it again; its tries are counted. Cancelling leaves what is done."""
        if not await asyncio.to_thread(self._folder.fetch):
            raise RuntimeError("what other containers wrote cannot be seen: files of the volume are open here")
        jobs = RenderJobs(self._factory, self._folder, self._put, _at_once)
        await jobs.do(RenderTicket(render_id=render_id, span=span))
        await asyncio.to_thread(self._folder.publish)

    async def aclose(self) -> None:
        """Ends the engines."""
        await self._factory.aclose()

    async def _put(self, tickets: list[RenderTicket]) -> None:
        await asyncio.to_thread(self._modal.put, *tickets)


async def _at_once() -> None:
    """There are no live sessions in a container for renders."""
