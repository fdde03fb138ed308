"""Acting compiled into one graph, for training: an agent's ``act`` with exploration.

With few environments acting costs what calling its operations costs; one graph takes a half to a quarter of that, the
more of its products are small enough to be loops of the graph's own. The graph reads the agent's own parameters and
buffers, and is made before the first act that asks the agent, so a resumed run acts by it from its first act on, too.
Its inputs are laid out contiguously: what is compiled does not depend on their origin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlcore import compiled_graph
from rlcore.agent import Agent
from rlcore.tree import leaves, tmap
from rlcore.types import Act

Inputs = tuple[Any, Any, dict[str, Tensor], dict[str, Tensor], Tensor | None]  # obs, state, knobs, noise, mask
Acts = Callable[[Inputs], Act]


SMALL = 2**16  # multiplications up to which a product is faster as a sum; measured at 1 to 16 rows of 64 to 256


class Call(nn.Module):
    """An agent's ``act`` as a module: `torch.func.functional_call` reaches it through `forward`."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, inputs: Inputs) -> Act:
        """Act."""
        return self.agent.act(*inputs)


def compiled_act(agent: Agent, inputs: Inputs) -> Acts:
    """Return ``agent.act``, compiled for inputs of the structure and shapes of those given.

    If it cannot be compiled a note says so, and it is returned as it is. What is returned is to be called in inference
    mode, for the agent in the mode (training or evaluation) that it is in now.
    """
    made = compiled_graph.attempted(f"{type(agent).__name__}.act runs", lambda: _compiled(agent, inputs))
    return made or (lambda inputs: agent.act(*inputs))


def _compiled(agent: Agent, inputs: Inputs) -> Acts:
    compiled_graph.prepare()
    named = dict(compiled_graph.named_tensors(agent))
    call, form = Call(agent), Act(torch.empty(0))

    def traced(*tensors: Tensor) -> list[Tensor]:
        nonlocal form
        own = iter(tensors)
        rest = {f"agent.{name}": next(own) for name in named}
        again = tmap(lambda _: next(own), inputs)
        with torch.no_grad():
            act: Any = torch.func.functional_call(call, rest, (again,))
        form, results = compiled_graph.split(act)
        return results

    fixed = [x.detach() for x in named.values()]
    # Outside inference mode: it forbids what tracing does to tensors.
    with torch.inference_mode(False):
        given = [x.clone() if x.is_inference() else x for x in _contiguous(inputs)]
        run = compiled_graph.compile_graph(traced, [*fixed, *given], {torch.ops.aten.addmm.default: product})
    names, states = list(form.extras), len(list(leaves(form.state)))

    def act(inputs: Inputs) -> Act:
        action, *more = run([*fixed, *_contiguous(inputs)])
        state = ()
        if states:
            own = iter(more[:states])
            state = tmap(lambda _: next(own), form.state)
        return Act(action, state, dict(zip(names, more[states:], strict=True)))

    return act


def product(bias: Tensor, x: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return ``bias + x @ weight``, (B, O), as a sum, where calling a matrix product costs more than that.

    A sum is part of one loop with what comes before and after it: a small network on a few rows is one loop.
    """
    rows, inputs = x.shape
    if beta != 1 or alpha != 1 or x.device.type != "cpu" or rows * inputs * weight.shape[1] > SMALL:
        return NotImplemented
    return bias + (x.unsqueeze(2) * weight.unsqueeze(0)).sum(1)


def _contiguous(inputs: Inputs) -> list[Tensor]:
    obs, state, knobs, noise, mask = inputs
    found = [obs] if isinstance(obs, Tensor) else list(leaves(obs))
    if state:
        found += leaves(state)
    found += knobs.values()
    found += noise.values()
    if mask is not None:
        found.append(mask)
    return [x.contiguous() for x in found]
