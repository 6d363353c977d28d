"""`python -m tests.bench.livekit_agents`: fifty utterances of a real agent of livekit-agents, half of them interrupted."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

from musetalk_tools.livekit_server import LiveKitServer, find
from tests.bench.figures import Figure
from tests.integrations.livekit_agents.world import MISSING, Scene, heard_to, scene

_SHORT, _LONG = 12, 50
_MOST_S = 30.0


async def conversation(utterances: int, interruptions: int, seed: int) -> list[Figure]:
    """Every second one is interrupted 0.1 … 3 s after its beginning, until there were enough."""
    program = find()
    assert program is not None, "livekit-server is missing: run `tools/setup livekit`"
    server, draw = LiveKitServer(program, log_level="error"), random.Random(seed)
    await server.start()
    try:
        async with scene(server.access) as playing:
            errors, answers, hangs = [], [], 0
            for number in range(utterances):
                stop_after = draw.uniform(0.1, 3.0) if number % 2 and number // 2 < interruptions else None
                try:
                    error_s, answer_s = await _utter(playing, number + 1, stop_after)
                except AssertionError as hang:
                    print(hang, file=sys.stderr)
                    hangs += 1
                    continue
                errors.append(error_s)
                answers += [answer_s] if stop_after is not None else []
            talker = playing.talker
            await asyncio.sleep(1)
            extra = len(talker.of("finished")) - utterances
            note = f"{utterances} utterances, {len(answers)} interrupted; complaints: {talker.complaints}"
            return [
                Figure("livekit-agents: hangs", hangs, "", 0, note=note),
                Figure("livekit-agents: playback_finished too many or too few", abs(extra), "", 0),
                Figure("livekit-agents: complaints of the package", len(talker.complaints), "", 0),
                Figure("livekit-agents: position error, largest", 1000 * max(errors), "ms", 60),
                Figure("livekit-agents: position error, median", 1000 * sorted(errors)[len(errors) // 2], "ms"),
                Figure("livekit-agents: interruption to playback_finished, largest", 1000 * max(answers), "ms"),
            ]
    finally:
        await server.stop()


async def _utter(playing: Scene, number: int, stop_after: float | None) -> tuple[float, float]:
    """Seconds of error in the position, and from the interruption to its acknowledgement."""
    talker, ears = playing.talker, playing.ears
    ears.forget()
    await talker.do("say", symbols=_SHORT if stop_after is None else _LONG)
    await talker.wait("started", number, _MOST_S)
    if stop_after is not None:
        await asyncio.sleep(stop_after)
        await talker.do("interrupt")
    asked = time.monotonic()
    finished = await talker.wait("finished", number, _MOST_S)
    answered_s = time.monotonic() - asked
    await talker.wait("said", number, _MOST_S)
    assert finished["interrupted"] is (stop_after is not None), finished
    await asyncio.sleep(0.5)
    truth_s = heard_to(ears) if stop_after is not None else finished["sent"]
    error_s = abs(finished["position"] - truth_s)
    if error_s > 0.05:
        print(f"no. {number}: reported {finished['position']:.3f} s, heard {truth_s:.3f} s", file=sys.stderr)
    return error_s, answered_s


def main() -> int:
    """Prints one JSON line a figure."""
    parser = argparse.ArgumentParser(prog="bench.livekit_agents", description=__doc__)
    parser.add_argument("--utterances", type=int, default=50)
    parser.add_argument("--interruptions", type=int, default=25)
    parser.add_argument("--seed", type=int, default=6)
    options = parser.parse_args()
    if MISSING is not None:
        print(MISSING, file=sys.stderr)
        return 1
    for figure in asyncio.run(conversation(options.utterances, options.interruptions, options.seed)):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
