"""Whether MuseTalk can run on this machine, and in which profile. Imports torch only where there are weights for it."""

from __future__ import annotations

import importlib.util

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.engines.interface import Engine
from musetalk_agent.errors import AgentError, EngineUnavailable, WeightsMissing
from musetalk_agent.weights import ModelStore

LIBRARIES = ("torch", "diffusers", "transformers", "safetensors")
PROFILES = ("quality", "lower", "fast")
"""From the slowest to the fastest, and from the largest to the smallest. `auto` goes on to the next where one does not do."""


def musetalk_refusal(settings: AgentSettings, models: ModelStore) -> AgentError | None:
    """Why MuseTalk cannot run here: a library, a file of weights, or a card that this build of torch computes on is not there."""
    if absent := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        text = f"{', '.join(absent)} is not installed: install the extra [musetalk]."
        return EngineUnavailable(text, field="engine", value="musetalk")
    from musetalk_agent.engines.musetalk.weights_files import musetalk_state

    if missing := musetalk_state(models):
        text = f"{', '.join(missing)} is missing from {models.directory}: run `musetalk-agent fetch-models musetalk`."
        return WeightsMissing(text, field="engine", value="musetalk")
    if settings.musetalk_device.startswith("cuda"):
        from musetalk_agent.engines.musetalk.card_facts import look

        if fault := look(settings.musetalk_device).fault:
            text = f"{fault} MUSETALK_DEVICE=cpu runs it on the processor, at seconds a picture."
            return EngineUnavailable(text, field="engine", value="musetalk")
    return None


def make_musetalk(settings: AgentSettings, models: ModelStore, profile: str) -> Engine:
    """The engine as the settings describe it, but for its profile. Raises what `MuseTalkEngine` raises."""
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.profiles import Options

    options = Options(
        device=settings.musetalk_device,
        profile=profile,
        precision=settings.musetalk_precision,
        lookahead_ms=settings.musetalk_lookahead_ms,
        bbox_shift=settings.musetalk_bbox_shift,
        restore=settings.musetalk_restore,
        fuse=settings.musetalk_fuse,
        kernels_dir=settings.kernels_dir,
    )
    return MuseTalkEngine(models.directory, options)
