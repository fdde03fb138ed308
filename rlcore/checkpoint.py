"""Checkpoints: atomic, verified, safe to load.

A checkpoint is a folder::

    agent.safetensors   the agent's state_dict
    state.safetensors   the tensors of everything else
    state.json          the structure of everything else, with references to its tensors
    manifest.json       format, writer's version, frames, size and CRC-32 of each file, CRC-32 of itself

It is written beside its final place, synced, read back and only then renamed, so that a kill at any
moment leaves the previous one. A CRC finds truncation and flipped bits (it runs at twice the speed of
the hashes); nobody's tampering can make loading run code, since nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlcore.encoding import decode, encode
from rlcore.errors import UserError

FORMAT = 1
# format n -> what turns its (agent, state) into those of format n + 1
MIGRATIONS: dict[int, Callable[[dict[str, Tensor], Any], tuple[dict[str, Tensor], Any]]] = {}

_AGENT, _STATE, _TREE, _MANIFEST = "agent.safetensors", "state.safetensors", "state.json", "manifest.json"
_TMP, _OLD = ".tmp-", ".old-"  # being written or removed; being replaced

Report = Callable[[str], object]


class Checkpoint(NamedTuple):
    """What a checkpoint holds. Tensors are on the CPU and own their memory."""

    frames: int
    path: Path
    agent: dict[str, Tensor]
    state: Any


class _Damaged(UserError):
    """Truncated, incomplete or altered: an earlier checkpoint may still be good."""


def save(folder: Path, frames: int, agent: dict[str, Tensor], state: Any, name: str | None = None) -> Path:
    """Write the checkpoint ``folder/name`` and return its path; one of the same name is replaced.

    Args:
        folder: the run's checkpoints.
        frames: environment frames seen so far.
        agent: the agent's state_dict.
        state: everything else, nested as `rlcore.encoding.encode` takes it.
        name: None: ``frames`` in twelve digits.

    Raises:
        UserError: the disk is full or the folder cannot be written; the last good checkpoint is intact.
        TypeError: ``state`` holds what cannot be stored.
    """
    target = folder / (name or f"{frames:012d}")
    temporary = folder / f"{_TMP}{target.name}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        try:
            temporary.mkdir()
            _write(temporary, frames, agent, state)
            _replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                _sweep(folder)
            raise
    return target


def load(path: Path, report: Report = lambda sentence: None) -> Checkpoint:
    """Return the checkpoint at ``path``, or the newest good one in the folder ``path``.

    Raises:
        UserError: there is none, it is damaged, or its format is one that this version does not read.
    """
    path = named(path.parent, path.name) or path
    if not (path / _MANIFEST).exists():
        newest = latest(path, report)
        if newest is None:
            raise UserError(f"'{path}' is no checkpoint and holds no good one; expected the checkpoints of a run")
        path = newest
    manifest = _verified(path)
    agent, tensors = _read(path / _AGENT), _read(path / _STATE)
    state = decode(json.loads((path / _TREE).read_bytes()), tensors)
    for number in range(manifest["format"], FORMAT):
        agent, state = MIGRATIONS[number](agent, state)
    return Checkpoint(manifest["frames"], path, agent, state)


def named(folder: Path, name: str) -> Path | None:
    """Return the checkpoint ``folder/name`` (if a kill cut its replacement short, the one it had), or None."""
    return next((path for path in (folder / name, folder / f"{_OLD}{name}") if path.is_dir()), None)


def latest(folder: Path, report: Report = lambda sentence: None) -> Path | None:
    """Return the newest good checkpoint of ``folder``, or None; ``report`` hears of each damaged one passed over.

    Raises:
        UserError: the newest undamaged one has a format that this version does not read.
    """
    return next((path for path in _numbered(folder) if _good(path, report)), None)


def prune(saved: Path, keep: int) -> None:
    """Remove all numbered checkpoints beside ``saved`` but itself and the ``keep`` - 1 before it.

    Those after it go too: they were damaged, or a run would not have gone on from before them.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, paths = saved.parent, _numbered(saved.parent)
    at = paths.index(saved)
    with writing(folder):
        for path in paths[:at] + paths[at + keep :]:
            gone = path.rename(folder / f"{_TMP}{path.name}")  # a kill must not leave half of it under its name
            shutil.rmtree(gone)


