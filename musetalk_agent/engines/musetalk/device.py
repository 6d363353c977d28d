"""The device behind one interface: the processor, or a CUDA card with streams, pinned memory, graphs and events.

Everything that only runs with a card is in `CudaCard`. On a card frames are launched by one thread on one stream of high
priority; preparation works from its own thread on a stream of normal priority, so that a new avatar does not hold up speech.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from musetalk_agent.errors import EngineFailed, EngineOutOfMemory, EngineUnavailable

Outputs = tuple[Tensor, ...]
WARM_RUNS = 2
"""Calls before a capture: libraries make their handles and work spaces in the first, the second shows that they are done."""
ANSWER_S = 10.0
"""A device that has not done in so long what start, preparation or a probe waits for hangs: the longest such work is two batches
of the largest bucket, 2 s on the slowest card that the engine is of use on."""
SETTLE_S = 3.0
"""How long a card works before its pace counts: one that is limited by its power supply or its cooler slows down by 20 to 40 %
within the first seconds."""
_POLL_S = 0.001
_DEVICE_WORDS = ("CUDA", "cuDNN", "CUDNN", "cuBLAS", "CUBLAS", "device-side assert")
_MEMORY_WORDS = (
    "out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # cuDNN, when the work space of every algorithm is refused
)


_BFLOAT16_SINCE = (8, 0)
"""Compute capability from which on cuDNN convolves in bfloat16."""


class DeviceEvent(Protocol):
    """A point in the device's work."""

    def wait(self, within_s: float | None = None) -> None:
        """Blocks this thread, and no other, until the device is past it.

        Raises what the device failed with, and `EngineFailed` when it is not past it within `within_s` seconds.
        """
        ...


class Card(Protocol):
    """Where the network computes."""

    device: torch.device
    settle_s: float
    """Seconds of work after which the device has the pace that it keeps."""

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory of zeros that copies to and from the device need not wait for."""
        ...

    @contextmanager
    def frames(self) -> Iterator[None]:
        """Inside, this thread's work is frames' work."""
        ...

    @contextmanager
    def background(self) -> Iterator[None]:
        """Within it, this thread's work yields to the frames'."""
        ...

    def capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """`call` in the form that is cheapest to repeat; it must read and write the same memory every time. Inside `frames`."""
        ...

    def record_event(self) -> DeviceEvent:
        """A mark behind the work that this thread has given so far in its context."""
        ...

    def synchronize(self) -> None:
        """Waits for what the frames, the preparation and the loading of weights gave to the device.

        Raises what the device failed with, and `EngineFailed` when it does not answer within `ANSWER_S`.
        """
        ...

    def allocated(self) -> int:
        """Bytes of device memory that tensors of this process hold; 0 where it is the host's."""
        ...

    def empty_cache(self) -> None:
        """Gives memory back that is kept for reuse."""
        ...

    def probe(self) -> None:
        """Does the smallest piece of work. Raises what the device failed with, `EngineFailed` when it does not answer within
        `ANSWER_S`."""
        ...


class _CompletedEvent:
    def wait(self, within_s: float | None = None) -> None:
        """The processor has done its work when the call returns."""


class CpuCard:
    """The processor: everything is done when the call returns."""

    settle_s = 0.0

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Plain memory."""
        return torch.zeros(shape, dtype=dtype)

    @contextmanager
    def frames(self) -> Iterator[None]:
        """No gradients."""
        with torch.inference_mode():
            yield

    background = frames

    def capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """The call itself."""
        return call

    def record_event(self) -> DeviceEvent:
        """Past already."""
        return _CompletedEvent()

    def synchronize(self) -> None:
        """Does nothing: work on the processor is complete when a call returns."""

    def allocated(self) -> int:
        """Nothing beyond the process's own memory."""
        return 0

    def empty_cache(self) -> None:
        """Nothing is kept."""

    def probe(self) -> None:
        """The processor answers by running this."""


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self, within_s: float | None = None) -> None:
        """Without a limit it sleeps in the driver (a blocking event), without the interpreter's lock; with one it asks again and
        again, because nothing interrupts that sleep. The batcher's watch finds frames that hang."""
        if within_s is None:
            self._event.synchronize()
            return
        until = time.monotonic() + within_s
        while not self._event.query():  # type: ignore[no-untyped-call]  # torch does not annotate it
            if time.monotonic() > until:
                raise EngineFailed(f"The card has not answered for {within_s:g} s.")
            time.sleep(_POLL_S)


