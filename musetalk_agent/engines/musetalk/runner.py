"""Runs the network in buckets of fixed size and never waits for the card while launching."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from musetalk_agent.engines.batcher import MAX_UNDELIVERED
from musetalk_agent.engines.musetalk.device import ANSWER_S, Card, DeviceEvent, Outputs, device_errors
from musetalk_agent.engines.musetalk.network import LATENT_SHAPE, Network
from musetalk_agent.engines.musetalk.profiles import bucket_of
from musetalk_agent.errors import EngineOutOfMemory
from musetalk_agent.media_types import Feature, Pixels

log = logging.getLogger(__name__)

MEASURED_BATCHES = 4
"""Most batches over which a bucket is measured, two of them under way at any moment, as in service."""
MEASURED_S = 0.5
"""A bucket is measured no longer than this and two batches: the processor takes seconds for one."""
SLOTS = MAX_UNDELIVERED + 2
"""Host memory is made for so many batches at once in `warmup`: pinned memory takes milliseconds and may stop the card's other
work."""
HEADROOM = 0.75
"""Share of the measured throughput that is promised. The rest is for preparing new avatars beside speech (their stream has the
lower priority, but a running kernel is not interrupted), for batches that are not full, and for catching up: at three quarters a
backlog of one frame a session is worked off within three frames."""


_SLOWDOWN_BATCHES = 64  # over which it is averaged: a second or two, so that one avatar's preparation changes little
_SLOWDOWN_MOST = 4.0  # of one batch


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A batch size with its device memory: `run` reads `mel` and `latents` and always writes the same outputs."""

    size: int
    mel: Tensor
    latents: Tensor
    run: Callable[[], Outputs]


@dataclass(frozen=True, slots=True)
class _Slot:
    """Host memory of one batch under way."""

    mel: Tensor
    pixels: Tensor
    good: Tensor


class Launched:
    """A batch under way. `wait`, then read `pixels` and `good`, then `release`; they belong to the next batch after that."""

    def __init__(self, slot: _Slot, mark: DeviceEvent, count: int, give_back: Callable[[_Slot], None]) -> None:
        self._slot, self._mark, self._count, self._give_back = slot, mark, count, give_back

    def __len__(self) -> int:
        return self._count

    def wait(self, within_s: float | None = None) -> None:
        """Blocks until the faces lie in host memory. Raises `EngineFailed` when the card failed, or takes longer than
        `within_s`."""
        with device_errors():
            self._mark.wait(within_s)

    @property
    def pixels(self) -> Pixels:
        """uint8 BGR `[n, rows, 256, 3]`, the lowest rows of the faces. Valid until `release`."""
        return np.asarray(self._slot.pixels[: self._count].numpy(), np.uint8)

    @property
    def good(self) -> NDArray[np.bool_]:
        """bool `[n]`; False where the face is black or was not a number. Valid until `release`."""
        return np.asarray(self._slot.good[: self._count].numpy(), np.bool_)

    def release(self) -> None:
        """Gives the host memory back. Once."""
        self._give_back(self._slot)


