"""`torch.vmap` without its overhead, which is more than that of a small network's operations.

`torch.vmap` flattens its arguments and results at every call, and has no rule for linear layers and layer norms, which
it takes apart. Here tensors come in and go out as lists, and these two have one. All else is torch's own batching.
What is to be called often is traced once: then neither vectorising nor autograd, nor the modules, take part in it.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# What torch.vmap itself is made of has no public name.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.nn import functional as F

_linear, _layer_norm = F.linear, F.layer_norm


def vmapped(function: Callable[[list[Tensor]], Sequence[Tensor]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what a function of tensors (...) returns for each of K, stacked (K, ...), of tensors (K, ...).

    Raises:
        RuntimeError: the function draws random numbers, or reads a number out of a tensor.
    """
    size = len(tensors[0])
    level = _functorch._vmap_increment_nesting(size, "error")
    try:
        with _rules():
            out = function([_functorch._add_batch_dim(x, 0, level) for x in tensors])
        return [_functorch._remove_batch_dim(x, level, size, 0) for x in out]
    finally:
        _functorch._vmap_decrement_nesting()


def traced(function: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> Callable[[list[Tensor]], Any]:
    """Return a function of tensors of these shapes as the bare list of its operations, gradients included.

    What is neither a tensor given nor made by the function is a constant of the result.
    """
    graph = make_fx(function)([x.detach() for x in tensors])
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        # There is no graph to be detached from, and derivatives hold products with 1.
        same = node.target is aten.mul.Scalar and node.args[1] == 1 and node.args[0].meta["val"].is_floating_point()
        if same or node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    for node in graph.graph.nodes:
        if node.target is aten.native_layer_norm.default and _is_narrow(*node.args[:3]):
            node.target = normalised
        elif node.target is aten.relu.default and _is_spent(node.args[0]):
            node.target = aten.relu_.default
    graph.graph.set_codegen(CodeGen())  # tensors in, a list out: no trees to be taken apart
    graph.recompile()

    def call(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return graph.forward(*tensors)

    return call


def _is_spent(node: Any) -> bool:
    """Whether a fresh result has one reader, which so may overwrite it."""
    return len(node.users) == 1 and node.target in (torch.ops.aten.addcmul.default, torch.ops.aten.baddbmm.default)


def _is_narrow(x: Any, shape: Sequence[int], weight: Any) -> bool:
    """Whether `normalised` computes a layer norm's rows, and faster than torch."""
    x = x.meta["val"]
    return weight is None and x.device.type == "cpu" and len(shape) == 1 and shape[0] <= 128


def normalised(x: Tensor, shape: Sequence[int], weight: None, bias: None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return what torch's ``native_layer_norm`` does, by whole passes: its own kernel costs much for each short row."""
    mean = x.mean(-1, keepdim=True)
    out = x - mean
    variance = torch.linalg.vector_norm(out, dim=-1, keepdim=True).square_().div_(shape[0])
    rstd = variance.add_(eps).rsqrt_()
    return out.mul_(rstd), mean, rstd


@contextmanager
def _rules() -> Iterator[None]:
    F.linear, F.layer_norm = linear, layer_norm
    try:
        yield
    finally:
        F.linear, F.layer_norm = _linear, _layer_norm


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As torch's own; of K inputs (B, I) and K weights with biases in one batched product."""
    if bias is None or input.dim() != 2 or not _batched(input, weight, bias):
        return _linear(input, weight, bias)
    x, w, b = map(_functorch.get_unwrapped, (input, weight, bias))  # (K, B, I), (K, O, I), (K, O)
    out = torch.baddbmm(b.unsqueeze(1), x, w.transpose(1, 2))
    return _functorch._add_batch_dim(out, 0, _functorch.maybe_get_level(input))


def layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As torch's own; of K inputs (B, I), weights and biases in one kernel and one scaling."""
    if weight is None or bias is None or input.dim() != 2 or not _batched(input, weight, bias):
        return _layer_norm(input, normalized_shape, weight, bias, eps)
    x, w, b = map(_functorch.get_unwrapped, (input, weight, bias))  # (K, B, I), (K, I), (K, I)
    out = torch.addcmul(b.unsqueeze(1), _layer_norm(x, x.shape[2:], None, None, eps), w.unsqueeze(1))
    return _functorch._add_batch_dim(out, 0, _functorch.maybe_get_level(input))


def _batched(*tensors: Tensor) -> bool:
    """Whether all carry a hidden first dimension, and that of one `vmapped` alone."""
    return all(
        _functorch.is_batchedtensor(x)
        and _functorch.maybe_get_bdim(x) == 0
        and not _functorch.is_functorch_wrapped_tensor(_functorch.get_unwrapped(x))
        for x in tensors
    )
