"""Run folders: what one holds, how to find one, and what state it is in. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlcore import config as configs
from rlcore import plain_json
from rlcore.config import Config
from rlcore.errors import UserError

try:
    import fcntl
except ImportError:  # no POSIX: nothing tells a running run from an unfinished one
    fcntl = None

PACKAGES = ("rlcore", "torch", "numpy", "gymnasium", "scipy", "safetensors", "pydantic")
SCORES = ("mean", "iqm", "ci_low", "ci_high")  # of an evaluation; the interval is the interquartile mean's
LOCK = ".lock"  # held while a process trains the run
_TRIES = 10  # to take it: who looks whether a run is running holds it for an instant


def create(out: str | Path | None, config: Config[Any]) -> Path:
    """Make a run's folder and return it; None: a fresh one under ``runs/``, named by recipe, seed and time.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written.
    """
    if out is not None:
        path = Path(out)
        _check_free(path, config)
        return make(path)
    return fresh(f"{config.recipe or 'run'}-s{config.seed}")


def fresh(name: str) -> Path:
    """Make a folder under ``runs/``, named so and by the time, that no other run has, and return it.

    Raises:
        UserError: it cannot be written.
    """
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for name in (stem, *(f"{stem}-{i}" for i in range(2, 1000))):  # others may begin in the same second
        with _writing(Path("runs")), contextlib.suppress(FileExistsError):
            (Path("runs") / name).mkdir(parents=True)
            return Path("runs") / name
    raise UserError(f"runs/{stem}: a thousand runs began in one second; expected --out DIR")


def make(path: Path) -> Path:
    """Make a folder, unless it is there, and return it.

    Raises:
        UserError: it cannot be written.
    """
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def _check_free(out: Path, config: Config[Any]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; expected a folder")
    if (out / "config.yaml").exists():
        other = configs.validate(configs.read(out), str(out / "config.yaml"))
        if other == config:
            raise UserError(f"--out {out}: holds this very run; add --resume to continue it, or give another folder")
        raise UserError(f"--out {out}: holds another run's configuration; expected a new or empty folder")
    with _writing(out):
        if out.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise UserError(f"--out {out}: is not empty and holds no run; expected a new or empty folder")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process; a process that dies lets go of it.

    Raises:
        UserError: another process trains it, or the folder cannot be written.
    """
    with _writing(run):
        file = (run / LOCK).open("w")
    with file:
        for _ in range(_TRIES):
            if _lock(file):
                break
            time.sleep(0.01)
        else:
            raise UserError(f"run '{run}': is being trained by another process; expected one at a time")
        yield


def _lock(file: Any) -> bool:
    """Try to take the lock; whether no other process has it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"cannot write to '{path}': {why}; expected a writable folder with free space") from error


def write(run: Path, config: Config[Any]) -> None:
    """(Re)write config.yaml and manifest.json; the result of an earlier end no longer holds.

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(run / "config.yaml", configs.dump(config))
    write_json(run / "manifest.json", manifest(config))
    with _writing(run):
        (run / "result.json").unlink(missing_ok=True)


