"""Sessions held with real rooms: livekit-server, VP8, a viewer for each; what `hold` leaves out."""

from __future__ import annotations

from tests.bench.figures import Figure
from tests.bench.shop import NEEDS_CARD, Bench

STEPS = (1, 4, 8, 12, 16, 20, 24)


async def rooms(bench: Bench) -> list[Figure]:
    """Sessions that all speak in rooms of their own, until pictures come late; server and viewers are on the same processor.

    On the processor one session of `warp` shows that the measurement works; MuseTalk's own needs a card.
    """
    from tests.bench.room import together
    from tests.bench.stack import demo, environment

    on_card = bench.device != "cpu"
    variables = {
        "MODELS_DIR": str(bench.models),
        "MUSETALK_DEVICE": bench.device,
        "MUSETALK_PROFILE": bench.profile,
        "AVATAR_CACHE_DIR": str(bench.folder / "rooms"),
        "AGENT_MAX_SESSIONS": str(STEPS[-1]),
    }
    if not on_card:
        del variables["MODELS_DIR"]
    name, most, notes = f"speaking sessions held in rooms, {bench.profile}", 0, []
    with environment(**variables):
        async with demo("--engine", "musetalk" if on_card else "warp", "--no-conversation") as stack:
            for count in STEPS if on_card else STEPS[:1]:
                late, figures = await together(stack, count, 3 if bench.tiny else 10)
                notes.append(f"{count}: {figures}")
                if late:
                    break
                most = count
    if not on_card:
        return [Figure(name, None, "sessions", note=f"{NEEDS_CARD}; with warp on this processor {notes[0]}")]
    return [Figure(name, most, "sessions", 16, at_least=True, note="; ".join(notes))]