def nbytes(agent: dict[str, Tensor], state: Any) -> int:
    """Return the size on disk of a checkpoint's tensors, in bytes."""
    tensors: dict[str, Tensor] = {}
    encode(state, tensors)
    return sum(tensor.nbytes for tensor in (*agent.values(), *tensors.values()))


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of ``folder`` (which need not exist yet) has ``needed`` bytes free.

    Raises:
        UserError: it has not.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"the disk of '{folder}' has {free / 1e6:,.0f} MB free and the run needs about {needed / 1e6:,.0f} MB; "
            "free some space, or lower checkpoint.keep or the buffer's capacity"
        )


@contextlib.contextmanager
def writing(folder: Path, checkpoints: Path | None = None) -> Iterator[None]:
    """Turn a full disk or an unwritable ``folder`` into a `UserError` that names the last good checkpoint."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))  # safetensors' wrapping of the system's error
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)
        try:
            good = latest(checkpoints or folder)
        except UserError:  # another version's
            good = None
        kept = f"the last good checkpoint is '{good}'" if good else "there is no good checkpoint yet"
        raise UserError(f"cannot write to '{folder}': {reason}; {kept}") from error


def _write(folder: Path, frames: int, agent: dict[str, Tensor], state: Any) -> None:
    """Write the four files, sync them and read them back."""
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(encode(state, tensors), allow_nan=False).encode()
    _write_tensors(folder / _AGENT, agent)
    _write_tensors(folder / _STATE, tensors)
    (folder / _TREE).write_bytes(tree)
    files = {name: _measure(folder / name) for name in (_AGENT, _STATE, _TREE)}
    if files[_TREE]["crc32"] != zlib.crc32(tree):
        raise OSError(f"{_TREE} reads back differently from what was written")
    manifest: dict[str, Any] = {"format": FORMAT, "version": version("rlcore"), "frames": frames, "files": files}
    manifest["crc32"] = _own_crc(manifest)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2))
    for name in (*files, _MANIFEST):
        _sync(folder / name)
    _verified(folder)
    _sync(folder)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    ready: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, given in tensors.items():
        tensor = given.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:  # the format has no shared storage
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        ready[name] = tensor
    save_file(ready, path)
    for name, tensor in load_file(path).items():
        if not torch.equal(_bits(tensor), _bits(ready[name])):
            raise OSError(f"{name} in {path.name} reads back differently from what was written")


def _bits(tensor: Tensor) -> Tensor:
    # As bytes NaN equals itself. A dimension of size 1 may keep any stride in a contiguous tensor.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8) if tensor.numel() else tensor


def _read(path: Path) -> dict[str, Tensor]:
    # The file is mapped at offsets of 8 bytes: a copy is aligned as torch aligns, so kernels round as before.
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _replace(temporary: Path, target: Path) -> None:
    old = target.parent / f"{_OLD}{target.name}"
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Clear what killed runs left: unfinished checkpoints go, a half-replaced one comes back."""
    for path in list(folder.glob(f"{_OLD}*")):
        target = folder / path.name.removeprefix(_OLD)
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)
    for path in list(folder.glob(f"{_TMP}*")):
        shutil.rmtree(path)


def _numbered(folder: Path) -> list[Path]:
    """Return the numbered checkpoints, newest first, good or not; where one is being replaced, the new one first."""
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(rf"({re.escape(_OLD)})?[0-9]{{12,}}", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: (int(p.name.removeprefix(_OLD)), not p.name.startswith(_OLD)), reverse=True)


def _good(path: Path, report: Report) -> bool:
    try:
        _verified(path)
    except _Damaged as error:
        report(f"{error}; trying the one before it")
        return False
    return True


def _verified(path: Path) -> dict[str, Any]:
    """Return the manifest after checking every file against it."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        if manifest.pop("crc32") != _own_crc(manifest):
            raise ValueError(f"{_MANIFEST} was altered")
        written = manifest["format"]
        if written == FORMAT or (written < FORMAT and all(n in MIGRATIONS for n in range(written, FORMAT))):
            for name, entry in manifest["files"].items():
                if _measure(path / name) != entry:
                    raise ValueError(f"{name} is truncated or was altered")
            return manifest
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _Damaged(f"checkpoint '{path}' is damaged: {error}") from error
    raise UserError(
        f"checkpoint '{path}' has format {written} and this version ({version('rlcore')}) reads format {FORMAT}; "
        f"load it with version {manifest['version']}"
    )


def _own_crc(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _measure(path: Path) -> dict[str, int]:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
        return {"size": file.tell(), "crc32": crc}


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # only POSIX opens folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