class Runner:
    """One network on one card.

    `launch` belongs to one thread; `Launched` may be waited for by another.

    Args:
        window: shape of a feature.
        rows: rows of the 256 that the network's decoder makes.
        sizes: bucket sizes, ascending.
    """

    def __init__(self, network: Network, card: Card, window: tuple[int, ...], rows: int, sizes: Sequence[int]) -> None:
        self._network, self._card = network, card
        self._window, self._rows = window, rows
        self._sizes = tuple(sizes)
        self._buckets: dict[int, _Bucket] = {}
        self._slots: list[_Slot] = []
        self._most = self._sizes[-1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bucket sizes in use, ascending. Shrinks for good when memory runs out."""
        return self._sizes

    def warmup(self) -> None:
        """Readies every bucket, the largest first, because the smaller ones then fit into its memory; then the host's memory.

        Buckets that do not fit are given up with a warning. Raises `EngineOutOfMemory` when not even one frame fits,
        `EngineFailed` when the card failed.
        """
        while missing := [size for size in self._sizes if size not in self._buckets]:
            try:
                with device_errors(), self._card.frames():
                    self._buckets[missing[-1]] = self._bucket(missing[-1])
            except torch.cuda.OutOfMemoryError as error:
                self._shrink(error)
        with device_errors():
            self._slots += [self._slot() for _ in range(SLOTS - len(self._slots))]

    def launch(self, mels: Sequence[Feature], latents: Sequence[Tensor]) -> list[Launched]:
        """Starts a batch, in pieces where it is larger than the largest bucket.

        `mels` float32 features, `latents` float16 `[8, 32, 32]` each on the card, as many. When memory runs out the
        largest bucket is given up, with a warning, and the batch goes on in smaller ones.

        Raises:
            EngineFailed: the card failed.
            EngineOutOfMemory: there is no memory for a single frame.
        """
        launched: list[Launched] = []
        at = 0
        with device_errors(), self._card.frames():
            while at < len(mels):
                end = min(len(mels), at + self._sizes[-1])
                try:
                    with device_errors():
                        launched.append(self._start(mels[at:end], latents[at:end]))
                except torch.cuda.OutOfMemoryError as error:
                    self._shrink(error)
                    continue
                at = end
        return launched

    def measure(self) -> dict[int, float]:
        """Seconds per batch of each bucket, launched as in service, copies included. Best after `warmup`.

        The largest bucket comes first and runs until the card has settled, so that the others are measured at that pace too.
        """
        settle_s, found = self._card.settle_s, dict[int, float]()
        for size in reversed(self._sizes):
            found[size] = self._measured(size, settle_s)
            settle_s = 0.0
        return {size: found[size] for size in self._sizes}  # without what memory ran out for meanwhile

    def _measured(self, size: int, settle_s: float) -> float:
        """Seconds per batch over the second half of `settle_s`, or over a few batches where that is 0.

        The input is noise: zeros cost a card less power, so that it would slow down less than in service.
        """
        window = np.random.default_rng(0).standard_normal(self._window).astype(np.float32)
        window[-1] = 0  # positions, not sound
        latent = torch.randn(LATENT_SHAPE, generator=torch.Generator().manual_seed(0)).half().to(self._card.device)
        batch = [window] * size, [latent] * size
        at = [time.perf_counter()]  # the start, then the end of each batch
        ahead = self.launch(*batch)
        while at[-1] - at[0] < settle_s or (len(at) < MEASURED_BATCHES and time.perf_counter() - at[0] < MEASURED_S):
            after = self.launch(*batch)
            _finish(ahead)
            at.append(time.perf_counter())
            ahead = after
        _finish(ahead)
        at.append(time.perf_counter())
        first = next(index for index, moment in enumerate(at) if moment - at[0] >= settle_s / 2)
        first = min(first, len(at) - 2)
        return (at[-1] - at[first]) / (len(at) - 1 - first)

    def close(self) -> None:
        """Releases graphs and buffers. Safe to call twice."""
        self._buckets.clear()
        self._slots.clear()
        self._card.empty_cache()

    def _start(self, mels: Sequence[Feature], latents: Sequence[Tensor]) -> Launched:
        count = len(mels)
        size = bucket_of(count, self._sizes)
        bucket = self._buckets.get(size) or self._buckets.setdefault(size, self._bucket(size))
        slot = self._slots.pop() if self._slots else self._slot()
        np.stack(mels, out=slot.mel[:count].numpy())
        bucket.mel[:count].copy_(slot.mel[:count], non_blocking=True)
        torch.stack(list(latents), out=bucket.latents[:count])
        pixels, good = bucket.run()
        # one stream: the next batch overwrites the outputs only after these copies
        slot.pixels[:count].copy_(pixels[:count], non_blocking=True)
        slot.good[:count].copy_(good[:count], non_blocking=True)
        return Launched(slot, self._card.record_event(), count, self._slots.append)

    def _bucket(self, size: int) -> _Bucket:
        mel = torch.zeros((size, *self._window), device=self._card.device)
        latents = torch.zeros((size, *LATENT_SHAPE), dtype=torch.float16, device=self._card.device)
        return _Bucket(size, mel, latents, self._card.capture(lambda: self._network(mel, latents)))

    def _slot(self) -> _Slot:
        return _Slot(
            self._card.host_buffer((self._most, *self._window), torch.float32),
            self._card.host_buffer((self._most, self._rows, 256, 3), torch.uint8),
            self._card.host_buffer((self._most,), torch.bool),
        )

    def _shrink(self, error: Exception) -> None:
        """Gives the larger half of the buckets up. The smallest is kept where it is captured: its replay needs no memory."""
        largest, kept = self._sizes[-1], [s for s in self._sizes if s <= self._sizes[-1] // 2]
        if not kept:
            self._card.empty_cache()
            text = f"The card has no memory left for a single frame: {str(error).splitlines()[0]}"
            raise EngineOutOfMemory(text, value=self._card.allocated()) from error
        self._buckets = {size: bucket for size, bucket in self._buckets.items() if size in kept}
        self._card.empty_cache()
        self._sizes = tuple(kept)
        log.warning("out of memory on the card: smaller batches", extra={"largest": largest, "now": kept[-1]})


def _finish(batch: Sequence[Launched]) -> None:
    """Raises `EngineFailed` on a card that does not answer."""
    for piece in batch:
        piece.wait(ANSWER_S)
        piece.release()


@dataclass(frozen=True, slots=True)
class Throughput:
    """Seconds per batch, by bucket size."""

    seconds: Mapping[int, float] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """At the bucket that is fastest per frame; 0 before it was measured."""
        return max((size / seconds for size, seconds in self.seconds.items() if seconds > 0), default=0.0)

    def capacity(self, fps: int, slowdown: float = 1.0) -> int:
        """Sessions that may all speak at once at `fps`, with head-room, on a device that is `slowdown` (≥ 1) times slower than it
        was measured; 0 where not even one kept up when it was measured."""
        sessions = HEADROOM * self.frames_per_second / fps
        return int(sessions) and max(1, int(sessions / slowdown))


class Slowdown:
    """How much longer batches take in service than they did when they were measured. One thread may call `add`."""

    def __init__(self) -> None:
        self._average = 1.0

    @property
    def factor(self) -> float:
        """1 for a device that is as fast as measured, or faster."""
        return max(1.0, self._average)

    def add(self, measured_s: float, took_s: float, *, queued: bool) -> None:
        """Counts a batch. One that did not wait for another holds the host's time too: it can only show that the device is
        faster."""
        ratio = min(took_s / measured_s, _SLOWDOWN_MOST)
        if queued or ratio < self._average:
            self._average += (ratio - self._average) / _SLOWDOWN_BATCHES
