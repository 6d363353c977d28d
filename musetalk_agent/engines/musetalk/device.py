"""The device behind one seam: the processor, or a CUDA card with streams, pinned memory, graphs and events.

Everything that only runs with a card is in `CudaCard`. On a card frames are launched by one thread on one stream of high
priority; preparation works from its own thread on a stream of normal priority, so that a new avatar does not hold up speech.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from musetalk_agent.errors import EngineFailed, EngineUnavailable

Outputs = tuple[Tensor, ...]
WARM_RUNS = 2
"""Calls before a capture: libraries make their handles and work spaces in the first, the second shows that they are done."""
_DEVICE_WORDS = ("CUDA", "cuDNN", "CUDNN", "cuBLAS", "CUBLAS", "device-side assert")


class DeviceEvent(Protocol):
    """A point in the device's work."""

    def wait(self) -> None:
        """Blocks this thread, and no other, until the device is past it. Raises what the device failed with."""
        ...


class Card(Protocol):
    """Where the network computes."""

    device: torch.device

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
        """Waits for everything that this process gave to the device, on any of its streams."""
        ...

    def allocated(self) -> int:
        """Bytes of device memory that tensors of this process hold; 0 where it is the host's."""
        ...

    def empty_cache(self) -> None:
        """Gives memory back that is kept for reuse."""
        ...


class _CompletedEvent:
    def wait(self) -> None:
        """The processor has done its work when the call returns."""


class CpuCard:
    """The processor: everything is done when the call returns."""

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


class _CudaEvent:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        """Sleeps in the driver (a blocking event), without the interpreter's lock."""
        self._event.synchronize()


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
        self._stream = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]  # torch's own
        self._background = torch.cuda.Stream(self.device, priority=0)  # type: ignore[no-untyped-call]  # torch's own
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
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch's own
        event.record()
        return _CudaEvent(event)

    def synchronize(self) -> None:
        """`torch.cuda.synchronize`."""
        torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """`torch.cuda.memory_allocated`."""
        return int(torch.cuda.memory_allocated(self.device))

    def empty_cache(self) -> None:
        """Empties PyTorch's cache."""
        torch.cuda.empty_cache()


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


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns the device's own failures into `EngineFailed`; memory that ran out and errors of the code pass as they are."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if type(error).__name__ == "AcceleratorError" or any(word in str(error) for word in _DEVICE_WORDS):
            raise EngineFailed(f"The card failed: {str(error).splitlines()[0]}") from error
        raise
