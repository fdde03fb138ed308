"""Writing a `Greedy` in each format, and opening what was written, in a fresh load, as a function of tensors."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlcore.errors import UserError
from rlcore.export.exported import Greedy, Signature

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "torchscript": ".pt", "safetensors": ".safetensors"}
NEEDS = ("onnx", "onnxscript", "onnxruntime")
Artefact = Callable[[Sequence[Tensor]], list[Tensor]]  # inputs to outputs, in the order of the signature


def require(format: str, opset: int | None) -> None:
    """Make sure that a format can be written.

    Raises:
        UserError: packages are missing, or the format has no opset.
    """
    if format not in SUFFIXES:
        raise UserError(f"--format: got '{format}', expected {', '.join(SUFFIXES)}")
    if format == "onnx" and (missing := [name for name in NEEDS if find_spec(name) is None]):
        raise UserError(f"--format onnx needs {', '.join(missing)}: pip install 'rlcore[export]'")
    if format != "onnx" and opset is not None:
        raise UserError(f"--opset: got {opset}, expected none beside --format {format}; only onnx has one")


@torch.no_grad()
def traced(greedy: Greedy) -> torch.export.ExportedProgram:
    """Return the function as one graph of operations whose batch, and length of texts, may vary.

    Raises:
        UserError: the agent's act cannot be traced so.
    """
    names = greedy.signature
    inputs, batch = greedy.inputs(), torch.export.Dim("batch")
    free: list[dict[int, Any]] = [{0: batch} for _ in inputs]
    if names.lengths:
        longest = int(greedy.spec.obs_space.shape[0])  # type: ignore[index]
        for sizes in free[: len(names.obs)]:
            sizes[1] = torch.export.Dim("length", max=longest)
    try:
        with quiet():
            program = torch.export.export(greedy, inputs, dynamic_shapes=(tuple(free),), strict=False)
            program = program.run_decompositions({})
    except Exception as error:  # whatever the agent's code or the tracer raises
        what = " ".join(str(error).split())[:300]
        agent = type(greedy.agent).__name__
        raise UserError(f"agent {agent} cannot be exported: {type(error).__name__}: {what}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


@torch.no_grad()
def write(greedy: Greedy, format: str, path: Path, opset: int | None = None) -> None:
    """Write a function as onnx, pt2 or torchscript.

    Raises:
        UserError: the agent's act cannot be traced, or not be written in that opset.
    """
    program = traced(greedy)  # for torchscript a test only: its own tracer takes sizes for constants and says nothing
    with quiet():
        if format == "onnx":
            _write_onnx(program, greedy, path, opset)
        elif format == "pt2":
            torch.export.save(program, path)
        else:
            scripted: Any = torch.jit.trace(greedy, greedy.inputs(), check_trace=False)
            scripted.save(str(path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch says of its own parts: deprecations, packages it could use."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _write_onnx(program: torch.export.ExportedProgram, greedy: Greedy, path: Path, opset: int | None) -> None:
    names = greedy.signature
    plain = greedy.dtype == torch.float32  # else optimising would widen what is stored
    found = torch.onnx.export(
        program,
        dynamo=True,
        input_names=names.inputs,
        output_names=names.outputs,
        opset_version=opset,
        optimize=plain,
        verbose=False,
    )
    assert found is not None
    if opset not in (None, got := found.model.graph.opset_imports[""]):  # torch says nothing where it cannot convert
        raise UserError(f"--opset: got {opset}, which the agent cannot be written in; expected one such as {got}")
    for node in found.model.graph.all_nodes():
        node.metadata_props.clear()  # where in which file each operation was called: half of a small file
        node.doc_string = None
    found.save(str(path), external_data=False)


def open_artefact(path: Path, format: str, names: Signature) -> Artefact:
    """Load what was written, with nothing of what wrote it, for one thread; onnx is asked by the names it must have."""
    if format == "onnx":
        return _open_onnx(path, names)
    with quiet():
        module: Any = torch.export.load(path).module() if format == "pt2" else torch.jit.load(str(path))

    def call(given: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*given))

    return call


def _open_onnx(path: Path, names: Signature) -> Artefact:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(given: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(names.inputs, given, strict=True)}
        return [torch.from_numpy(x) for x in session.run(names.outputs, arrays)]

    return call
