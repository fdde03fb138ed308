"""Smaller variants of an exported agent: pruned, in bfloat16, in int8; and what each costs and saves.

pruned  w -> 0 for the given fraction of all weights of two or more dimensions, those of least magnitude     global L1
bf16    w -> bfloat16(w), stored so and widened where it is read: half the size, arithmetic in float32
int8    w -> round(w / s), s a scale; activations are scaled as they come, or for convolutional networks by what was
        seen on real observations. Weights of under `SMALL` numbers stay float32: they lie at inputs and outputs, where
        rounding costs most, and weigh nothing.
"""

from __future__ import annotations

import copy
import gzip
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.prune import L1Unstructured

from rlcore import build
from rlcore.agent import Agent
from rlcore.evaluation import evaluate
from rlcore.export.check import ArtefactAgent, Rows, state_of
from rlcore.export.exported import Signature, drop_unread
from rlcore.export.formats import Artefact
from rlcore.run import Run
from rlcore.tree import leaves
from rlcore.types import Spec

SMALL = 4096  # numbers
CALLS = 200  # timed, for a median
CALIBRATION = 300  # observations


@torch.no_grad()
def pruned(agent: Agent, spec: Spec, fraction: float) -> Agent:
    """Return a copy with a fraction of the weights that acting reads zeroed, the smallest."""
    agent = copy.deepcopy(agent)
    acting = copy.deepcopy(agent)
    drop_unread(acting, spec)
    own = dict(agent.named_parameters())
    weights = [own[name] for name, x in acting.named_parameters() if x.dim() > 1]
    flat = torch.cat([x.flatten() for x in weights])
    mask = L1Unstructured(fraction).compute_mask(flat, torch.ones_like(flat))
    for x, kept in zip(weights, mask.split([x.numel() for x in weights]), strict=True):
        x.mul_(kept.view_as(x))
    return agent


@torch.no_grad()
def rounded(agent: Agent) -> Agent:
    """Return a copy whose parameters are those that bfloat16 can hold."""
    agent = copy.deepcopy(agent)
    for x in agent.parameters():
        x.copy_(x.bfloat16())
    return agent


def to_int8(source: Path, target: Path, names: Signature, inputs: Sequence[Rows]) -> None:
    """Write an onnx file with int8 weights; convolutional networks are calibrated on real ``inputs``."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    graph = onnx.load(str(prepared)).graph
    sizes = {x.name: int(np.prod(x.dims)) for x in graph.initializer}
    convolutional = any(node.op_type == "Conv" for node in graph.node)
    small = [n.name for n in graph.node if not any(sizes.get(x, 0) >= SMALL for x in n.input)]
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # advice on how the library wants to be called
    try:
        if convolutional:
            reader: Any = _Reader(names, inputs)
            quantization.quantize_static(
                str(prepared), str(target), reader, per_channel=True, nodes_to_exclude=small, op_types_to_quantize=KINDS
            )
        else:
            quantization.quantize_dynamic(str(prepared), str(target), per_channel=True, nodes_to_exclude=small)
    finally:
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)


KINDS = ["Conv", "MatMul", "Gemm"]


class _Reader:
    """Gives onnxruntime's calibration its inputs, one batch at a time."""

    def __init__(self, names: Signature, inputs: Sequence[Rows]) -> None:
        self.names, self.left = names, list(inputs)

    def get_next(self) -> dict[str, Any] | None:
        if not self.left:
            return None
        return {name: x.numpy() for name, x in zip(self.names.inputs, self.left.pop(0), strict=True)}


def measured(
    run: Run, names: Signature, path: Path, artefact: Artefact, rows: Rows, episodes: int | None
) -> dict[str, Any]:
    """Return what a file weighs, how fast it answers one observation, and how well it plays, by `evaluate`.

    Args:
        run: says in which environment and on which seeds.
        names: of the file's inputs and outputs.
        path: the file.
        artefact: the file, opened.
        rows: real inputs; the first is timed.
        episodes: to play; None: the run's eval.final_episodes. Of a task: the whole test split.
    """
    one = [x[:1] for x in rows]
    times = []
    for _ in range(CALLS + 20):
        start = time.perf_counter()
        artefact(one)
        times.append(time.perf_counter() - start)
    player = ArtefactAgent(run.config.agent, run.spec, names, list(leaves(state_of(run.agent, 1))), artefact)
    settings = run.config.eval
    count = episodes or settings.final_episodes
    env = build.evaluation_env(run.config, "test", count)
    try:
        result = evaluate(player, env, env.episodes or count, settings.final_seed, settings.max_steps)
    finally:
        env.close()
    found = {
        "bytes": path.stat().st_size,
        "compressed_bytes": len(gzip.compress(path.read_bytes(), 6)),
        "latency_ms": 1e3 * float(np.median(times[20:])),
        "return": result["mean"],
    }
    return found | ({"accuracy": result["accuracy"]} if "accuracy" in result else {})
