"""Fuzzes the readers of avatars by mutation: `nice -n 10 python -m tests.musetalk_agent.avatars.hostile.fuzz --seconds 600`.

Small honest files of every kind that is read, made here, are damaged at random and given to a decoder process as the agent does.
What should not happen is written to `--keep`: a process that was lost, an error without a code, more than five seconds of CPU, or
more than 400 MB. The random numbers are seeded, so that a run can be repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import os
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import psutil
from PIL import Image

from musetalk_agent.avatars.decoder_pool import DecoderPool
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarError
from musetalk_agent.protocol.http import Picture
from musetalk_agent.weights import default_models_dir
from tests.musetalk_agent.avatars.cards import BT2020, FULL, HLG, Film, clap, with_clap
from tests.musetalk_agent.avatars.clips import encoded, face, frames_zip, moving, noise, video
from tests.musetalk_agent.avatars.made_pictures import (
    DISPLAY_P3,
    gain_mapped_jpeg,
    oriented,
    palette_png,
    png_with_late_exif,
)

_LIMITS = AvatarLimits()
_OPAQUE = np.full((96, 96), 255, np.uint8)
_SLOW_CPU_S = 5.0
_LARGE_BYTES = 400 << 20
_WORDS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1000, 65_536, 1 << 24)


def _pillow(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    pictures = [Image.fromarray(cv2.cvtColor(p, cv2.COLOR_BGR2RGB)) for p in moving(3, 96)]
    pictures[0].save(out, kind, **options | ({"append_images": pictures[1:]} if options.get("save_all") else {}))
    return out.getvalue()


def _alpha() -> bytes:
    picture = cv2.cvtColor(face(96), cv2.COLOR_BGR2BGRA)
    picture[:40, :, 3] = 0
    return encoded(picture, ".webp")


def _heic() -> bytes:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(cv2.cvtColor(face(96), cv2.COLOR_BGR2RGB))).save(out)
    return out.getvalue()


def _progressive() -> bytes:
    return bytes(cv2.imencode(".jpg", face(96), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])


SEEDS: dict[str, Callable[[], bytes]] = {
    "mp4": lambda: video(moving(4, 96)),
    "mov": lambda: video(moving(4, 96), container="mov", codec="mpeg4"),
    "mp4-av1": lambda: video(moving(3, 96), codec="libsvtav1"),
    "mp4-hevc": lambda: video(moving(3, 96), codec="libx265"),
    "webm-vp8": lambda: video(moving(4, 96), container="webm", codec="libvpx"),
    "webm-vp9": lambda: video(moving(4, 96), container="webm", codec="libvpx-vp9"),
    "webm-av1": lambda: video(moving(3, 96), container="webm", codec="libsvtav1"),
    "mpeg": lambda: video(moving(4, 96), container="mpeg", codec="mpeg1video"),
    "avi": lambda: video(moving(4, 96), container="avi", codec="mpeg4"),
    "avi-h264": lambda: Film("avi", tagged=False).of(moving(4, 96)),
    "avi-divx3": lambda: Film("avi", "msmpeg4", tagged=False).of(moving(4, 96)),
    "avi-mjpeg": lambda: Film("avi", "mjpeg", "yuvj420p", range=FULL).of(moving(3, 96)),
    "avi-raw": lambda: Film("avi", "rawvideo", "bgr24", tagged=False).of(moving(3, 96)),
    "mpegts": lambda: Film("mpegts", options={"x264-params": "tff=1"}).of(moving(4, 96)),
    "mp4-turned": lambda: with_clap(Film(turn=90, sar=Fraction(2, 5)).of(moving(4, 96)), clap(80, 80, 4, -4)),
    "mp4-hdr": lambda: Film(codec="libx265", pix_fmt="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=HLG).of(
        moving(3, 96)
    ),
    "webm-alpha": lambda: Film("webm", "libvpx-vp9", "yuva420p", alpha=_OPAQUE).of(moving(4, 96)),
    "webm-alpha8": lambda: Film(
        "webm", "libvpx", "yuva420p", tagged=False, alpha=_OPAQUE, options={"auto-alt-ref": "0"}
    ).of(moving(4, 96)),
    "mov-prores": lambda: Film("mov", "prores_ks", "yuva444p10le", alpha=_OPAQUE).of(moving(2, 96)),
    "mov-animation": lambda: Film("mov", "qtrle", "argb", tagged=False, alpha=_OPAQUE).of(moving(3, 96)),
    "mov-png": lambda: Film("mov", "png", "rgba", tagged=False, alpha=_OPAQUE).of(moving(2, 96)),
    "png": lambda: encoded(face(96)),
    "apng": lambda: _pillow("PNG", save_all=True),
    "jpeg": lambda: encoded(face(96), ".jpg"),
    "jpeg-progressive": _progressive,
    "webp": lambda: encoded(face(96), ".webp"),
    "webp-alpha": _alpha,
    "webp-animated": lambda: _pillow("WEBP", save_all=True),
    "gif": lambda: _pillow("GIF", save_all=True),
    "avif": lambda: _pillow("AVIF"),
    "avif-animated": lambda: _pillow("AVIF", save_all=True),
    "heic": _heic,
    "jpeg-exif": lambda: oriented("JPEG", 6),
    "png-exif": lambda: png_with_late_exif(8),
    "jpeg-profile": lambda: _pillow("JPEG", icc_profile=DISPLAY_P3),
    "jpeg-mpo": gain_mapped_jpeg,
    "png-palette": palette_png,
    "zip": lambda: frames_zip([*moving(2, 96), noise(96, 96)]),
}


def damaged(data: bytes, dice: random.Random) -> bytes:
    """A few of the usual accidents."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        at = dice.randrange(len(out)) if dice.random() < 0.5 else dice.randrange(min(len(out), 700))
        act = dice.randrange(7)
        if act == 0:
            out[at] = dice.randrange(256)
        elif act == 1:
            out[at] ^= 1 << dice.randrange(8)
        elif act == 2:
            form = dice.choice((">I", "<I", ">H", "<H"))
            word = struct.pack(form, dice.choice(_WORDS) & (0xFFFFFFFF if form[1] == "I" else 0xFFFF))
            out[at : at + len(word)] = word
        elif act == 3:
            length = dice.randrange(1, 64)
            del out[at : at + length]
        elif act == 4:
            piece = out[at : at + dice.randrange(1, 400)]
            out[at:at] = piece * dice.choice((1, 2, 50))
        elif act == 5:
            other = dice.randrange(len(out))
            length = dice.randrange(1, 64)
            out[at : at + length] = out[other : other + length]
        else:
            out = out[: max(16, at)] if dice.random() < 0.3 else out
        if len(out) < 16:
            return bytes(data)
    return bytes(out)