class CudaCard:
    """One CUDA device. Raises `EngineUnavailable` where there is none.

    Args:
        device: `cuda:0` …
        graphs: capture each bucket's kernels once and replay them; without, every frame launches some 1,500 kernels by itself.
    """

    def __init__(self, device: str, *, graphs: bool = True) -> None:
        self.device = torch.device(device)
        if not torch.cuda.is_available() or (self.device.index or 0) >= torch.cuda.device_count():
            raise EngineUnavailable(
                f"PyTorch sees no {device} ({torch.cuda.device_count()} CUDA devices).", field="device", value=device
            )
        self._graphs = graphs
        self.settle_s = SETTLE_S
        self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._background = torch.cuda.Stream(self.device, priority=0)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._pool = torch.cuda.graph_pool_handle()

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Pinned memory."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    @contextmanager
    def frames(self) -> Iterator[None]:
        """The frames' stream, no gradients."""
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    @contextmanager
    def background(self) -> Iterator[None]:
        """The stream of normal priority, no gradients."""
        with torch.inference_mode(), torch.cuda.stream(self._background):
            yield

    def capture(self, call: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Captured as a CUDA graph. All graphs share one pool of memory, because they never run at the same time.

        cuDNN's algorithms are timed in the warm runs; the capture takes those that won, and nothing is searched for in service.
        """
        with _searched_algorithms():
            for _ in range(WARM_RUNS):
                outputs = call()
        self.synchronize()
        if not self._graphs:
            return call
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may load or prepare something meanwhile
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = call()

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def record_event(self) -> DeviceEvent:
        """A blocking event on the current stream."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch does not annotate it
        event.record()
        return _CudaEvent(event)

    def synchronize(self) -> None:
        """A mark on each stream: `torch.cuda.synchronize` would wait for ever on a card that hangs."""
        for stream in (torch.cuda.default_stream(self.device), self._stream, self._background):
            with torch.cuda.stream(stream):
                mark = self.record_event()
            mark.wait(ANSWER_S)

    def allocated(self) -> int:
        """`torch.cuda.memory_allocated`."""
        return int(torch.cuda.memory_allocated(self.device))

    def empty_cache(self) -> None:
        """Empties PyTorch's cache."""
        torch.cuda.empty_cache()

    def probe(self) -> None:
        """One number on the stream of preparation. A card that is full has answered."""
        try:
            with device_errors(), self.background():
                torch.zeros(1, device=self.device).add_(1)
                self.record_event().wait(ANSWER_S)
        except torch.cuda.OutOfMemoryError:
            return


@contextmanager
def _searched_algorithms() -> Iterator[None]:
    """Within it cuDNN times its algorithms for every shape that is new, instead of guessing; what it found is used ever after."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def card_for(device: str, *, graphs: bool = True) -> Card:
    """`cpu` or `cuda:N`. Raises `EngineUnavailable` for a card that is not there."""
    return CpuCard() if device == "cpu" else CudaCard(device, graphs=graphs)


def convolves_bfloat16(device: str) -> bool:
    """Whether a device runs convolutions in bfloat16: the processor does, cards do from compute capability 8.0 on."""
    return device == "cpu" or torch.cuda.get_device_capability(device) >= _BFLOAT16_SINCE


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns the device's own failures into `EngineFailed`, and memory that ran out in a library into torch's `OutOfMemoryError`;
    that error and errors of the code pass as they are."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error)
        of_device = type(error).__name__ == "AcceleratorError" or any(word in text for word in _DEVICE_WORDS)
        if any(word in text for word in _MEMORY_WORDS) and (of_device or "find an engine" in text):
            raise torch.cuda.OutOfMemoryError(text.splitlines()[0]) from error
        if of_device:
            raise EngineFailed(f"The card failed: {text.splitlines()[0]}") from error
        raise


@contextmanager
def enough_memory(purpose: str) -> Iterator[None]:
    """`device_errors`, and `EngineOutOfMemory` where there is no memory to do what `purpose` says: "load the networks"."""
    try:
        with device_errors():
            yield
    except torch.cuda.OutOfMemoryError as error:
        raise EngineOutOfMemory(f"The card has no memory to {purpose}: {str(error).splitlines()[0]}") from error
