"""How large the steps of a picture are while one clip goes over into another: `python -m tests.bench.passages FOLDER…`.

A folder has clips of one person. Of every ordered pair a film is made in which the first one speaks and the second one is played at
some moments, as an action. A step is the mean difference of luma between two frames; the bar is one and a half times the 99th
percentile of the first clip's own steps. `rest` is the same without speech, so that lips are in neither.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from dataclasses import dataclass
from itertools import pairwise, permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.factory import Factory, OpenedAvatar
from musetalk_agent.media_types import Pcm
from musetalk_agent.protocol.http import AgentAvatarRequest, AgentStartRequest, AvatarSource, Picture
from musetalk_agent.protocol.renders import RenderAction, RenderOrder, RenderRequest
from musetalk_agent.renders.film_actions import film_actions, plan_actions
from musetalk_agent.renders.talking_frames import Talker
from tests.bench.engine import speech
from tests.bench.figures import Figure, percentile

BAR = 1.5
SECONDS = 14
MOMENTS = 1.0, 7.3
"""Seconds at which the action is asked for. A clip of GRID has 3 s."""
FPS = 25


@dataclass(frozen=True)
class Steps:
    """What a film's passages showed.

    Args:
        own: the 99th percentile of the first clip's own steps.
        passages: the steps of each, from the one into its first frame to the one out of its last.
    """

    own: float
    passages: list[NDArray[np.float64]]

    @property
    def worst(self) -> float:
        """Of all passages, times the clip's own."""
        return max(float(each.max()) for each in self.passages) / self.own

    @property
    def places(self) -> list[float]:
        """Where in its passage the largest step lies, 0 … 1."""
        return [float(each.argmax()) / max(1, len(each) - 1) for each in self.passages]


async def passages(folders: list[Path]) -> list[Figure]:
    """A figure for each folder, spoken and at rest."""
    found: list[Figure] = []
    with TemporaryDirectory() as cache:
        factory = Factory(AgentSettings(agent_api_key=SecretStr("bench"), engine="warp", cache_dir=Path(cache)))
        await factory.start()
        try:
            for folder in folders:
                clips = sorted(path for path in folder.iterdir() if path.suffix in {".mp4", ".mpg", ".webm", ".mov"})
                ids = [await factory.library.add(clip.read_bytes(), clip.name) for clip in clips]
                for kind, sound in (("spoken", speech()), ("at rest", np.zeros(SECONDS * 16_000, np.int16))):
                    seen = [await steps(factory, one, other, sound) for one, other in permutations(ids, 2)]
                    worst = [each.worst for each in seen]
                    places = [place for each in seen for place in each.places]
                    lengths = [len(passage) for each in seen for passage in each.passages]
                    note = f"{folder.name}: {len(seen)} pairs, {len(places)} passages of {min(lengths)} to {max(lengths)} frames; "
                    note += f"median {np.median(worst):.2f}; largest step at {np.median(places):.2f} of the passage, "
                    note += f"in the first or last step of {np.mean([p in (0.0, 1.0) for p in places]):.0%}"
                    found.append(
                        Figure(f"passages {kind}: largest step", max(worst), "of the clip's p99", BAR, note=note)
                    )
        finally:
            await factory.aclose()
    return found


async def steps(factory: Factory, one: str, other: str, sound: Pcm) -> Steps:
    """The steps of a film of `one` that plays `other`."""
    request = RenderRequest(avatar_id=one, text="x", engine="warp")
    order = RenderOrder(render_id="ren_bench", key="", created_at=0.0, request=request, clips={"other": other})
    start = AgentStartRequest(
        session_id="b", room="b", livekit_url="", livekit_token="", avatar=AvatarSource(avatar_id=one), picture=Picture(),
        connect_livekit=False,
    )  # fmt: skip
    home = await factory.opened(start)
    clip = await factory.other_avatar(home.bundle, "warp", AgentAvatarRequest(avatar=AvatarSource(avatar_id=other)))
    try:
        planned, _ = await plan_actions(factory, home, order, [("other", at) for at in MOMENTS])
        lumas = await _film(home, clip, planned, sound)
    finally:
        for opened in (home, clip):
            opened.engine_session.close()
    apart = np.abs(np.diff(lumas.astype(np.int16), axis=0)).mean((1, 2))
    rows = [row for action in planned for row in (action.enter, action.leave) if row is not None]
    return Steps(_own(home.bundle), [apart[begin - 1 : begin + fade + 1] for begin, _, fade in rows if begin > 0])


async def _film(home: OpenedAvatar, clip: OpenedAvatar, planned: list[RenderAction], sound: Pcm) -> NDArray[np.uint8]:
    talker = Talker(home.batcher, home.engine_session, home.bundle, actions=film_actions(planned, {"other": clip}))
    await talker.close_idle_mouths()
    frames = talker.frames(range(SECONDS * FPS), lambda begin, end: sound[begin:end])
    height, width = home.bundle.height, home.bundle.width
    return np.stack([frame.i420.reshape(-1)[: height * width].reshape(height, width) async for frame in frames])


def _own(bundle: Bundle) -> float:
    lumas = [np.asarray(bundle.frames[k][: bundle.height]).astype(np.int16) for k in range(len(bundle))]
    return percentile([float(np.abs(b - a).mean()) for a, b in pairwise(lumas)], 99) or 0.0


def main() -> int:
    """Prints a line a figure."""
    parser = argparse.ArgumentParser(prog="passages", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    for figure in asyncio.run(passages(options.folders)):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
