"""A dub of footage with two people, measured before it is encoded: `python -m tests.bench.dubs CLIPS ONE OTHER [--seconds 180]`.

`CLIPS/ONE` and `CLIPS/OTHER` hold a few short clips each of two talkers with their sound (`dub_footage`). The footage cuts between
them, shows both, one who listens to the other, black frames and titles; the new voice is other sentences of theirs, with no pause.
It prints: frames that must be untouched and are not; of the frames with a visible speaker in which the new voice speaks, those in
which that face alone is changed; pixels that are changed away from any face; seconds it took.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.factory import Factory
from musetalk_agent.features.speech_detector import SpeechDetector
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import RenderFolder, RenderFormat, RenderOrder, RenderRequest, new_render_id
from musetalk_agent.renders.dub import dub_job
from musetalk_agent.renders.dub.footage import Footage, FootageFrame, footage_limits
from musetalk_agent.renders.dub.footage_scan import FootageScan
from musetalk_agent.renders.render_job import RenderJobs
from tests.bench.dub_footage import FPS, RATE, SIZE, Clip, Shot, read_clip, write
from tests.bench.figures import Figure

_NOTICED = 25
"""Changed pixels of luma from which on a mouth counts as changed."""


class Comparison:
    """Compares each frame that goes to the encoder with the footage's, where it is changed: left, right, and away from faces."""

    def __init__(self, footage: Path) -> None:
        self._frames: Iterator[FootageFrame] = Footage(footage, footage_limits(7200, 8 << 30)).frames()
        self._at = -1
        self.changed: list[tuple[int, int]] = []
        self.boxes: list[tuple[int, int, int, int] | None] = []
        self.sheet: list[np.ndarray] = []

    def see(self, frame: VideoFrame) -> None:
        """Frames come in order, each once."""
        own = next(self._frames)
        self._at += 1
        assert frame.idle_index == self._at, "frames in order"
        width, height = own.size
        made = frame.i420.reshape(-1, width)
        differs = made[:height] != own.planes[:height]
        if not differs.any() and (made != own.planes).any():
            differs[0, 0] = True  # its chroma alone: no mouth does that
        self.changed.append((int(differs[:, : width // 2].sum()), int(differs[:, width // 2 :].sum())))
        rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])) if len(rows) else None
        self.boxes.append(box)
        if self._at % 90 == 60:
            pair = [cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420) for planes in (own.planes, made)]
            self.sheet.append(cv2.resize(np.hstack(pair), None, fx=0.4, fy=0.4, interpolation=cv2.INTER_AREA))


