"""Whether this machine can run MuseTalk, and how fast: libraries, driver, card, memory, weights; and what the agent makes of it."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.face_restorer import RESTORER
from musetalk_agent.card_estimates import card_of, frames_per_second, sessions
from musetalk_agent.checks import Check
from musetalk_agent.engine_pool import EnginePool
from musetalk_agent.engines.musetalk.card_facts import CardFacts, find_driver, look
from musetalk_agent.engines.musetalk.compiling import compiler_fault
from musetalk_agent.engines.musetalk.weights_files import CONVERTED, Half, find, musetalk_state
from musetalk_agent.errors import WeightsMissing
from musetalk_agent.weights import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GIB = 1 << 30
MEMORY = {"quality": 5.2, "lower": 5.2, "fast": 3.2}
"""GiB of the card: float16 weights 1.9 (1.8 with TAESD), graphs of all batch sizes 2.5 (0.7), CUDA's context 0.7. Not measured."""
MEMORY_LEAST = 3.0
"""GiB with which the smallest batches still run."""
_FPS = 25
_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")
_HALVES: dict[str | None, Half] = {None: "fp16", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class DoctorMachine:
    """What is looked at, and whether MuseTalk has to run here.

    Args:
        settings: the agent's.
        store: the models folder.
        hashes: whether files that were not hashed yet are.
        progress: takes a sentence about what takes long.
    """

    settings: AgentSettings
    store: ModelStore
    hashes: bool = True
    progress: Callable[[str], None] = lambda _: None

    @property
    def wants_musetalk(self) -> bool:
        """False where the settings name another engine."""
        return self.settings.engine in ("auto", "musetalk")

    @property
    def wants_card(self) -> bool:
        """MuseTalk on a card, and not on the processor."""
        return self.wants_musetalk and self.settings.musetalk_device.startswith("cuda")


def check_musetalk(machine: DoctorMachine) -> Iterator[Check]:
    """What MuseTalk needs, in the order in which it is to be cured. With `engine` auto a machine without NVIDIA's driver needs none
    of it, and one line says so."""
    needed = machine.settings.engine == "musetalk" or not machine.wants_card or find_driver().version is not None
    absent = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if absent:
        cure = "pip install 'musetalk-livekit[musetalk]' (in a checkout: tools/setup torch)"
        yield Check("libraries", f"{', '.join(absent)} is not installed", cure, needed=needed)
    else:
        yield Check("libraries", ", ".join(_LIBRARIES))
        if machine.wants_card:
            facts = look(machine.settings.musetalk_device)
            yield from check_card(facts, machine.settings.musetalk_profile, needed=needed)
            if facts.fault and not needed:
                return
            yield from check_kernels(machine.settings)
    yield from check_weights(machine, needed=needed)


def check_card(facts: CardFacts, profile: str, *, needed: bool) -> Iterator[Check]:
    """Driver, card and memory; of a driver that does not serve, only that."""
    driver = facts.driver
    cuda = f", CUDA {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else ""
    found = f"{driver.version or 'none'}{cuda}; torch {facts.torch}"
    figures = {"driver": driver.version, "torch": facts.torch, "torch_cuda": facts.torch_cuda}
    if facts.fault and facts.name is None:
        yield Check("driver", found, facts.fault, needed=needed, figures=figures)
        return
    yield Check("driver", found, figures=figures)
    capability = ".".join(map(str, facts.capability or ()))
    figures = {"card": facts.name, "capability": capability, "device": facts.device}
    yield Check(
        "card", f"{facts.name} ({capability}), {facts.device}", facts.fault or "", needed=needed, figures=figures
    )
    yield _memory(facts, profile, needed=needed)
    yield _estimate(facts, profile, needed=needed)


def check_kernels(settings: AgentSettings) -> Iterator[Check]:
    """Whether fused kernels can be compiled; without them a card makes a quarter to a half fewer frames, and nothing breaks."""
    if settings.musetalk_fuse == "off":
        return
    fault = compiler_fault(settings.kernels_dir)
    found = (
        "they cannot be compiled: the network runs in plain torch"
        if fault
        else f"compiled once, kept in {settings.kernels_dir}"
    )
    yield Check("kernels", found, fault or "", needed=False)


def _memory(facts: CardFacts, profile: str, *, needed: bool) -> Check:
    if facts.memory_free is None or facts.memory_total is None:
        return Check("memory", "the driver does not say")
    free, total, wanted = facts.memory_free / _GIB, facts.memory_total / _GIB, MEMORY[profile]
    found = f"{free:.1f} of {total:.1f} GiB free, about {wanted} needed for the profile {profile}"
    figures = {"memory_free": facts.memory_free, "memory_total": facts.memory_total}
    if free >= wanted:
        return Check("memory", found, figures=figures)
    cure = f"stop what holds the other {total - free:.1f} GiB (nvidia-smi lists it)" if total >= wanted else ""
    cure = cure or "set MUSETALK_PROFILE=fast, or use a larger card"
    return Check("memory", found, cure, needed=needed and free < MEMORY_LEAST, figures=figures)


def _estimate(facts: CardFacts, profile: str, *, needed: bool) -> Check:
    card = card_of(facts.name or "", facts.memory_total)
    if card is None:
        return Check("estimate", "none: this card is not in the table")
    held, pace = sessions(card, profile), frames_per_second(card, profile)
    found = f"{held} sessions, {pace:.0f} frames a second with the profile {profile}, by a model of the card"
    faster = next((name for name in ("lower", "fast") if sessions(card, name) > 0), None)
    cure = f"set MUSETALK_PROFILE={faster}" if held == 0 and faster else ""
    return Check("estimate", found, cure, needed=needed and bool(cure), figures={"estimated_sessions": held})


def check_weights(machine: DoctorMachine, *, needed: bool) -> Iterator[Check]:
    """The files that MuseTalk loads: there, whole, and faster to load."""
    store, profile = machine.store, machine.settings.musetalk_profile
    missing = musetalk_state(store)
    if missing:
        found = f"{', '.join(missing[:3])}{' …' if len(missing) > 3 else ''} missing from {store.directory}"
        yield Check("weights", found, "musetalk-agent fetch-models musetalk", needed=needed)
        return
    yield _hashes(machine)
    if profile == "fast" and find(store.directory, "taesd", None) is None:
        found = f"the profile fast needs TAESD, which is not in {store.directory}"
        yield Check("weights of fast", found, "musetalk-agent fetch-models fast", needed=needed)
    if machine.settings.musetalk_restore != "off":
        yield _restore(store)
    half = _HALVES.get(machine.settings.musetalk_precision)
    slow = [part for part in CONVERTED if (file := find(store.directory, part, half)) and file.half != half]
    if slow and half and machine.wants_card:
        found = f"no half-precision copy of {', '.join(slow)}: each start reads twice as much"
        yield Check("copies", found, "musetalk-agent convert-weights", needed=False)


def _restore(store: ModelStore) -> Check:
    """Rooms do without restoration where it cannot be."""
    try:
        store.path(RESTORER)
    except WeightsMissing as error:
        return Check("restore", error.detail.partition(";")[0], "musetalk-agent fetch-models restore", needed=False)
    if importlib.util.find_spec("onnxruntime") is None:
        cure = "pip install 'musetalk-livekit[restore]', or onnxruntime-gpu for a card"
        return Check("restore", "onnxruntime is not installed", cure, needed=False)
    return Check("restore", f"{RESTORER}; what a face takes is measured when the engine starts")


def _hashes(machine: DoctorMachine) -> Check:
    """Files of one's own training may stay, so another hash is reported and is no fault: loading looks at keys and shapes."""
    store, groups = machine.store, {"musetalk", *(["fast"] if machine.settings.musetalk_profile == "fast" else [])}
    states = store.state()
    names = [name for name, entry in store.manifest.entries.items() if entry.group in groups and states[name].exists]
    size = sum(states[name].bytes or 0 for name in names)
    if machine.hashes and any(states[name].verified is None for name in names):
        machine.progress(f"hashing {size / 1e9:.1f} GB in {store.directory} (once)")
    verdicts = {name: store.verify(name) if machine.hashes else states[name].verified for name in names}
    other = [name for name, verdict in verdicts.items() if verdict is False]
    unknown = [name for name, verdict in verdicts.items() if verdict is None]
    found = f"{len(names)} files, {size / 1e9:.1f} GB in {store.directory}"
    figures = {"files": verdicts}
    if other:
        cure = "`musetalk-agent fetch-models musetalk` brings the published ones; your own may stay"
        return Check(
            "weights", f"{found}; {', '.join(other)} is not the published one", cure, needed=False, figures=figures
        )
    hashed = f"{len(unknown)} of them not hashed" if unknown else "every sha256 as in the manifest"
    return Check(
        "weights", f"{found}, {hashed}" if names else f"half-precision copies in {store.directory}", figures=figures
    )


async def check_engine(machine: DoctorMachine) -> Check:
    """Starts the engines as the agent does, and says which one sessions get and how many it holds. Never raises; cancelling ends
    the engines."""
    machine.progress("starting the engine, which measures itself (up to minutes)")
    begun = time.monotonic()
    try:
        pool = EnginePool(machine.settings, machine.store)
        try:
            await pool.start()
            return _of(pool, machine, time.monotonic() - begun)
        finally:
            await pool.aclose()
    except Exception as error:  # noqa: BLE001 - what the agent would end with: drivers raise anything
        return Check("engine", f"the agent would not start: {error}", "see above, or AGENT_ENGINE=auto")


def _of(pool: EnginePool, machine: DoctorMachine, took_s: float) -> Check:
    name, holds, note = pool.default, pool.capacity(pool.default, _FPS), pool.note(None)
    figures = {
        "engine": name,
        "device": pool.device,
        "sessions": holds,
        "start_s": round(took_s, 1),
        "figures": pool.stats(),
    }
    held = "no limit of its own" if holds is None else f"{holds} sessions at {_FPS} frames a second, measured"
    found = f"{name} on {pool.device}, {held}, ready after {took_s:.1f} s"
    if holds == 0:
        cure = "set MUSETALK_PROFILE=lower or fast, or AGENT_ENGINE=warp"
        return Check("engine", found, cure, figures=figures)
    return Check("engine", f"{found}. {note}" if note else found, figures=figures)
