"""The engines of the process: which can run here, which one `auto` means, and a new one when a device fails."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cached_property
from typing import Any

from musetalk_agent.agent_metrics import ENGINE_BUSY, ENGINE_QUEUE
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engines.batcher import Batcher
from musetalk_agent.engines.interface import Engine
from musetalk_agent.engines.pattern import PatternEngine
from musetalk_agent.errors import (
    AgentError,
    EngineFailed,
    EngineUnavailable,
    EngineUnknown,
    WeightsInvalid,
    WeightsMissing,
)
from musetalk_agent.protocol.http import FileState
from musetalk_agent.tasks import in_thread
from musetalk_agent.weights import ModelStore

log = logging.getLogger(__name__)

ENGINES = ("auto", "warp", "pattern", "musetalk")
RESTART_AFTER_S = (1.0, 5.0, 15.0)
"""Waits before a failed engine is made again. After the last the process gives up: some errors of a card (an illegal address)
leave its context in the process broken for good, and only a new process helps."""
FAILURES_MOST = 5
FAILURES_WITHIN_S = 600.0
"""An engine that failed more often than this in so long is given up, however well it starts again: every failure ends its sessions,
and a card that breaks at each first frame would go on like that for ever."""
START_WITHIN_S = 900.0
"""An engine that is not ready by then is stuck: `MUSETALK_FUSE=compile` takes some minutes at the first start on a machine."""
RESTART_WITHIN_S = 300.0
"""The same for an engine that is made again: what was compiled is cached by then."""
_AUTO = ("musetalk", "warp")
"""What `auto` means: the first of these that runs here."""
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")

OnFailure = Callable[[str, EngineFailed], None]
OnLost = Callable[[], None]


def make_warp() -> Engine:
    """The CPU engine with its own mouth network."""
    from musetalk_agent.engines.warp.engine import WarpEngine
    from musetalk_agent.features.visemes import VisemeFeatures

    return WarpEngine(VisemeFeatures.load())


class EnginePool:
    """One batcher per engine that can run here, shared by all sessions.

    Args:
        settings: of the agent; `engine` is the default for sessions that name none.
        models: the models folder.
        on_failure: called on the event loop with the name of an engine whose device failed; it is already being made again.
        on_lost: called on the event loop when that did not help: the process should end.

    Raises:
        EngineUnknown, EngineUnavailable, WeightsMissing: the engine that the settings name cannot run here.
    """

    def __init__(
        self,
        settings: AgentSettings,
        models: ModelStore,
        on_failure: OnFailure = lambda name, error: None,
        on_lost: OnLost = lambda: None,
    ) -> None:
        self._settings, self._models = settings, models
        self.on_failure, self.on_lost = on_failure, on_lost
        self.lost = False
        self._batchers: dict[str, Batcher] = {}
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, deque[float]] = {}  # when each engine last failed, `FAILURES_MOST` + 1 times at most
        self._refusals: dict[str, AgentError] = {}  # of engines that did not start
        self._makers: dict[str, Callable[[], Engine]] = {"warp": make_warp, "pattern": PatternEngine}
        if settings.engine in ("auto", "musetalk") and self._musetalk_refusal is None:
            self._makers["musetalk"] = self._make_musetalk
        self.default = self.resolve(settings.engine)
        if note := self.note(settings.engine):
            log.warning("engine auto is not MuseTalk", extra={"engine": self.default, "reason": note})

    # --- names -------------------------------------------------------------------------------------------------------

    def resolve(self, asked: str | None) -> str:
        """The engine of a session that asks for `asked`. Raises `EngineUnknown`, `EngineUnavailable`, `WeightsMissing`."""
        name = asked or self.default
        if name not in ENGINES:
            raise EngineUnknown(
                f"There is no engine {name!r}; this agent knows {', '.join(ENGINES)}.", field="engine", value=name
            )
        if name == "auto":
            name = next((engine for engine in _AUTO if engine in self._makers), _AUTO[-1])
        if name in self._refusals:
            why = self._refusals[name]
            raise type(why)(why.detail, field="engine", value=name)
        if name not in self._makers:
            raise self._musetalk_refusal or EngineUnavailable(
                f"This agent was started with AGENT_ENGINE={self._settings.engine} and has not loaded MuseTalk.",
                field="engine",
                value=name,
            )
        return name

    def note(self, asked: str | None) -> str | None:
        """Why a session that leaves the choice to the agent does not get MuseTalk; None where there is nothing to say."""
        asked = asked or self._settings.engine
        if asked != "auto" or "musetalk" in self._makers:
            return None
        refusal = self._refusals.get("musetalk") or self._musetalk_refusal
        reason = refusal.detail if refusal else "it was not loaded."
        return f"The engine is 'warp', not MuseTalk: {reason}"

    @cached_property
    def _musetalk_refusal(self) -> AgentError | None:
        """Why MuseTalk cannot run here. Looked at once: torch takes seconds to import, and cards do not come and go."""
        try:
            return self._look_for_musetalk()
        except Exception as error:  # torch and drivers raise anything, and another engine may serve
            log.exception("looking for MuseTalk failed")
            text = f"MuseTalk cannot be loaded here ({type(error).__name__}: {error})."
            return EngineUnavailable(text, field="engine", value="musetalk")

    def _look_for_musetalk(self) -> AgentError | None:
        absent = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
        if absent:
            text = f"{', '.join(absent)} is not installed: install the extra [musetalk]."
            return EngineUnavailable(text, field="engine", value="musetalk")
        from musetalk_agent.engines.musetalk.weights_files import musetalk_state

        if missing := musetalk_state(self._models):
            text = f"{', '.join(missing)} is missing from {self._models.directory}: run `musetalk-agent fetch-models musetalk`."
            return WeightsMissing(text, field="engine", value="musetalk")
        if self._settings.musetalk_device.startswith("cuda"):
            from musetalk_agent.engines.musetalk.card_facts import look

            if fault := look(self._settings.musetalk_device).fault:
                text = f"{fault} MUSETALK_DEVICE=cpu runs it on the processor, at seconds a picture."
                return EngineUnavailable(text, field="engine", value="musetalk")
        return None

    def _make_musetalk(self) -> Engine:
        from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
        from musetalk_agent.engines.musetalk.profiles import Options

        settings = self._settings
        options = Options(
            device=settings.musetalk_device,
            profile=settings.musetalk_profile,
            precision=settings.musetalk_precision,
            lookahead_ms=settings.musetalk_lookahead_ms,
            bbox_shift=settings.musetalk_bbox_shift,
            fuse=settings.musetalk_fuse,
            kernels_dir=settings.kernels_dir,
        )
        return MuseTalkEngine(self._models.directory, options)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes and warms every engine that can run here.

        An engine that does not start is left out: `resolve` says why, and `auto` means the next one. Raises what the engine raises
        that the settings name; for `auto`, when none of its engines starts.
        """
        for name in list(dict.fromkeys((self.default, *self._makers))):
            try:
                await self._begin(name, START_WITHIN_S)
            except Exception as error:  # an engine's boundary: drivers raise anything, and another engine may serve
                log.exception("engine did not start", extra={"engine": name})
                text = f"The engine {name!r} did not start: {error}"
                self._refusals[name] = type(error)(text) if isinstance(error, AgentError) else EngineUnavailable(text)
                del self._makers[name]
                if name == self._settings.engine:
                    raise
        self.default = self.resolve(self._settings.engine)

    async def aclose(self) -> None:
        """Ends the engines' threads, all at once, within the time of `Batcher.aclose`. Sessions must be over."""
        for task in self._restarts.values():
            task.cancel()
        await asyncio.gather(*self._restarts.values(), return_exceptions=True)
        batchers = list(self._batchers.values())
        self._batchers.clear()
        await asyncio.gather(*(batcher.aclose() for batcher in batchers), return_exceptions=True)

    def batcher(self, name: str) -> Batcher:
        """The batcher of an engine that `resolve` gave. Raises `EngineFailed` while it is being made again."""
        batcher = self._batchers.get(name)
        if batcher is None or batcher.failed is not None:
            raise EngineFailed(f"The engine {name!r} is starting again after its device failed.", retry_after_s=5)
        return batcher

    @property
    def ready(self) -> bool:
        """False while an engine is being made again."""
        return not self._restarts

    @property
    def device(self) -> str:
        """The default engine's device."""
        batcher = self._batchers.get(self.default)
        return batcher.engine.device if batcher else "none"

    def stats(self) -> dict[str, Any]:
        """The default engine's measurements and the fill of its batches, for `/debug`."""
        batcher = self._batchers.get(self.default)
        if batcher is None:
            return {}
        done = batcher.statistics()
        sizes = {str(size): count for size, count in (done.sizes or {}).items()}
        counts = {"frames": done.frames, "batches": sizes, "waiting": done.waiting, "dropped": done.dropped}
        return batcher.engine.stats() | counts | {"busy_s": round(done.busy_s, 3)}

    def model_files(self) -> dict[str, FileState]:
        """The state of every model file; reads the disk."""
        from musetalk_agent.engines.musetalk.weights_files import copies_state

        return self._models.state() | copies_state(self._models.directory)

    def model_config(self) -> tuple[str | None, dict[str, Any] | None]:
        """Path and content of MuseTalk's configuration; a broken one says what is wrong with it. Reads the disk."""
        from musetalk_agent.engines.musetalk.config import unet_config
        from musetalk_agent.engines.musetalk.weights_files import UNET_CONFIG

        path = self._models.directory / UNET_CONFIG
        try:
            config = unet_config(self._models.directory)
        except WeightsInvalid as error:
            return str(path), {"error": error.detail}
        return (str(path), config) if config is not None else (None, None)

    def capacity(self, name: str, fps: int) -> int | None:
        """Sessions that the engine holds at `fps`, all speaking; None where it sets no limit, 0 while it is away."""
        batcher = self._batchers.get(name)
        return batcher.engine.capacity(fps) if batcher else 0

    async def _begin(self, name: str, within_s: float) -> None:
        """Raises what the engine raises, and `EngineFailed` when it is not ready in time."""
        try:
            async with asyncio.timeout(within_s):
                engine = await in_thread(self._makers[name], f"engine-{name}-make", give_back=lambda made: made.close())
                batcher = Batcher(engine, on_failure=lambda error: self._failed(name, error))
                async with AsyncExitStack() as on_error:
                    on_error.push_async_callback(batcher.aclose)
                    await batcher.start()
                    on_error.pop_all()
        except TimeoutError as error:
            raise EngineFailed(f"the engine {name!r} was not ready within {within_s:g} s") from error
        self._batchers[name] = batcher
        ENGINE_QUEUE.labels(name).set_function(lambda: batcher.statistics().waiting)
        ENGINE_BUSY.labels(name).set_function(lambda: batcher.statistics().busy_s)

    def _failed(self, name: str, error: EngineFailed) -> None:
        log.error("engine failed; it is made again", extra={"engine": name, "reason": error.detail})
        self._failures.setdefault(name, deque(maxlen=FAILURES_MOST + 1)).append(time.monotonic())
        self._restarts[name] = asyncio.create_task(self._restart(name), name=f"restart-{name}")
        self.on_failure(name, error)

    async def _restart(self, name: str) -> None:
        """Makes the engine again, or ends the process when that fails."""
        try:
            again = await self._made_again(name)
        except Exception:  # the task's boundary: otherwise /health would answer 503 for ever
            log.exception("the restart of an engine broke", extra={"engine": name})
            again = False
        if again:
            del self._restarts[name]
            log.info("engine runs again", extra={"engine": name})
            return
        self.lost = True
        log.critical("engine is lost; the process ends", extra={"engine": name})
        self.on_lost()

    async def _made_again(self, name: str) -> bool:
        old = self._batchers.pop(name, None)
        if old is not None:
            await old.aclose()
        failures = self._failures[name]
        if len(failures) > FAILURES_MOST and failures[-1] - failures[0] < FAILURES_WITHIN_S:
            log.error("engine failed too often", extra={"engine": name, "failures": len(failures)})
            return False
        for wait_s in RESTART_AFTER_S:
            await asyncio.sleep(wait_s)
            try:
                await self._begin(name, RESTART_WITHIN_S)
            except Exception as error:  # noqa: BLE001 - drivers raise anything while a card is broken; /health reports it and the loop retries
                log.error("engine did not start again", extra={"engine": name, "reason": str(error)})
                continue
            return True
        return False
