"""TensorRT's interface as the bindings of 11.4 have it, over plain functions and host memory.

It raises where a caller breaks what NVIDIA's documentation demands: a context whose memory is the caller's is given some before it
runs; one that has run keeps its shapes, because graphs captured from it would be undefined; nothing runs without its addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

Compute = Callable[[np.ndarray, np.ndarray], np.ndarray]


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class Context:
    """`IExecutionContext` of a plan with two inputs and one output, all float32."""

    def __init__(self, trt: FakeTensorRT, strategy: ExecutionContextAllocationStrategy) -> None:
        self._trt, self._needs_memory = trt, strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.memory: tuple[int, int] | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.runs = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 64 == 0  # a card's memory is aligned to 256 bytes, the processor's to 64
        assert size >= self._trt.device_memory_size_v2
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name in ("latents", "audio")
        assert not self.runs or self.shapes[name] == tuple(shape), "a context that has run is given another shape"
        if shape[0] > self._trt.most:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.memory or not self._needs_memory, "no device memory"
        assert stream_handle == self._trt.stream
        self.runs += 1
        made = self._trt.compute(*(self._array(name, self.shapes[name]) for name in ("latents", "audio")))
        self._array("face", made.shape)[:] = made
        return not self._trt.fails

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = ctypes.c_float * int(np.prod(shape))
        return np.frombuffer(kind.from_address(self._addresses[name]), np.float32).reshape(shape)


class FakeTensorRT:
    """In the place of the module. `compute` is what every plan computes; `building` is called while one is built."""

    class Logger:
        WARNING = 2

        def __init__(self, min_severity: int) -> None: ...

    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    MemoryPoolType = MemoryPoolType
    device_memory_size_v2 = 4096

    def __init__(self, compute: Compute, stream: int = 0, most: int = 16) -> None:
        self.compute, self.stream, self.most, self.fails = compute, stream, most, False
        self.contexts: list[Context] = []
        self.building: Callable[[], None] = lambda: None
        self.profile_shapes: dict[str, tuple[Any, Any, Any]] = {}
        self.serialized: bytes | None = b"a plan"
        self.onnx_bytes = 0

    # the runtime and its engine
    def Runtime(self, logger: Any) -> FakeTensorRT:
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> FakeTensorRT | None:
        return self if plan == self.serialized else None

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> Context | None:
        self.contexts.append(Context(self, strategy))
        return self.contexts[-1]

    # the builder, its network, parser, configuration and profile
    def Builder(self, logger: Any) -> FakeTensorRT:
        return self

    def create_network(self, flags: int) -> FakeTensorRT:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return self

    def OnnxParser(self, network: Any, logger: Any) -> FakeTensorRT:
        return self

    def parse_from_file(self, path: str) -> bool:
        self.onnx_bytes = Path(path).stat().st_size
        return True

    def create_builder_config(self) -> FakeTensorRT:
        return self

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE and size > 0

    def create_optimization_profile(self) -> FakeTensorRT:
        return self

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        self.profile_shapes[name] = (least, best, most)

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
        self.building()
        return self.serialized