def manifest(config: Config[Any]) -> dict[str, Any]:
    """Return versions, git revision, machine and command: what a reader needs to trust or repeat a run."""
    return {
        "format": 1,
        "recipe": config.recipe,
        "seed": config.seed,
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return revision.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Write a file in one move, so that a reader never sees half of it.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _writing(path.parent):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as `write_text` does, with null for what is not finite."""
    write_text(path, plain_json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON mapping; an empty one where the file is absent or broken."""
    try:
        value = plain_json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def resolve(pattern: str | Path, root: Path = Path("runs")) -> list[Path]:
    """Return the run folders that a folder, a glob or ``latest`` names, sorted by name.

    Raises:
        UserError: there is none, or one is not a run.
    """
    if str(pattern) == "latest":
        made = list(root.glob("*/manifest.json"))
        if not made:
            raise UserError(f"run 'latest': there is no run under {root}/")
        return [max(made, key=lambda path: path.stat().st_mtime_ns).parent]
    path = Path(pattern)
    found = [path] if path.exists() else sorted(Path(p) for p in glob.glob(str(pattern)) if os.path.isdir(p))
    if not found:
        raise UserError(f"run '{pattern}': there is no such folder; expected a run's folder, a glob, or latest")
    for run in found:
        if not (run / "config.yaml").is_file():
            raise UserError(f"run '{run}': is not a run's folder (it has no config.yaml)")
    return found


def resolve_one(pattern: str | Path) -> Path:
    """Return the run folder that a folder, a glob or ``latest`` names.

    Raises:
        UserError: as `resolve`, or there are several.
    """
    found = resolve(pattern)
    if len(found) > 1:
        raise UserError(f"run '{pattern}': names {len(found)} runs, expected one")
    return found[0]


def resolve_all(patterns: Sequence[str | Path]) -> list[Path]:
    """Return the run folders of several patterns, each once; see `resolve`."""
    return list(dict.fromkeys(run for pattern in patterns for run in resolve(pattern)))


def describe(run: Path) -> dict[str, Any]:
    """Return what `runs.py list` says of a folder. Never fails.

    Returns:
        run, recipe, changed (see `changed`), seed, status ("finished", "failed", "interrupted", "running", "unfinished"
        or "broken") and frames; of the final evaluation mean, iqm and its 95 % interval ci_low and ci_high, where they
        are there; problem: why the run is broken or failed.
    """
    row: dict[str, Any] = {"run": str(run), "recipe": None, "changed": {}, "seed": None}
    row |= {"status": "broken", "frames": None}
    try:
        raw = configs.read(run)
    except UserError as error:
        return row | {"problem": str(error) if (run / "config.yaml").exists() else "there is no config.yaml"}
    row |= {"recipe": raw.get("recipe"), "changed": changed(raw), "seed": raw.get("seed")}
    result = read_json(run / "result.json")
    if not result and (run / "result.json").exists():
        return row | {"problem": "result.json is broken"}
    if not result:
        saved = [path.name for path in (run / "checkpoints").glob("[0-9]*") if path.name.isdecimal()]
        return row | {"status": "running" if _running(run) else "unfinished", "frames": int(max(saved, default=0))}
    row |= {"status": result.get("status"), "frames": result.get("frames")}
    if "error" in result:
        row["problem"] = result["error"]
    evaluation = result.get("evaluation")
    numbers = evaluation if isinstance(evaluation, dict) else {}
    return row | {key: numbers[key] for key in SCORES if isinstance(numbers.get(key), float)}


def changed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted name, that differ from those of the shipped recipe that a run names; else none.

    Not among them: the seed, what ``compile: auto`` chose, what was fitted to the data of the run in ``init``, and how
    to stop where no metric says when.
    """
    theirs = shipped(str(raw.get("recipe")))
    if theirs is None:
        return {}
    own, absent = configs.flatten(raw), object()
    aside = ["recipe.", "seed."] + ["compile."] * (theirs["compile"] == "auto")
    aside += ["stop."] * (not own.get("stop.metric") and not theirs["stop.metric"])
    elder = own["init"] if isinstance(own.get("init"), str) else ""
    aside += [f"env.kwargs.{name}." for name in read_json(Path(elder, "fitted.json"))] if elder else []
    differ = (name for name, value in own.items() if theirs.get(name, absent) != value)
    return {name: own[name] for name in differ if not f"{name}.".startswith(tuple(aside))}


@functools.cache
def shipped(recipe: str) -> dict[str, Any] | None:
    """Return the complete settings of a shipped recipe by dotted name, or None; no file of that name here is read."""
    path = configs.recipes() / f"{recipe}.yaml"
    if not re.fullmatch(r"\w+", recipe) or not path.is_file():
        return None
    try:
        return configs.flatten(configs.validate(configs.read(path)).model_dump(mode="json"))
    except UserError:  # what it needs is not installed
        return None


def _running(run: Path) -> bool:
    try:
        with (run / LOCK).open() as file:
            return fcntl is not None and not _lock(file)
    except OSError:
        return False


def about(run: Path) -> dict[str, Any]:
    """Return all about one run: what `describe` says, its result, checkpoints, manifest and settings.

    Raises:
        UserError: its config.yaml is broken.
    """
    result = read_json(run / "result.json")
    if isinstance(evaluation := result.get("evaluation"), dict):
        result["evaluation"] = {k: v for k, v in evaluation.items() if k != "returns"}
    saved = sorted(path.name for path in (run / "checkpoints").glob("[0-9b]*"))
    parts = {**describe(run), "result": result, "checkpoints": saved}
    return parts | {"manifest": read_json(run / "manifest.json"), "config": configs.read(run)}