def voice_of(people: list[list[Clip]], seconds: float) -> np.ndarray:
    """Speech without a pause, int16 at 48 kHz: the talkers' sentences, in another order than in the footage."""
    sounds = [clip.sound[RATE // 4 : -RATE // 4] for clip in [*people[1][::-1], *people[0][::-1]]]
    once = np.concatenate(sounds)
    return np.resize(once, int(seconds * RATE))


def speaks_at(voice: np.ndarray, frames: int) -> np.ndarray:
    """Whether the new voice speaks in each frame of the film: bool `[frames]`."""
    detector = SpeechDetector.shipped()
    at_16k = voice[::3]
    said = np.array([v for at in range(0, len(at_16k), 16_000) for v in detector.push(at_16k[at : at + 16_000])], bool)
    index = ((np.arange(frames) + 0.5) / FPS * 50).astype(int)
    return np.where(index < len(said), said[np.minimum(index, len(said) - 1)], False)


def figures(shots: list[Shot], seen: Comparison, speaks: np.ndarray, look: FootageScan) -> dict[str, Any]:
    """The bench's figures."""
    cuts, with_face = set(look.cuts.tolist()), set(look.frame.tolist())
    untouched = [k for shot in shots if shot.kind in ("black", "title", "listens") for k in shot.frames]
    wrong = [k for k in untouched if seen.boxes[k] is not None]
    right = total = other = 0
    for shot in shots:
        if shot.kind not in ("A", "B", "AB"):
            continue
        for k in shot.frames:
            if not speaks[k]:
                continue
            total += 1
            left_side, right_side = (value > _NOTICED for value in seen.changed[k])
            if shot.kind == "AB":
                mine, theirs = (left_side, right_side) if shot.speaks == 0 else (right_side, left_side)
                right += mine and not theirs
                other += theirs
            else:
                right += left_side or right_side
    return {
        "frames": len(seen.boxes),
        "cuts_made": len(shots) - 1,
        "cuts_found": len(look.cuts) - 1,
        "cuts_missed": sum(shot.frames.start not in cuts for shot in shots),
        "frames_that_must_be_untouched": len(untouched),
        "of_them_changed": len(wrong),
        "speaking_frames": total,
        "right_person_share": round(right / max(1, total), 4),
        "frames_with_the_other_changed_too": other,
        "frames_changed_without_a_face": sum(
            box is not None and k not in with_face for k, box in enumerate(seen.boxes)
        ),
        "widest_change_px": max((box[2] - box[0] for box in seen.boxes if box is not None), default=0),
    }


def judged(shape: str, found: dict[str, Any], took: float) -> list[Figure]:
    """The figures beside their bars."""
    return [
        Figure(f"dub: {shape}: cuts not found", found["cuts_missed"], f"of {found['cuts_made']}", 0),
        Figure("dub: cuts found that are none", found["cuts_found"] - found["cuts_made"] + found["cuts_missed"], "", 0),
        Figure(
            "dub: frames that must be untouched and are not, before encoding",
            found["of_them_changed"],
            f"of {found['frames_that_must_be_untouched']}",
            0,
        ),
        Figure(
            "dub: speaking frames in which the right face alone is changed",
            100 * found["right_person_share"],
            "%",
            95,
            at_least=True,
            note=f"{found['speaking_frames']} frames; the other face changed in {found['frames_with_the_other_changed_too']}",
        ),
        Figure("dub: frames without a face that are changed", found["frames_changed_without_a_face"], "", 0),
        Figure("dub: widest change", found["widest_change_px"], "px"),
        Figure("dub: it took", took, "s"),
    ]


async def dub(
    footage: Path, voice: np.ndarray, root: Path, out: Path | None
) -> tuple[Comparison, FootageScan, float, str]:
    """Makes the dub in this process; returns what was compared, what was seen, seconds, and the engine."""
    factory = Factory(AgentSettings(agent_api_key=SecretStr("k"), engine="warp", cache_dir=root / "cache"))
    await factory.start()
    folder, tickets = RenderFolder(root / "renders"), list[RenderTicket]()
    compared, real = Comparison(footage), dub_job.part_writer

    def watching(path: Path, *args: Any) -> Any:
        writer = real(path, *args)
        write_frame = writer.write

        def seen(frame: VideoFrame) -> None:
            compared.see(frame)
            write_frame(frame)

        writer.write = seen  # type: ignore[method-assign]  # the bench looks at what is encoded
        return writer

    async def put(more: list[RenderTicket]) -> None:
        tickets.extend(more)

    async def turn() -> None:
        return

    dub_job.part_writer = watching
    render_id = new_render_id("bench", None)
    request = RenderRequest(video_url="(a file)", text="(a file)")
    folder.create(RenderOrder(render_id=render_id, key="", created_at=0.0, request=request))
    own = folder.path(render_id) / "dub"
    own.mkdir()
    (own / "footage").symlink_to(footage)
    with wave.open(str(folder.path(render_id) / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(voice.astype("<i2").tobytes())
    begun = time.perf_counter()
    try:
        jobs = RenderJobs(factory, folder, put, turn)
        await jobs.do(RenderTicket(render_id=render_id))
        look = FootageScan.load(own)
        while tickets:
            await jobs.do(tickets.pop(0))
    finally:
        await factory.aclose()
    took = time.perf_counter() - begun
    end = folder.ended(render_id)
    assert end is not None and end.error is None, end
    if out is not None:
        shutil.copy(folder.result(render_id, RenderFormat.MP4), out / "dubbed.mp4")
    return compared, look, took, "warp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument(
        "--out", type=Path, default=None, help="keeps the films, and a sheet of frames before and after"
    )
    args = parser.parse_args()
    people = [[read_clip(path) for path in sorted((args.clips / who).iterdir())] for who in (args.one, args.other)]
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shots = write(root / "footage.mp4", people, args.seconds)
        frames = shots[-1].frames.stop
        voice = voice_of(people, frames / FPS)
        compared, look, took, engine = asyncio.run(dub(root / "footage.mp4", voice, root, args.out))
        found = figures(shots, compared, speaks_at(voice, frames), look)
        shape = f"{args.one} {args.other}, {engine}, {SIZE[0]}×{SIZE[1]}, {frames / FPS:.0f} s"
        for figure in judged(shape, found, took):
            print(figure.line(), flush=True)
        if args.out is not None:
            shutil.copy(root / "footage.mp4", args.out / "footage.mp4")
            rows = [np.hstack(compared.sheet[k : k + 3]) for k in range(0, len(compared.sheet) - 2, 3)]
            cv2.imwrite(str(args.out / "sheet.png"), np.vstack(rows))


if __name__ == "__main__":
    main()