async def fuzz(kinds: list[str], seconds: float, seed: int, keep: Path) -> Counter[str]:
    """Runs the fuzzer; returns how often what came of a file."""
    seeds = {}
    for kind in kinds:
        try:
            seeds[kind] = SEEDS[kind]()
        except Exception as error:  # noqa: BLE001 - this FFmpeg has no such encoder
            print(f"{kind}: no seed ({error})")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 makes root's threads real-time ones
    outcomes: Counter[str] = Counter()
    pool = DecoderPool(1, default_models_dir())
    dice = random.Random(seed)
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        while time.monotonic() < until:
            kind = dice.choice(list(seeds))
            data = damaged(seeds[kind], dice)
            source.write_bytes(data)
            outcome, cpu, peak = await _tried(pool, source)
            outcomes[f"{kind}: {outcome}"] += 1
            if outcome in ("lost", "crash") or cpu > _SLOW_CPU_S or peak > _LARGE_BYTES:
                name = f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
                (keep / name).write_bytes(data)
                print(f"{name}: {outcome}, {cpu:.1f} s of CPU, {peak >> 20} MB, {len(data)} bytes", flush=True)
            if sum(outcomes.values()) % 1000 == 0:
                print(f"{sum(outcomes.values())} files", flush=True)
    pool.close()
    return outcomes


async def _tried(pool: DecoderPool, source: Path) -> tuple[str, float, int]:
    """What came of a file, the CPU seconds and the most memory it took."""
    before = {pid: _figures(pid) for pid in pool.pids}
    with tempfile.TemporaryDirectory() as bundle:
        request = {
            "do": "build",
            "source": str(source),
            "avatar_id": "fuzz",
            "key": "fuzz",
            "picture": Picture().model_dump(),
            "limits": asdict(_LIMITS),
            "models": str(default_models_dir()),
            "folder": bundle,
        }
        try:
            await pool.run(lambda call: call(request), _LIMITS)
            outcome = "prepared"
        except AvatarError as error:
            lost = error.__cause__ is not None and type(error.__cause__).__name__ == "DecoderLost"
            outcome = f"lost ({error.__cause__})"[:300] if lost else type(error).__name__
            if lost:
                print(outcome)
                outcome = "lost"
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            print(f"{type(error).__name__}: {error}")
            outcome = "crash"
    cpu, peak = 0.0, 0
    for pid, (spent, _) in before.items():
        now = _figures(pid)
        cpu, peak = max(cpu, now[0] - spent), max(peak, now[1])
    return outcome, cpu, peak


def _figures(pid: int) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a process since the last look; zeros of one that is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
        status = Path(f"/proc/{pid}/status").read_text()
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew (proc(5))
    except (OSError, psutil.Error):
        return 0.0, 0
    peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
    return times.user + times.system, peak


def main() -> None:
    """Runs it and prints what came of the files."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(SEEDS), help="kinds, separated by commas")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-finds")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    for line, count in sorted(
        asyncio.run(fuzz(options.only.split(","), options.seconds, options.seed, options.keep)).items()
    ):
        print(f"{count:7} {line}")


if __name__ == "__main__":
    main()
