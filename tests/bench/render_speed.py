"""How fast a film is made, and what memory its workers take: `python -m tests.bench.render_speed [--minutes 2] [--engine warp]`.

One render of the demo's face (or of `--avatar FILE`) at 1280×720 that speaks all the time, by two workers with normal priority.
From the first part to the end; the processors' time says what two free cores would do where others work beside. Memory is that of
the workers and of all processes that they start, looked at every second: their own pages and their resident sets, at most in the
second and in the last quarter of the film. After `--within` seconds it ends, and says how far the film has come. Thirty minutes of
a filmed face take eight minutes on two free cores: `--minutes 30 --avatar FACE.mp4`.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import RenderFolder, RenderOrder, RenderRequest, RenderState, new_render_id
from tests.bench.figures import Figure
from tests.bench.renders import WORKER
from tests.bench.talkers import RATE, speech

_WORKERS = 2
_LOOK_S, _SAY_S = 1.0, 30.0
_GROWS_MOST = 0.05
"""Memory that is flat does not grow by more from the second to the last quarter."""


@dataclass(frozen=True)
class Memory:
    """When so much of the film was there (0 … 1): megabytes of the processes' own pages, and resident."""

    done: float
    own: float
    resident: float


class Looked:
    """What the workers have taken: seconds of processors, and memory by the share of the film that was there."""

    def __init__(self, workers: list[subprocess.Popen[bytes]]) -> None:
        self._processes = [psutil.Process(worker.pid) for worker in workers]
        self.memory: list[Memory] = []

    def look(self, done: float) -> None:
        found = []
        for process in (each for worker in self._processes for each in (worker, *worker.children(recursive=True))):
            with suppress(psutil.NoSuchProcess):  # one that has just ended
                found.append(process.memory_full_info())
        self.memory.append(Memory(done, sum(f.uss for f in found) / 2**20, sum(f.rss for f in found) / 2**20))

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:4]) for process in self._processes)

    def quarter(self, first: float) -> list[Memory]:
        """Memory from that share of the film on, for a quarter of it."""
        return [each for each in self.memory if first <= each.done < first + 0.25]


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


def watched(folder: RenderFolder, render_id: str, looked: Looked, within_s: float) -> tuple[float, float, float]:
    """Seconds of film, seconds, and seconds of processors, from the first part on until it has ended or the time is over."""
    begun = cpu = film_s = 0.0
    until, first, say_at = time.monotonic() + within_s, 0, 0.0
    while folder.ended(render_id) is None and time.monotonic() < until:
        plan, parts = folder.plan(render_id), folder.parts(render_id)
        if plan is not None and parts:
            if not begun:
                begun, cpu, first = time.monotonic(), looked.cpu_s(), len(parts)
            film_s = (len(parts) - first) * plan.part_frames / plan.fps
            looked.look(len(parts) / plan.parts)
            if time.monotonic() > say_at:
                say_at = time.monotonic() + _SAY_S
                print(
                    f"{len(parts)} of {plan.parts} parts, {looked.memory[-1].own:.0f} MB", file=sys.stderr, flush=True
                )
        time.sleep(_LOOK_S)
    took, used = time.monotonic() - begun, looked.cpu_s() - cpu
    if (end := folder.ended(render_id)) is not None and (plan := folder.plan(render_id)) is not None:
        film_s = (end.seconds or 0.0) - first * plan.part_frames / plan.fps
    return film_s, took, used


def figures(shape: str, film_s: float, took: float, cpu: float, looked: Looked) -> Iterator[Figure]:
    """The bench's figures."""
    note = f"{cpu / film_s:.3f} s of a core for a second of film: {_WORKERS * film_s / cpu:.2f} × with two cores free"
    yield Figure(f"render: {shape}", film_s / took, "× real time", 3, at_least=True, note=f"{took:.0f} s; {note}")
    second, last = looked.quarter(0.25), looked.quarter(0.75)
    if not (second and last):
        return
    for kind in ("own", "resident"):
        before, after = ([getattr(each, kind) for each in part] for part in (second, last))
        name = f"render: memory of all processes, {kind}, last quarter at most, above the second's"
        bar, note = (
            _GROWS_MOST * max(before),
            f"second {min(before):.0f} … {max(before):.0f}, last {min(after):.0f} … {max(after):.0f} MB",
        )
        yield Figure(name, max(after) - max(before), "MB", round(bar), note=note)


def main() -> int:
    parser = argparse.ArgumentParser(prog="render_speed", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--engine", default="warp")
    parser.add_argument("--avatar", type=Path, default=None, help="a clip or a picture; by default the demo's picture")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--within", type=float, default=570.0, help="seconds after which it ends")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="render-speed-") as root:
        return bench(args, Path(root))


def bench(args: argparse.Namespace, root: Path) -> int:
    """Makes the film in a folder and prints the figures: 0 when it is whole."""
    folder = RenderFolder(root)
    environment = {**os.environ, "RENDERS_DIR": str(root), "LOG_LEVEL": "WARNING", "ALLOW_PRIVATE_URLS": "true"}
    with RenderQueue(default_target(root)) as queue, served(args.avatar) as clip:
        render_id = ordered(folder, args, clip)
        queue.put(RenderTicket(render_id=render_id))
        workers = [
            subprocess.Popen([sys.executable, "-c", WORKER, "render-worker", "--stay"], env=environment)
            for _ in range(_WORKERS)
        ]
        try:
            looked = Looked(workers)
            film_s, took, cpu = watched(folder, render_id, looked, args.within)
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()
    end = folder.ended(render_id)
    if end is not None and end.state is not RenderState.DONE:
        print(f"it ended otherwise: {end}", file=sys.stderr)
        return 1
    if not film_s:
        print(f"no part was made in {args.within:.0f} s", file=sys.stderr)
        return 1
    shown = args.avatar.name if args.avatar else "the demo"
    whole = "" if end is not None else ", not whole"
    shape = f"{shown}, {args.engine}, {args.width}×{args.height}, {film_s:.0f} s of film{whole}, {_WORKERS} workers"
    for figure in figures(shape, film_s, took, cpu, looked):
        print(figure.line(), flush=True)
    return 0 if end is not None else 1


if __name__ == "__main__":
    sys.exit(main())
