"""Files of Hugging Face's layout: config.json, and tensors in one or several files of safetensors, never pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rlcore.errors import UserError, nearest

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Tensors:
    """The tensors of a folder by name, read when asked for.

    Args:
        folder: with model.safetensors, or the index of several such files.
        prefix: what names may begin with and is left out.

    Raises:
        UserError: there is no such file, or it is none of safetensors.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Any, str]] = {}
        for file in _files(folder):
            try:
                opened: Any = safe_open(folder / file, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{folder / file}: expected weights as safetensors, got: {error}") from None
            for name in opened.keys():  # noqa: SIM118 - no mapping
                plain = name.removeprefix(prefix).replace(".gamma", ".weight").replace(".beta", ".bias")
                self._where[plain] = (opened, name)

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a copy as float32.

        Raises:
            UserError: it is absent or of another shape.
        """
        if name not in self._where:
            raise UserError(f"{self.folder} has no tensor '{name}'{nearest(name, self._where)}")
        opened, full = self._where[name]
        found = tuple(opened.get_slice(full).get_shape())
        if found != shape:
            raise UserError(f"{self.folder}: tensor '{name}' is {found}, expected {shape} by config.json")
        return opened.get_tensor(full).to(torch.float32, copy=True)


def _files(folder: Path) -> list[str]:
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).is_file():
        pickled = " (pickled weights are not read)" if list(folder.glob("*.bin")) else ""
        raise UserError(f"{folder} has no {SINGLE}{pickled}; expected weights as safetensors")
    listed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict):
        raise UserError(f"{folder / INDEX}: expected a mapping weight_map, got {type(listed).__name__}")
    return sorted({Path(str(name)).name for name in listed.values()})


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping that a JSON file holds.

    Raises:
        UserError: it holds none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: expected a readable JSON file, got: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected a mapping, got {type(found).__name__}")
    return found
