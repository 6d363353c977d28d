"""How fast a film is made, and what memory its workers take: `python -m tests.bench.render_speed [--minutes 2] [--engine warp]`.

One render of the demo's face (or of `--avatar FILE`) at 1280×720 that speaks all the time, by two workers with normal priority.
From the first part to the end; the processors' time says what two free cores would do where others work beside. Memory is the
workers' own (unique pages), looked at every second: its least and most in the second and in the last quarter of the film.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil

from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import RenderFolder, RenderOrder, RenderRequest, RenderState, new_render_id
from tests.bench.figures import Figure
from tests.bench.renders import WORKER
from tests.bench.talkers import RATE, speech

_WORKERS = 2
_LOOK_S = 1.0


class Looked:
    """What the workers have taken: seconds of processors, and megabytes by the share of the film that was there."""

    def __init__(self, workers: list[subprocess.Popen[bytes]]) -> None:
        self._processes = [psutil.Process(worker.pid) for worker in workers]
        self.memory: list[tuple[float, float]] = []

    def look(self, done: float) -> None:
        self.memory.append((done, sum(process.memory_full_info().uss for process in self._processes) / 2**20))

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def quarter(self, first: float) -> list[float]:
        """Megabytes from that share of the film on, for a quarter of it."""
        return [size for done, size in self.memory if first <= done < first + 0.25] or [0.0]


@contextmanager
def served(file: Path | None) -> Iterator[dict[str, str]]:
    """The avatar of an order: a file by a server of ours, or the demo's picture."""
    if file is None:
        yield {"avatar_id": "demo"}
        return
    handler = partial(SimpleHTTPRequestHandler, directory=str(file.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"idle_video_url": f"http://127.0.0.1:{server.server_port}/{file.name}"}
        server.shutdown()


def ordered(folder: RenderFolder, args: argparse.Namespace, clip: dict[str, str]) -> str:
    """A render whose voice is spoken already."""
    render_id = new_render_id("bench", None)
    request = RenderRequest.model_validate(
        {"text": "x", "engine": args.engine, "width": args.width, "height": args.height, **clip}
    )
    folder.create(RenderOrder(render_id=render_id, key="bench", created_at=time.time(), request=request))
    with wave.open(str(folder.path(render_id) / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(speech(60 * args.minutes)[: round(60 * args.minutes * RATE)].astype("<i2").tobytes())
    return render_id


def watched(folder: RenderFolder, render_id: str, looked: Looked) -> tuple[float, float]:
    """Seconds, and seconds of processors, from the first part to the end, for the frames made in them."""
    begun = cpu = 0.0
    while folder.ended(render_id) is None:
        plan, parts = folder.plan(render_id), folder.parts(render_id)
        if plan is not None and parts:
            if not begun:
                begun, cpu = time.monotonic(), looked.cpu_s()
            looked.look(len(parts) / plan.parts)
        time.sleep(_LOOK_S)
    return time.monotonic() - begun, looked.cpu_s() - cpu


def main() -> int:
    parser = argparse.ArgumentParser(prog="render_speed", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--engine", default="warp")
    parser.add_argument("--avatar", type=Path, default=None, help="a clip or a picture; by default the demo's picture")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="render-speed-"))
    folder = RenderFolder(root)
    environment = {**os.environ, "RENDERS_DIR": str(root), "LOG_LEVEL": "WARNING", "ALLOW_PRIVATE_URLS": "true"}
    with RenderQueue(default_target(root)) as queue, served(args.avatar) as clip:
        render_id = ordered(folder, args, clip)
        queue.put(RenderTicket(render_id=render_id))
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER, "render-worker", "--stay"], env=environment)
            for _ in range(_WORKERS)
        ]
        looked = Looked(workers)
        try:
            took, cpu = watched(folder, render_id, looked)
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
    end, plan = folder.ended(render_id), folder.plan(render_id)
    if end is None or plan is None or end.state is not RenderState.DONE:
        print(f"it ended otherwise: {end}", file=sys.stderr)
        return 1
    shown = args.avatar.name if args.avatar else "the demo"
    shape = f"{shown}, {args.engine}, {args.width}×{args.height}, {60 * args.minutes:.0f} s of film, {_WORKERS} workers"
    second, last = looked.quarter(0.25), looked.quarter(0.75)
    film_s = end.seconds or 0.0
    note = f"{cpu / film_s:.3f} s of a core for a second of film: {_WORKERS * film_s / cpu:.2f} × with two cores free"
    for figure in (
        Figure(f"render: {shape}", film_s / took, "× real time", 3, at_least=True, note=note),
        Figure(
            "render: memory of the workers, second quarter",
            float(np.max(second)),
            "MB",
            note=f"least {min(second):.0f}",
        ),
        Figure("render: memory of the workers, last quarter", float(np.max(last)), "MB", note=f"least {min(last):.0f}"),
    ):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
