"""Functions of tensors traced and compiled, each into one graph; where compiled graphs are kept between runs."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlcore.agent import Agent
from rlcore.errors import note
from rlcore.overheads import settle
from rlcore.tree import tmap

T = TypeVar("T")

OPTIONS = {
    "fallback_random": True,  # dropout draws what it draws uncompiled
    "size_asserts": False,  # the shapes are looked at here already
    "cpp.vec_isa_ok": True,  # what the processor says it has is not tried out in processes of its own
}


def prepare() -> None:
    """Choose where compiled graphs are kept between runs: TORCHINDUCTOR_CACHE_DIR, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(home) / "rlcore" / "compiled"))


def attempted(what: str, make: Callable[[], T]) -> T | None:
    """Return what ``make`` compiles; None if it cannot, and a note says that ``what`` ("X.act runs") is uncompiled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch's compiler says of its own parts
            return make()
    except Exception as error:  # whatever the code that is traced or the compiler raises
        why = " ".join(str(error).split())[:200]
        note(f"{what} uncompiled: {type(error).__name__}: {why}")
        return None


def compile_graph(
    function: Callable[..., list[Tensor]], tensors: list[Tensor], table: dict[Any, Any] | None = None
) -> Callable[[list[Tensor]], Any]:
    """Trace a function of tensors and compile it; inputs that it does not read are left out.

    A ``table`` says how to do some of torch's operations, for a function that needs no gradient: what torch wraps
    around other graphs, which costs as much as a small network, is then left out.
    """
    import torch._inductor.config
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    examples = [fake.from_tensor(t) for t in tensors]
    with fake, torch._inductor.config.patch(OPTIONS):
        if table is None:
            traced = make_fx(function)(*examples)
        else:
            traced = make_fx(torch.func.functionalize(function), {**select_decomp_table(), **table})(*examples)
    _check_constants(traced, tensors)
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    used = [i for i, node in enumerate(inputs) if node.users]
    pick: Any = itemgetter(*used) if len(used) > 1 else itemgetter(slice(used[0], used[0] + 1) if used else slice(0))
    for node in inputs:
        if not node.users:
            traced.graph.erase_node(node)
    traced.recompile()
    cpu = tensors[0].device.type == "cpu"
    # Without a tracing context torch looks into none of its caches.
    with torch.no_grad(), torch.random.fork_rng(devices=[] if cpu else None), tracing(TracingContext(fake)):
        if table is not None:
            with torch._inductor.config.patch(OPTIONS):
                made: Any = compile_fx_inner(traced, [examples[i] for i in used])
            inner = made.current_callable  # without what looks, at every call, whether the call is recorded
            settle()
            return lambda given: inner([*pick(given)])
        compiled: Any = torch._inductor.compile(traced, [examples[i] for i in used], options=OPTIONS)
    settle()
    # What torch wraps it in, for code that is being traced, costs as much as a small layer.
    compiled = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    return lambda given: compiled(*pick(given))


def _check_constants(traced: torch.fx.GraphModule, tensors: list[Tensor]) -> None:
    """Make sure that the graph took no tensor of the agent for a constant."""
    own = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = getattr(traced, node.target)
            if isinstance(value, Tensor) and value.numel() and value.untyped_storage().data_ptr() in own:
                raise RuntimeError(f"a tensor {tuple(value.shape)} that changes is read as a constant")


def named_tensors(agent: Agent) -> Iterator[tuple[str, Tensor]]:
    """Yield an agent's parameters and buffers by name."""
    yield from agent.named_parameters()
    yield from agent.named_buffers()


def split(tree: Any) -> tuple[Any, list[Tensor]]:
    """Return a tree of tensors and plain values with ... for each tensor, and the tensors."""
    tensors: list[Tensor] = []

    def take(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        tensors.append(x)
        return ...

    return tmap(take, tree), tensors
