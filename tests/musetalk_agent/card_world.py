"""An agent with MuseTalk's real engine on a fake card, and sessions of a real face on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from musetalk_agent import engine_pool, factory
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.engines import batcher
from musetalk_agent.engines.interface import Engine
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import AgentStartRequest, AvatarSource
from musetalk_agent.service.live_sessions import LiveSessions
from musetalk_agent.session import session
from musetalk_agent.session.session import Session
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved
from tests.musetalk_agent.faulty import GatedPublisher
from tests.musetalk_agent.stand import tone

if TYPE_CHECKING:
    import torch

    from tests.fakes.cuda import FakeCuda

POSES = 1
_ENCODED: dict[tuple[torch.dtype, float, bytes], torch.Tensor] = {}
"""Latents by type and weights of the encoder, and by the faces: all sessions here show the same ones."""
_READ: dict[tuple[Path, int, int], dict[str, torch.Tensor]] = {}
"""Weights by their file: it is mapped, and what an engine makes of them it makes anew."""


def paint(
    patch: pytest.MonkeyPatch, cuda: FakeCuda | None = None, good: Callable[[Any], bool] = lambda network: True
) -> None:
    """Gives the engine a network that paints grey at once, in buckets of one and two frames. Its weights are loaded all the same,
    of files that are read once.

    `good` says of the network (`decoder`, `dtype`) whether what it paints is fit to be shown.
    """
    import torch
    from torch import nn

    from musetalk_agent.engines.musetalk import building, device, engine, loading
    from musetalk_agent.engines.musetalk.network import FaceEncoder

    class Painted(nn.Module):
        def __init__(self, encoder: nn.Module, unet: nn.Module, decoder: nn.Module, dtype: torch.dtype) -> None:
            super().__init__()
            self.encoder, self.unet, self.decoder, self.dtype = encoder, unet, decoder, dtype
            self.positions = next(encoder.parameters())

        def forward(self, mel: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if cuda is not None:
                cuda.work(len(mel))
            rows = 8 * (32 - getattr(self.decoder, "first_row", 0))
            return torch.full((len(mel), rows, 256, 3), 90, dtype=torch.uint8), torch.full(
                (len(mel),), good(self), dtype=torch.bool
            )

    read = loading.read_tensors

    def known(path: Path) -> dict[str, torch.Tensor]:
        file = path.stat()
        key = path, file.st_mtime_ns, file.st_size
        if key not in _READ:
            _READ[key] = read(path)
        return dict(_READ[key])

    encode = FaceEncoder.forward

    def encoded(self: FaceEncoder, faces: torch.Tensor) -> torch.Tensor:
        weights = self.quant_conv.weight
        key = weights.dtype, float(weights.float().sum()), faces.cpu().numpy().tobytes()
        if key not in _ENCODED:
            _ENCODED[key] = encode(self, faces)
        return _ENCODED[key].clone()

    patch.setattr(FaceEncoder, "forward", encoded)
    patch.setattr(loading, "read_tensors", known)
    patch.setattr(building, "Network", Painted)
    measured = engine.MuseTalkEngine.capacity

    def capacity(self: engine.MuseTalkEngine, fps: int) -> int | None:
        """A card that takes no time by itself is as slow as this machine is busy: it holds eight sessions all the same."""
        return measured(self, fps) if cuda is not None and cuda.seconds(1) > 0 else 8

    patch.setattr(engine.MuseTalkEngine, "capacity", capacity)
    patch.setattr(engine, "BUCKETS", (1, 2))
    patch.setattr(device, "SETTLE_S", 0.0)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Makes every deadline short, so that what hangs is found out quickly, and engines are made again at once."""
    from musetalk_agent.engines.musetalk import device, engine, runner

    patch.setattr(engine_pool, "RESTART_AFTER_S", (0.01, 0.01))
    patch.setattr(engine_pool, "PROBE_S", 0.5)
    patch.setattr(batcher.Batcher.__init__, "__defaults__", (None, 1.0, 1.0))
    for module in (device, engine, runner):
        patch.setattr(module, "ANSWER_S", 1.0)
    patch.setattr(factory, "OPEN_WITHIN_S", 2.0)
    for module, name in ((batcher, "_JOIN_S"), (batcher, "_CLOSE_S"), (session, "RELEASE_S"), (session, "LEAVE_S")):
        patch.setattr(module, name, 0.5)


@dataclass
class CardWorld:
    """The agent without its HTTP side. `lost` is set where the process would end with 70."""

    cuda: FakeCuda
    factory: Factory
    sessions: LiveSessions
    lost: asyncio.Event

    async def start(self, session_id: str, engine: str = "musetalk") -> Session:
        request = AgentStartRequest(
            session_id=session_id,
            room="r",
            livekit_url="ws://x",
            livekit_token="t",
            avatar=AvatarSource(),
            engine=engine,
        )
        return await self.sessions.start(request)

    def speak(self, session_id: str, seconds: float) -> None:
        """A whole segment. One vowel is known to last through it, or a tone would not be speech for long."""
        found = self.sessions.get(session_id)
        number = found.receiver.segments + 1
        vowel = {"phoneme": "a", "start": 0, "end": round(16_000 * seconds)}
        found.receiver.take(f'{{"type":"segment.start","segment":{number},"sample_rate":16000}}')
        found.receiver.take(json.dumps({"type": "segment.cues", "segment": number, "cues": [vowel]}))
        found.receiver.take(tone(seconds).tobytes())
        found.receiver.take('{"type":"segment.end"' + f',"segment":{number}}}')


@asynccontextmanager
async def card_world(
    folder: Path, models: Path, cuda: FakeCuda, patch: pytest.MonkeyPatch, **settings: Any
) -> AsyncIterator[CardWorld]:
    """Not started yet: `factory.start` may fail too."""

    async def bundle(self: Factory, request: AgentStartRequest, engine: Engine) -> Bundle:
        made = bundle_of(folder / request.session_id, [moved(40 + x, 20, 0.5, (400, 360)) for x in range(POSES)])
        await asyncio.to_thread(engine.prepare, made)
        return made

    patch.setattr(Factory, "_bundle", bundle)
    patch.setattr(AvatarLibrary, "warm", lambda self: None)  # decoder processes: no clip is read here
    # the processor is slow in float16
    values = {
        "agent_api_key": "k",
        "musetalk_precision": "float32",
        "cache_dir": folder / "cache",
        "models_dir": models,
        **settings,
    }
    lost = asyncio.Event()
    shop = Factory(AgentSettings.model_validate(values), publisher=lambda *_: GatedPublisher(), on_engine_lost=lost.set)
    made = CardWorld(cuda, shop, LiveSessions(shop), lost)
    try:
        yield made
    finally:
        cuda.release()
        await made.sessions.aclose()
        await shop.aclose()
