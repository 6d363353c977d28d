"""Fifty renders over two workers, one of which is killed three times: `python -m tests.bench.renders [--jobs N] [--kills N]`.

Prints how many renders ended and how, whether progress ever went back, and how much was made twice at most: the parts that killed
workers had begun.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from pathlib import Path

import numpy as np

from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import RenderFolder, RenderOrder, RenderRequest, RenderState, new_render_id
from orchestrator.render_orders import _view
from tests.bench.figures import Figure

RATE = 16_000
WORKER = (
    "from musetalk_agent.renders import worker_command as w; w.be_nice = lambda: None; "
    "from musetalk_agent.__main__ import main; main()"
)
"""A worker with the priority of everything else: a busy machine would make the bench last for hours."""
_LOOK_EVERY_S = 0.2
"""Between two looks at the progress of all renders."""


def begin(folder: Path, queue: str | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RENDERS_DIR": str(folder), "AGENT_ENGINE": "pattern", "LOG_LEVEL": "WARNING"}
    if queue:
        environment["RENDERS_QUEUE"] = queue
    return subprocess.Popen([sys.executable, "-c", WORKER, "render-worker", "--stay"], env=environment)


def order(folder: RenderFolder, seconds: int) -> str:
    render_id = new_render_id("bench", None)
    request = RenderRequest(text="x", engine="pattern", width=320, height=320)
    folder.create(RenderOrder(render_id=render_id, key="bench", created_at=time.time(), request=request))
    at = np.arange(seconds * RATE)
    loud = np.where(at % RATE < RATE // 2, 20_000 * np.sin(at * 0.3), 0)
    with wave.open(str(folder.path(render_id) / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(loud.astype("<i2").tobytes())
    return render_id


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=20, help="length of each film")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--queue", default=None, help="redis://…; by default a file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="renders-bench-") as root:
        return bench(args, Path(root))


def bench(args: argparse.Namespace, root: Path) -> int:
    """Makes the films in a folder, kills, and prints the figures: 0 when all of them held."""
    folder = RenderFolder(root)
    begun = time.monotonic()
    with RenderQueue(args.queue or default_target(root)) as queue:
        ids = [order(folder, args.seconds) for _ in range(args.jobs)]
        queue.put(*(RenderTicket(render_id=render_id) for render_id in ids))
        workers = [begin(root, args.queue) for _ in range(2)]
        seen: dict[str, float] = dict.fromkeys(ids, 0.0)
        ends: Counter[str] = Counter()
        back = lost_parts = kills = 0
        while len(list(root.glob("ren_*/end.json"))) < args.jobs:
            for render_id in ids:
                found = folder.order(render_id)
                view = _view(folder, found) if found is not None else {"progress": 0.0}
                back += view["progress"] < seen[render_id]
                seen[render_id] = view["progress"]
            done = len(list(root.glob("ren_*/end.json")))
            if (
                kills < args.kills
                and done >= (kills + 1) * args.jobs // (args.kills + 2)
                and (mine := _begun_by(workers[0].pid, root))
            ):
                workers[0].send_signal(signal.SIGKILL)
                workers[0].wait()
                kills, lost_parts = kills + 1, lost_parts + mine
                print(f"killed a worker at {done} of {args.jobs} renders, {time.monotonic() - begun:.0f} s", flush=True)
                workers[0] = begin(root, args.queue)
            time.sleep(_LOOK_EVERY_S)
        for worker in workers:
            worker.terminate()
            worker.wait()
        left = queue.waiting()
    frames = 0
    for render_id in ids:
        end, plan = folder.ended(render_id), folder.plan(render_id)
        ends[end.state.value if end else "none"] += 1
        frames += plan.frames if plan and end and end.state is RenderState.DONE else 0
    share = lost_parts * 4 * 25 / max(1, frames)
    note = f"{dict(ends)}; a worker killed {kills} times; {left} tickets left; {time.monotonic() - begun:.0f} s"
    for figure in (
        Figure("renders: done, each once", ends["done"], f"of {args.jobs}", args.jobs, at_least=True, note=note),
        Figure("renders: times a worker was killed", kills, "", args.kills, at_least=True),
        Figure("renders: times that progress went back", back, "", 0),
        Figure(
            "renders: made twice at most", 100 * share, "%", 5, note=f"{lost_parts} parts of 4 s of {frames} frames"
        ),
    ):
        print(figure.line(), flush=True)
    return 0 if ends == {"done": args.jobs} and not back and share <= 0.05 and kills == args.kills else 1


def _begun_by(pid: int, root: Path) -> int:
    """Parts that the process has begun and not finished: files that it holds open."""
    try:
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return 0
    return sum("/parts/." in name and name.startswith(str(root)) for name in held)


if __name__ == "__main__":
    sys.exit(main())
