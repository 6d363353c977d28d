"""The engines of the process: which can run here, which one `auto` means, and a new one when a device fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import cached_property, partial
from typing import Any

from musetalk_agent.agent_metrics import ENGINE_BUSY, ENGINE_QUEUE
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engines.batcher import Batcher, BatcherStatistics
from musetalk_agent.engines.interface import Engine
from musetalk_agent.engines.musetalk.weights_files import files_state
from musetalk_agent.engines.pattern import PatternEngine
from musetalk_agent.errors import (
    AgentError,
    EngineFailed,
    EngineOutOfMemory,
    EngineUnavailable,
    EngineUnknown,
    WeightsInvalid,
    WeightsMissing,
)
from musetalk_agent.musetalk_choice import PROFILES, make_musetalk, musetalk_refusal
from musetalk_agent.protocol.http import FileState
from musetalk_agent.tasks import in_thread, supervise
from musetalk_agent.weights import ModelStore

log = logging.getLogger(__name__)

ENGINES = ("auto", "warp", "pattern", "musetalk")
RESTART_AFTER_S = (0.5, 2.0, 4.0)
"""Waits before a failed engine is made again. After the last the process gives up, and only a new process helps."""
PROBE_S = 2.0
"""A failed device that does not do the smallest piece of work within this time will not run a new engine either: some errors of a
card (an illegal address) leave its context in the process broken for good, and some leave the card hanging. The process ends at
once."""
_BUSY = 2.5  # a device on which an engine is being made may take so many times as long to answer
WEIGHTS_EVERY_S = 15.0
"""How often `auto`, where it has no weights for MuseTalk, looks whether they have come."""
USUAL_FPS = 25
"""Pictures a second of the session that `auto` wants MuseTalk to hold."""
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
        self.on_failure, self._on_lost = on_failure, on_lost
        self.busy: Callable[[], bool] = lambda: False
        """Whether sessions run: weights that come later are loaded while none does, because the import of torch stops the event
        loop."""
        self.lost = False
        self._profile: str = settings.musetalk_profile
        self._reduced: str | None = None  # why `auto` runs MuseTalk in another profile than the settings say
        self._weights_watch: asyncio.Task[None] | None = None
        self._batchers: dict[str, Batcher] = {}
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
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
        """Why a session that leaves the choice to the agent does not get MuseTalk, or not in the profile that the settings name;
        None where there is nothing to say."""
        asked = asked or self._settings.engine
        if asked != "auto":
            return None
        if "musetalk" in self._makers:
            return self._reduced
        refusal = self._refusals.get("musetalk") or self._musetalk_refusal
        reason = refusal.detail if refusal else "it was not loaded."
        return f"The engine is 'warp', not MuseTalk: {reason}"

    @cached_property
    def _musetalk_refusal(self) -> AgentError | None:
        """Why MuseTalk cannot run here. Looked at once: torch takes seconds to import, and cards do not come and go."""
        return self._refusal_now()

    def _refusal_now(self) -> AgentError | None:
        try:
            return self._look_for_musetalk()
        except Exception as error:  # torch and drivers raise anything, and another engine may serve
            log.exception("looking for MuseTalk failed")
            text = f"MuseTalk cannot be loaded here ({type(error).__name__}: {error})."
            return EngineUnavailable(text, field="engine", value="musetalk")

    def _look_for_musetalk(self) -> AgentError | None:
        return musetalk_refusal(self._settings, self._models)

    def _make_musetalk(self) -> Engine:
        return make_musetalk(self._settings, self._models, self._profile)

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Makes and warms every engine that can run here.

        An engine that does not start is left out: `resolve` says why, and `auto` means the next one. Raises what the engine raises
        that the settings name; for `auto`, when none of its engines starts.
        """
        for name in list(dict.fromkeys((self.default, *self._makers))):
            try:
                await self._begin_fitting(name)
            except Exception as error:  # an engine's boundary: drivers raise anything, and another engine may serve
                log.exception("engine did not start", extra={"engine": name})
                self._refuse(name, error)
                if name == self._settings.engine:
                    raise
        self.default = self.resolve(self._settings.engine)
        refusal = self._refusals.get("musetalk") or self._musetalk_refusal
        if self._settings.engine == "auto" and isinstance(refusal, (WeightsMissing, WeightsInvalid)):
            watch = supervise("weights-watch", self._look_for_weights)
            self._weights_watch = asyncio.create_task(watch, name="weights-watch")

    def _refuse(self, name: str, error: Exception) -> None:
        text = f"The engine {name!r} did not start: {error}"
        self._refusals[name] = type(error)(text) if isinstance(error, AgentError) else EngineUnavailable(text)
        self._makers.pop(name, None)

    async def _begin_fitting(self, name: str) -> None:
        """Begins an engine; `auto` begins MuseTalk in the first profile, from that of the settings on, that fits into the card's
        memory and holds one session. Raises what the first raises for another reason, and `EngineUnavailable` when none does."""
        if name != "musetalk" or self._settings.engine != "auto":
            await self._begin(name, self._makers[name], START_WITHIN_S)
            return
        make, failed = self._makers.get(name, self._make_musetalk), list[str]()
        for profile in PROFILES[PROFILES.index(self._settings.musetalk_profile) :]:
            self._profile = profile
            try:
                await self._begin(name, make, START_WITHIN_S)
            except AgentError as error:
                if not failed and not isinstance(error, EngineOutOfMemory):
                    raise
                why = error.detail
            else:
                engine = self._batchers[name].engine
                if engine.capacity(USUAL_FPS) != 0:
                    text = f"MuseTalk runs in the profile {self._profile!r}: {' '.join(failed)}"
                    self._reduced = text if failed else None
                    return
                await self._batchers.pop(name).aclose()
                pace = engine.stats().get("frames_per_second", 0)
                why = f"{engine.device} makes {pace:g} pictures a second, too few for one session with the rest that it needs."
            failed.append(f"In {self._profile!r}: {why}")
            log.warning("musetalk does not do in this profile", extra={"profile": self._profile, "reason": why})
            gc.collect()  # what the networks hold of the card, for the next
        raise EngineUnavailable(" ".join(failed), field="engine", value=name)

    async def _look_for_weights(self) -> None:
        """Begins MuseTalk for the sessions to come when its weights have arrived, or were replaced, while no session runs. Ends
        then."""
        directory = self._models.directory
        tried = seen = await in_thread(partial(files_state, directory), "weights-look")
        while True:
            await asyncio.sleep(WEIGHTS_EVERY_S)
            before, seen = seen, await in_thread(partial(files_state, directory), "weights-look")
            if seen == tried or seen != before or self.busy():  # nothing new, or it is still being written
                continue
            tried = seen
            refusal = self._musetalk_refusal = await in_thread(self._refusal_now, "musetalk-look")
            if refusal is not None:
                continue
            try:
                await self._begin_fitting("musetalk")
            except Exception as error:  # an engine's boundary: drivers raise anything, and the default engine serves on
                log.exception("the weights that came do not do")
                self._refuse("musetalk", error)
                continue
            self._refusals.pop("musetalk", None)
            self._makers["musetalk"] = self._make_musetalk
            self.default = self.resolve("auto")
            log.info("weights have come: sessions get MuseTalk from now on", extra={"profile": self._profile})
            return

    async def aclose(self) -> None:
        """Ends the engines' threads, all at once, within the time of `Batcher.aclose`. Sessions must be over."""
        tasks = [*self._restarts.values(), *([self._weights_watch] if self._weights_watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)
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

    async def _begin(self, name: str, make: Callable[[], Engine], within_s: float) -> None:
        """Raises what the engine raises, and `EngineFailed` when it is not ready in time."""
        try:
            async with asyncio.timeout(within_s):
                engine = await in_thread(make, f"engine-{name}-make", give_back=lambda made: made.close())
                batcher = Batcher(engine, on_failure=lambda error: self._failed(name, error))
                async with AsyncExitStack() as on_error:
                    on_error.push_async_callback(batcher.aclose)
                    await batcher.start()
                    on_error.pop_all()
        except TimeoutError as error:
            raise EngineFailed(f"the engine {name!r} was not ready within {within_s:g} s") from error
        self._batchers[name] = batcher
        # not of this batcher: the metric would keep an engine that was given up, and its weights, in memory
        ENGINE_QUEUE.labels(name).set_function(lambda: self._statistics(name).waiting)
        ENGINE_BUSY.labels(name).set_function(lambda: self._statistics(name).busy_s)

    def _statistics(self, name: str) -> BatcherStatistics:
        batcher = self._batchers.get(name)
        return batcher.statistics() if batcher else BatcherStatistics(0, 0, 0, 0.0)

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
        self._on_lost()

    async def _made_again(self, name: str) -> bool:
        old = self._batchers.pop(name, None)
        if old is not None:
            if not await self.answers(old.engine):
                return False  # closing it would take long, and for nothing
            await old.aclose()
        failures = self._failures[name]
        if len(failures) > FAILURES_MOST and failures[-1] - failures[0] < FAILURES_WITHIN_S:
            log.error("engine failed too often", extra={"engine": name, "failures": len(failures)})
            return False
        for wait_s in RESTART_AFTER_S:
            await asyncio.sleep(wait_s)
            begin = asyncio.create_task(self._begin(name, self._makers[name], RESTART_WITHIN_S), name=f"begin-{name}")
            gone = asyncio.create_task(self._device_gone(old.engine if old else None), name=f"probe-{name}")
            try:
                await asyncio.wait({begin, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not begin.done():
                    return False
                await begin
            except Exception as error:  # noqa: BLE001 - drivers raise anything while a card is broken; /health reports it and the loop retries
                log.error("engine did not start again", extra={"engine": name, "reason": str(error)})
                continue
            finally:
                for task in (begin, gone):
                    task.cancel()
                    self._ending.add(task)  # it may wait for a device that hangs
                    task.add_done_callback(self._ending.discard)
            return True
        return False

    async def _device_gone(self, engine: Engine | None) -> None:
        """Returns when a device on which an engine is being made does not answer any more. It is asked patiently: it has work to
        do."""
        while True:
            await asyncio.sleep(PROBE_S)
            if engine is not None and not await self.answers(engine, _BUSY * PROBE_S):
                return

    async def answers(self, engine: Engine, within_s: float | None = None) -> bool:
        """Whether an engine's device does the smallest piece of work within `PROBE_S`, or `within_s`, in this process."""
        limit_s = PROBE_S if within_s is None else within_s
        try:
            async with asyncio.timeout(limit_s):
                await in_thread(engine.probe, f"engine-{engine.name}-probe")
        except Exception as error:  # noqa: BLE001 - a broken context raises anything; it is logged, and the process ends
            reason = str(error) or f"it did not answer within {limit_s:g} s"
            log.error("the device of an engine is gone", extra={"engine": engine.name, "reason": reason})
            return False
        return True
