"""`make bench`: one JSON line a figure. `--only` names some of them; `--seconds 600` is the ten minutes of the skew's bar."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from tests.bench import composition, engine, microphone, patch_cost, preparation, room, session_cost, voices
from tests.bench.figures import Figure

BENCHES: dict[str, Callable[[int], Awaitable[list[Figure]]]] = {
    "frame_cost": lambda _: engine.frame_cost(),
    "patch_cost": lambda _: patch_cost.patch_cost(),
    "composition": lambda _: composition.composition(),
    "latency": lambda _: engine.latency(),
    "start": room.start,
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
    parser.add_argument("--only", default="", help=f"names separated by commas: {', '.join(BENCHES)}")
    parser.add_argument("--seconds", type=int, default=60, help="length of the skew's measurement (default 60)")
    options = parser.parse_args()
    for name in [n for n in options.only.split(",") if n] or BENCHES:
        for figure in asyncio.run(BENCHES[name](options.seconds)):
            print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
