"""A CUDA card at torch's boundary, on a machine without one: what is given to it lands on the processor, and each call can fail.

`torch.cuda` and the copies of tensors are replaced; `CudaCard`, the runner, the engine and everything above are the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from musetalk_agent.engines.musetalk import card_facts, device, engine
from musetalk_agent.engines.musetalk.card_facts import Driver
from musetalk_agent.engines.musetalk.device import CudaCard, Outputs
from tests.fakes.card_failures import Kind
from tests.waiting import NEVER_S

DEAD = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


class FakeCuda:
    """One card, and which of its calls fails.

    Args:
        capability: compute capability.
        architectures: what this build of torch has kernels for.
        driver: what the driver says where it is no good; None for one that is.
    """

    def __init__(
        self,
        capability: tuple[int, int] = (8, 9),
        architectures: tuple[str, ...] = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"),
        driver: str | None = None,
    ) -> None:
        self.capability, self.architectures, self.driver = capability, architectures, driver
        self.compute = torch.device("cpu", 0)  # not equal to "cpu"
        self.dead = self.hanging = False
        self.made: list[FakeCard] = []
        self._armed: dict[str, Kind] = {}
        self._pinned: set[int] = set()
        self._gate = threading.Event()
        self.hit = threading.Event()
        self.fits: Callable[[int], bool] = lambda size: True  # whether there is memory for a batch
        self.seconds: Callable[[int], float] = lambda size: 0.0  # what a batch takes

    def arm(self, call: str, kind: Kind) -> None:
        """The next such call fails."""
        self._armed[call] = kind

    def disarm(self) -> None:
        """No further call fails; a card that is dead or hangs stays so."""
        self._armed.clear()

    def release(self) -> None:
        """Lets every thread that hangs go on; for the end of a test."""
        self._gate.set()

    def call(self, name: str) -> None:
        """Where a call may fail."""
        if self.dead:
            raise torch.AcceleratorError(DEAD)
        kind = self._armed.get(name)
        if kind is None:
            if self.hanging and name == "synchronize":
                assert self._gate.wait(NEVER_S)
            return
        self.hit.set()
        if kind == "full":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        del self._armed[name]
        if kind == "dies":
            self.dead = True
            raise torch.AcceleratorError(DEAD)
        self.hanging = True
        if name != "query":
            assert self._gate.wait(NEVER_S)

    def work(self, size: int) -> None:
        """A batch of the network: its memory, and its time."""
        if not self.fits(size):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        time.sleep(self.seconds(size))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Replaces torch's functions until the test ends."""
        fake = self
        real_zeros, real_copy, real_to = torch.zeros, torch.Tensor.copy_, torch.Tensor.to

        def zeros(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
            if more.get("device") == fake.compute:
                fake.call("allocation")
            made = real_zeros(*args, **more)
            if pin_memory:
                fake._pinned.add(made.untyped_storage().data_ptr())
            return made

        def copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            if non_blocking:
                pinned = self.untyped_storage().data_ptr() in fake._pinned
                fake.call("d2h" if pinned else "h2d")
            return real_copy(self, source)

        def to(self: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
            if args and args[0] == fake.compute:
                fake.call("h2d")
            return real_to(self, *args, **more)

        patch.setattr(torch, "zeros", zeros)
        patch.setattr(torch.Tensor, "copy_", copy)
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(
            engine, "card_for", lambda name, **more: FakeCard(self, name) if name != "cpu" else device.CpuCard()
        )
        self._install_cuda(patch)

    def _install_cuda(self, patch: pytest.MonkeyPatch) -> None:
        def init() -> None:
            if self.driver is not None:
                raise RuntimeError(self.driver)

        replaced: dict[str, Any] = {
            "is_available": lambda: self.driver is None,
            "device_count": lambda: int(self.driver is None),
            "init": init,
            "get_device_capability": lambda index=0: self.capability,
            "get_arch_list": lambda: list(self.architectures),
            "get_device_name": lambda index=0: "Fake card",
            "get_device_properties": lambda index=0: SimpleNamespace(
                name="Fake card", major=self.capability[0], minor=self.capability[1], total_memory=24 << 30
            ),
            "mem_get_info": lambda index=0: (20 << 30, 24 << 30),
            "Stream": lambda *_, **__: SimpleNamespace(),
            "default_stream": lambda *_: SimpleNamespace(),
            "stream": lambda _: nullcontext(),
            "graph_pool_handle": lambda: (0, 0),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.call("replay")),
            "graph": lambda *_, **__: nullcontext(),
            "Event": lambda **_: FakeEvent(self),
            "memory_allocated": lambda *_: 0,
            "empty_cache": lambda: self.call("empty_cache"),
        }
        for name, replacement in replaced.items():
            patch.setattr(torch.cuda, name, replacement)
        patch.setattr(torch.version, "cuda", "13.2")
        driver = Driver("550.54", (12, 4)) if "too old" in (self.driver or "") else Driver("580.95", (13, 2))
        patch.setattr(card_facts, "find_driver", lambda: driver)


class FakeEvent:
    def __init__(self, card: FakeCuda) -> None:
        self._card = card

    def record(self) -> None:
        self._card.call("record")

    def query(self) -> bool:
        self._card.call("query")
        return not self._card.hanging

    def synchronize(self) -> None:
        self._card.call("synchronize")


class FakeCard(CudaCard):
    """The real one, that computes on the processor."""

    def __init__(self, cuda: FakeCuda, name: str) -> None:
        super().__init__(name)
        self._cuda = cuda
        self.device = cuda.compute
        cuda.made.append(self)

    def capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """A graph that is replayed computes again, into the same memory."""
        replay = super().capture(call)

        def run() -> Outputs:
            outputs = replay()
            for old, new in zip(outputs, call(), strict=True):
                old.copy_(new)
            return outputs

        return run


@contextmanager
def fake_cuda(patch: pytest.MonkeyPatch, **more: Any) -> Iterator[FakeCuda]:
    """A card until the block ends; then nothing hangs any more."""
    cuda = FakeCuda(**more)
    cuda.install(patch)
    try:
        yield cuda
    finally:
        cuda.release()
