"""Bytes that a network moves through memory outside its convolutions and matrix products, counted from shapes.

On a card those bytes take time of their own, which matrix units cannot shorten. Nothing is computed where the tensors are on the
meta device, so a network of full size is counted in a second and without weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "_scaled_dot_product")
_MADE_OF_NOTHING = ("empty", "new_empty", "arange", "zeros", "ones", "full", "scalar_tensor", "_assert")
_TWICE = ("native_group_norm",)
"""Reads its input for the moments and again for the result. A layer norm's rows stay in registers between the two."""


class _Attention(TorchFunctionMode):
    """Attention as one operation, as on a card; the meta device would take it apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, value = args[0], args[2]
            batch, heads, places, _ = query.shape
            # flash attention leaves the heads of a place together
            return query.new_empty(batch, places, heads, value.shape[-1]).transpose(1, 2)
        return func(*args, **(kwargs or {}))


class ElementwiseTraffic(TorchDispatchMode):
    """Counts within `with`: `total` bytes, and `by_operation`.

    Every operation reads its inputs and writes its outputs once; views, convolutions, matrix products and attention are free. Two
    things are counted as a card does them: group norm reads twice, and a convolution's bias is an operation of its own, which reads
    and writes the result (a matrix product takes its bias along).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.by_operation: Counter[str] = Counter()
        self._stack = ExitStack()

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.by_operation.values())

    def __enter__(self) -> ElementwiseTraffic:
        self._stack.enter_context(_Attention())
        super().__enter__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._stack.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        if func.is_view or name.startswith(_MADE_OF_NOTHING) or name in ("detach", "_unsafe_view"):
            return made
        if name.startswith(_PRODUCTS):
            if name == "convolution" and args[2] is not None:
                self.by_operation["bias"] += 2 * _bytes(made)
            return made
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        moved = sum(map(_bytes, given)) + sum(_bytes(leaf) for leaf in tree_leaves(made) if isinstance(leaf, Tensor))
        if name in _TWICE:
            moved += _bytes(given[0])
        self.by_operation[name] += moved
        return made


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def elementwise_bytes(call: Callable[[], object]) -> int:
    """Bytes that a call moves outside convolutions and matrix products. Its tensors may lie on the meta device."""
    with torch.no_grad(), ElementwiseTraffic() as counter:
        call()
    return counter.total
