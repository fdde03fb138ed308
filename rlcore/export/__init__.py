"""A run's agent as a file that other programs run: onnx, pt2, torchscript, or its weights as safetensors.

1. play, or draw, 1,000 real observations            `rlcore.export.check`
2. write the greedy act                              `rlcore.export.exported`, `rlcore.export.formats`
3. load the file anew and compare it with the agent: the difference is at most 1e-5, or there is no file
4. put it in its place, with a JSON file of names, shapes, spaces and settings, and the tokenizer of texts, beside it
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from rlcore import config as configs
from rlcore import runs
from rlcore.agent import Agent, load_weights
from rlcore.errors import UserError
from rlcore.export import quantize
from rlcore.export.check import TOLERANCE, Rows, answers, compare, observations
from rlcore.export.exported import Greedy, Signature
from rlcore.export.formats import SUFFIXES, Artefact, open_artefact, require, write
from rlcore.export.metadata import describe
from rlcore.run import Run, blank, load

OBSERVATIONS = 1000
TOKENIZER = ".tokenizer.json"  # what the library tokenizers reads


class Export(NamedTuple):
    """What was written."""

    path: Path
    metadata: dict[str, Any]  # what the JSON file beside it says; of a variant with the table of before and after


class Candidate:
    """A file that was written, opened anew and compared with the agent.

    Args:
        run: whose agent it is.
        agent: the agent, or a variant of it in float32.
        format: of the file.
        path: the file.
        inputs: real ones.
        opset: of onnx.
        half: store its weights in bfloat16.

    Raises:
        UserError: it differs from the agent.
    """

    def __init__(
        self,
        run: Run,
        agent: Agent,
        format: str,
        path: Path,
        inputs: Sequence[Rows],
        opset: int | None = None,
        half: bool = False,
    ) -> None:
        agent = quantize.rounded(agent) if half else agent
        dtype = torch.bfloat16 if half else torch.float32
        self.run, self.path, self.inputs = run, path, inputs
        self.greedy = Greedy(agent, run.spec, dtype, inputs[0])
        if format == "safetensors":
            save_weights(run, agent, path, dtype)
        else:
            write(self.greedy, format, path, opset)
        self._compare(agent, format)
        self._check(format)

    def to_int8(self, path: Path) -> None:
        """Take an onnx file with int8 weights instead, and compare that one with the agent."""
        calibration = observations(self.run, quantize.CALIBRATION, splits=("train", "validation", "test"))
        quantize.to_int8(self.path, path, self.greedy.signature, calibration)
        self.path = path
        self._compare(self.run.agent, "onnx")

    def _compare(self, agent: Agent, format: str) -> None:
        names = self.greedy.signature
        self.artefact: Artefact = _opened(self.path, format, names)
        expected = answers(agent, self.run.spec, names, self.inputs)
        self.difference = compare(names, self.run.spec, self.inputs, expected, self.artefact)

    def _check(self, format: str) -> None:
        found = self.difference
        if not found.largest <= TOLERANCE or found.wrong:
            raise UserError(
                f"--format {format}: the file differs from the agent by {found.largest:.3g} on {found.observations} "
                f"observations, {found.wrong} of them with another action; expected at most {TOLERANCE:g}, and none: "
                "nothing was written"
            )

    def row(self, variant: str, episodes: int | None) -> dict[str, Any]:
        """Return what it weighs, how fast it is and how it plays."""
        names = self.greedy.signature
        found = quantize.measured(self.run, names, self.path, self.artefact, self.inputs[0], episodes)
        return {"variant": variant, **found}


def export(
    run: str | Path,
    format: str = "onnx",
    out: str | Path | None = None,
    checkpoint: str | None = None,
    quantized: str | None = None,
    prune: float = 0.0,
    opset: int | None = None,
    episodes: int | None = None,
) -> Export:
    """Write a run's agent to a file, checked against the agent before it is put in its place.

    Args:
        run: its folder.
        format: onnx, pt2, torchscript or safetensors.
        out: the file [RUN/export/model.onnx, or as the format and variant are].
        checkpoint: last, best or a frame [the run's eval.use].
        quantized: int8 or bf16.
        prune: fraction of the weights to zero, in [0, 1).
        opset: of onnx [torch's default].
        episodes: that a variant is measured over [the run's eval.final_episodes].

    Raises:
        UserError: the run, the agent or the format cannot be exported so, packages are missing, or the file differs
            from the agent by more than 1e-5.
    """
    _require(format, opset, quantized, prune)
    source = load(run, checkpoint)
    source.agent.cpu()
    source.config = source.config.model_copy(update={"device": "cpu"})
    variant = "-".join(filter(None, (f"pruned{100 * prune:g}" if prune else "", quantized or "")))
    suffix = SUFFIXES[format]
    path = Path(out) if out else source.path / "export" / f"{'-'.join(filter(None, ('model', variant)))}{suffix}"
    _writable(path)
    inputs = observations(source, OBSERVATIONS)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        plain = Candidate(source, source.agent, format, Path(folder) / f"plain{suffix}", inputs, opset)
        chosen, table = plain, [plain.row("fp32", episodes)] if variant else []
        if prune or quantized == "bf16":
            agent = quantize.pruned(source.agent, source.spec, prune) if prune else source.agent
            file = Path(folder) / f"variant{suffix}"
            chosen = Candidate(source, agent, format, file, inputs, opset, half=quantized == "bf16")
        if quantized == "int8":
            chosen.to_int8(Path(folder) / "int8.onnx")
        if variant:
            table.append(chosen.row(variant, episodes))
        metadata = {"format": format, "file": path.name, "variant": variant or "fp32", **describe(source, plain.greedy)}
        metadata |= {"checked": chosen.difference._asdict()} | ({"before_and_after": table} if table else {})
        _describe(source, path, metadata)
        os.replace(chosen.path, path)
    return Export(path, metadata)


def _require(format: str, opset: int | None, quantized: str | None, prune: float) -> None:
    require(format, opset)
    if quantized not in (None, "int8", "bf16"):
        raise UserError(f"--quantize: got '{quantized}', expected int8 or bf16")
    if quantized == "int8" and format != "onnx":
        raise UserError(f"--quantize int8: got --format {format}, expected onnx, the only format that holds int8 here")
    if not 0 <= prune < 1:
        raise UserError(f"--prune: got {prune:g}, expected a fraction from 0 to below 1")


def _writable(path: Path) -> None:
    """Make sure, before anything is computed, that a file can be put there."""
    if path.is_dir():
        raise UserError(f"--out {path}: got a folder, expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(
            f"--out: cannot write to '{path.parent}': {error.strerror}; expected a writable folder"
        ) from None


def _describe(run: Run, path: Path, metadata: dict[str, Any]) -> None:
    """Write the files beside one: metadata, with what the environment fitted to its data, and a tokenizer."""
    fitted = runs.read_json(run.path / "fitted.json")
    if "vocabulary" in fitted:
        _beside(path, TOKENIZER).write_text(json.dumps(fitted.pop("vocabulary"), ensure_ascii=False))
    metadata = metadata | ({"fitted": fitted} if fitted else {})
    _beside(path, ".json").write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n")


def _opened(path: Path, format: str, names: Signature) -> Artefact:
    """Load a file anew, as a function of tensors."""
    if format != "safetensors":
        return open_artefact(path, format, names)
    run = load_export(path)
    greedy = Greedy(run.agent, run.spec)

    def call(given: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(greedy(*given))

    return call


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def save_weights(run: Run, agent: Agent, path: Path, dtype: torch.dtype) -> None:
    """Write an agent's ``state_dict`` as safetensors, its parameters in ``dtype``; and what `load_export` needs."""
    parameters = {name for name, _ in agent.named_parameters(remove_duplicate=False)}
    tensors = {
        name: x.to(dtype if name in parameters else x.dtype).clone(memory_format=torch.contiguous_format)
        for name, x in agent.state_dict().items()
    }
    path.write_bytes(safetensors.torch.save(tensors))  # unlike save_file with the permissions of any other file
    _describe(run, path, {"config": run.config.model_dump(mode="json")})


def load_export(path: str | Path) -> Run:
    """Load a run that was exported as safetensors, from the files beside it: it acts, evaluates and predicts.

    Raises:
        UserError: the files are not there, or do not fit one another.
    """
    path = Path(path)
    about = runs.read_json(_beside(path, ".json"))
    if not path.is_file() or "config" not in about:
        raise UserError(f"{path}: expected a file of safetensors, and {path.name}.json beside it")
    config = configs.validate(about["config"], f"{path.name}.json")
    fitted = dict(about.get("fitted", {}))
    if vocabulary := runs.read_json(_beside(path, TOKENIZER)):
        fitted["vocabulary"] = vocabulary
    agent, spec, predictor = blank(config, fitted)
    own = agent.state_dict()
    weights = {
        name: x.to(own[name].dtype if name in own else x.dtype) for name, x in safetensors.torch.load_file(path).items()
    }
    load_weights(agent, weights, str(path))
    return Run(path, config, agent, spec, predictor)
