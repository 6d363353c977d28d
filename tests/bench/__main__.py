"""`make bench`: one JSON line a figure. `--only` names some of them; `--seconds 600` is the ten minutes of the skew's bar."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.bench import (
    composition,
    elsewhere,
    engine,
    microphone,
    patch_cost,
    picture,
    preparation,
    room,
    session_cost,
    voices,
)
from tests.bench.figures import Figure

BENCHES: dict[str, Callable[[int], Awaitable[list[Figure]]]] = {
    "frame_cost": lambda _: engine.frame_cost(),
    "patch_cost": lambda _: patch_cost.patch_cost(),
    "composition": lambda _: composition.composition(),
    "latency": lambda _: engine.latency(),
    "start": room.start,
    "first_session": room.first_session,
    "elsewhere": elsewhere.elsewhere,
    "switch": elsewhere.switch,
    "in_step": room.in_step,
    "microphone": microphone.microphone,
    "barge_in": room.barge_in,
    "cycles": room.cycles,
    "capacity": room.capacity,
    "session_cost": session_cost.session_cost,
    "voices": voices.voices,
    "preparation": lambda _: preparation.preparation(),
    "largest": lambda _: preparation.largest(),
}


def main() -> int:
    """Runs the benches in order."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", default="", help=f"names separated by commas: {', '.join([*BENCHES, 'picture'])}")
    parser.add_argument("--seconds", type=int, default=60, help="length of the skew's measurement (default 60)")
    parser.add_argument(
        "--faces", type=Path, default=None, help="folder of clips for the bench `picture` (default: a drawn face)"
    )
    options = parser.parse_args()
    benches = {**BENCHES, "picture": lambda _: picture.picture(options.faces)}
    for name in [n for n in options.only.split(",") if n] or benches:
        for figure in asyncio.run(benches[name](options.seconds)):
            print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
