"""Renders made by the real factory: whole films, the same however often they were interrupted, ended once."""

from __future__ import annotations

import asyncio
import io
import time
import wave
import zipfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.factory import Factory
from musetalk_agent.judge import closures
from musetalk_agent.judge.closures import HeardText
from musetalk_agent.judge.film_judge import Judge
from musetalk_agent.judge.film_report import FilmReport
from musetalk_agent.judge.forced_alignment import AlignedWord
from musetalk_agent.media_types import Cue, Feature
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import (
    RenderEnd,
    RenderFolder,
    RenderFormat,
    RenderMark,
    RenderOrder,
    RenderRequest,
    RenderState,
    new_render_id,
)
from musetalk_agent.renders import known_speech, talking_frames
from musetalk_agent.renders.render_job import TRIES_MOST, RenderJobs
from musetalk_agent.weights import Manifest, ModelStore

RATE = 16_000
SECONDS = 9


class Bench:
    """A folder of renders, and one worker's hands without its process."""

    def __init__(self, root: Path, factory: Factory) -> None:
        self.folder, self.tickets = RenderFolder(root), []
        self.turns = 0
        self.on_turn = lambda: None
        self.jobs = RenderJobs(factory, self.folder, self._put, self._turn)

    tickets: list[RenderTicket]

    async def _put(self, tickets: list[RenderTicket]) -> None:
        self.tickets += tickets

    async def _turn(self) -> None:
        self.turns += 1
        self.on_turn()

    def order(
        self, sound: np.ndarray, marks: Sequence[RenderMark] = (), clips: dict[str, str] | None = None, **fields: object
    ) -> str:
        render_id = new_render_id("shop", None)
        request = RenderRequest.model_validate({"text": "x", "engine": "pattern", "width": 64, "height": 64, **fields})
        order = RenderOrder(
            render_id=render_id, key="shop", created_at=0.0, request=request, marks=list(marks), clips=clips or {}
        )
        self.folder.create(order)
        with wave.open(str(self.folder.path(render_id) / "voice.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(sound.astype("<i2").tobytes())
        return render_id

    async def make(self, render_id: str) -> RenderEnd | None:
        await self.jobs.do(RenderTicket(render_id=render_id))
        while self.tickets:
            await self.jobs.do(self.tickets.pop(0))
        return self.folder.ended(render_id)


@asynccontextmanager
async def worked(folder: Path, engine: str, cache: Path | None = None) -> AsyncIterator[Bench]:
    """A bench in `folder`, whose factory has `engine` by default. What it prepares is kept in `cache`, or in the folder too."""
    settings = AgentSettings(agent_api_key=SecretStr("k"), engine=engine, cache_dir=cache or folder / "cache")
    factory = Factory(settings)
    await factory.start()
    try:
        yield Bench(folder / "renders", factory)
    finally:
        await factory.aclose()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with worked(tmp_path, "pattern") as made:
        yield made


def bursts(seconds: int = SECONDS) -> np.ndarray:
    """Loud in the first half of every second, silent in the other."""
    at = np.arange(seconds * RATE)
    return np.where(at % RATE < RATE // 2, 20_000 * np.sin(at * 0.3), 0)


def film(path: Path) -> tuple[list[float], list[float], float]:
    """Times of the frames, their mean luma, and seconds of sound."""
    times, lumas = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(float(frame.time))
            lumas.append(float(frame.to_ndarray(format="gray")[16:48, 16:48].mean()))
    with av.open(str(path)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    return times, lumas, samples / RATE


async def test_a_film_has_every_frame_and_all_of_its_sound(bench: Bench) -> None:
    render_id = bench.order(bursts())
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    result = bench.folder.result(render_id, RenderFormat.MP4)
    times, lumas, seconds = film(result)
    assert times == pytest.approx([number / 25 for number in range(SECONDS * 25)])
    assert seconds == pytest.approx(SECONDS, abs=0.08)
    loud = [number % 25 < 12 for number in range(SECONDS * 25)]
    sure = [number % 25 not in (12, 13, 0, 24) for number in range(SECONDS * 25)]
    white = [luma > 120 for luma in lumas]
    assert [w for w, s in zip(white, sure, strict=True) if s] == [each for each, s in zip(loud, sure, strict=True) if s]
    assert end.bytes == result.stat().st_size and end.seconds == SECONDS
    left = {path.name for path in bench.folder.path(render_id).iterdir()}
    assert left == {"order.json", "plan.json", "end.json", "result.mp4"}


@pytest.mark.parametrize("burned", [False, True])
async def test_a_transcript_is_looked_for_once_for_mouth_captions_and_judge(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, burned: bool
) -> None:
    looked: list[str] = []
    judged: list[object] = []
    cued: list[list[Cue]] = []
    found = HeardText([AlignedWord("mama", 0.1, 0.6, (("M", 0.1, 0.2),))], [(0.1, 0.2)])

    def heard(text: str, *_: object) -> HeardText:
        looked.append(text)
        return found

    def decide(judge: Judge, film: Path, seen: Any, **given: Any) -> FilmReport:
        judged.append(given["lips_meet"])
        return real(judge, film, seen, **given)

    def decided(*given: Any) -> list[Feature | None]:
        cued.append(given[5])
        return features(*given)

    real, features = Judge.decide, talking_frames.decide
    monkeypatch.setattr(known_speech, "heard_text", heard)
    monkeypatch.setattr(closures, "heard_text", heard)
    monkeypatch.setattr(Judge, "decide", decide)
    monkeypatch.setattr(talking_frames, "decide", decided)
    end = await bench.make(render_id := bench.order(bursts(1), judge=True, transcript="mama", burn_captions=burned))
    assert end is not None and end.judge is not None and end.captions
    assert (end.timing, end.warnings) == ("phones", [])
    assert looked == ["mama"] and judged == [found.lips] and cued == [[Cue("m", 1600, 3200, found=True)]]
    assert "mama" in (bench.folder.path(render_id) / "result.srt").read_text()


async def test_a_transcript_that_is_not_found_is_a_warning_of_the_film(bench: Bench) -> None:
    end = await bench.make(bench.order(bursts(1), transcript="Добрый день"))
    assert end is not None and end.state is RenderState.DONE and not end.captions and end.timing is None
    (warning,) = end.warnings
    assert warning.code == "captions_unavailable" and "Latin letters" in warning.detail
    end = await bench.make(bench.order(bursts(1), transcript="Добрый день", burn_captions=True))
    assert end is not None and end.error is not None and end.error.code == "captions_unavailable"
    end = await bench.make(bench.order(bursts(1)))
    assert end is not None and end.warnings == []


async def test_a_film_is_judged_and_one_that_cannot_be_is_kept(bench: Bench, tmp_path: Path) -> None:
    end = await bench.make(bench.order(bursts(1), judge=True))
    assert end is not None and end.state is RenderState.DONE and end.judge is not None
    assert (end.judge["film"], end.judge["passed"], end.judge["faults"]) == ("result.mp4", False, ["no_face"])

    bench.jobs.factory.models = ModelStore(tmp_path / "nothing", Manifest.load())
    render_id = bench.order(bursts(1), judge=True)
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE and end.judge is not None
    assert (end.judge["passed"], end.judge["error"]["code"]) == (None, "weights_missing")
    assert bench.folder.result(render_id, RenderFormat.MP4).exists()

    with pytest.raises(ValidationError, match="judge: it looks at films of the format mp4 only"):
        bench.order(bursts(1), judge=True, format="png")


async def test_what_was_made_is_not_made_again(bench: Bench) -> None:
    whole = bench.order(bursts())
    await bench.make(whole)
    render_id = bench.order(bursts())
    await bench.jobs.do(RenderTicket(render_id=render_id))
    parts = bench.folder.path(render_id) / "parts"
    working = asyncio.create_task(bench.jobs.do(bench.tickets[0]))
    bench.on_turn = lambda: working.cancel() if list(parts.glob("0*")) else None  # dies after the first part
    with pytest.raises(asyncio.CancelledError):
        await working
    first = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert list(first) == ["000000.mp4"]
    seen: dict[str, int] = {}

    def look() -> None:
        seen.update({path.name: path.stat().st_mtime_ns for path in parts.glob("0*")})

    bench.on_turn = look
    await bench.jobs.do(bench.tickets.pop(0))
    assert seen["000000.mp4"] == first["000000.mp4"]
    ended = bench.folder.ended(render_id)
    assert ended is not None and ended.state is RenderState.DONE
    assert film(bench.folder.result(render_id, RenderFormat.MP4)) == film(bench.folder.result(whole, RenderFormat.MP4))


async def test_a_ticket_that_comes_twice_ends_a_render_once(bench: Bench) -> None:
    render_id = bench.order(bursts(5))
    await bench.jobs.do(RenderTicket(render_id=render_id))
    ticket = bench.tickets[0]
    await asyncio.gather(bench.jobs.do(ticket), bench.jobs.do(ticket))
    ended = bench.folder.ended(render_id)
    assert ended is not None and ended.state is RenderState.DONE
    assert len(film(bench.folder.result(render_id, RenderFormat.MP4))[0]) == 125
    await bench.jobs.do(ticket)
    assert bench.folder.ended(render_id) == ended


async def test_a_render_that_is_cancelled_stops_and_leaves_nothing(bench: Bench) -> None:
    render_id = bench.order(bursts())
    await bench.jobs.do(RenderTicket(render_id=render_id))
    cancelled = RenderEnd(state=RenderState.CANCELLED, at=time.time())
    bench.on_turn = lambda: bench.folder.end(render_id, cancelled) if bench.turns > 3 else None
    await bench.jobs.do(bench.tickets.pop(0))
    assert bench.folder.ended(render_id) == cancelled
    assert {path.name for path in bench.folder.path(render_id).iterdir()} == {"order.json", "plan.json", "end.json"}


async def test_frames_as_a_zip(bench: Bench) -> None:
    render_id = bench.order(bursts(5), format="png", fps=15)
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    with zipfile.ZipFile(bench.folder.result(render_id, RenderFormat.PNG)) as made:
        names = made.namelist()
        assert names == [*(f"{number:08d}.png" for number in range(75)), "sound.wav"]
        with wave.open(io.BytesIO(made.read("sound.wav"))) as sound:
            assert sound.getnframes() == 5 * RATE
        assert made.read(names[0])[:4] == b"\x89PNG"


async def test_a_sound_that_is_none_fails_with_its_code(bench: Bench) -> None:
    render_id = bench.order(bursts(1))
    (bench.folder.path(render_id) / "voice.wav").write_bytes(b"no sound")
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.FAILED and end.error is not None
    assert end.error.code == "audio_unreadable"


async def test_an_address_that_may_not_be_fetched_fails_with_its_code(bench: Bench) -> None:
    render_id = bench.order(bursts(1), text=None, audio_url="http://127.0.0.1/a.wav")
    end = await bench.make(render_id)
    assert end is not None and end.error is not None and end.error.code == "audio_url_forbidden"


async def test_a_render_on_which_workers_die_is_given_up(bench: Bench) -> None:
    render_id = bench.order(bursts(1))
    for _ in range(TRIES_MOST):
        bench.folder.tried(render_id, None)
    end = await bench.make(render_id)
    assert end is not None and end.error is not None and end.error.code == "render_failed"
