"""The rule of silence on the MuseTalk engine: no frame of a quiet microphone reaches its network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.features.extractor import HOLD_S
from tests.fakes.weights import write_models
from tests.late import late_imports
from tests.musetalk_agent.card_world import card_world, paint
from tests.waiting import until

with late_imports("torch", "diffusers", "transformers"):
    from tests.fakes.cuda import fake_cuda


@pytest.mark.parametrize("dbfs", [None, -60.0])
async def test_a_quiet_segment_reaches_the_network_for_half_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dbfs: float | None
) -> None:
    """A segment counts as speech at its beginning; the mouth closes over four frames more."""
    seconds, made = 3, list[int]()
    quiet = np.zeros(16_000 * seconds, np.int16)
    if dbfs is not None:
        quiet += np.random.default_rng(1).normal(0, 32_768 * 10 ** (dbfs / 20), len(quiet)).astype(np.int16)
    with fake_cuda(monkeypatch) as cuda:
        paint(monkeypatch, cuda)
        models = write_models(tmp_path / "models")
        async with card_world(tmp_path, models, cuda, monkeypatch, engine="musetalk") as here:
            await here.factory.start()
            session = await here.start("a")
            launch = here.factory.engines.batcher("musetalk").engine._runner.launch  # type: ignore[attr-defined]  # MuseTalk's

            def counted(mels: list[object], latents: list[object]) -> object:
                made.append(len(mels))
                return launch(mels, latents)

            monkeypatch.setattr(here.factory.engines.batcher("musetalk").engine._runner, "launch", counted)  # type: ignore[attr-defined]  # MuseTalk's
            session.receiver.take(json.dumps({"type": "segment.start", "segment": 1, "sample_rate": 16_000}))
            session.receiver.take(quiet.tobytes())
            session.receiver.take(json.dumps({"type": "segment.end", "segment": 1}))
            await until(lambda: "playback.finished" in [e.event.type for e in session.events.after(0)])
    assert 0 < sum(made) <= 25 * HOLD_S + 1 + 4
