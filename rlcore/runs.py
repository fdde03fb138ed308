"""Run folders: what one holds, how to find one, and what state it is in. Imports no torch."""

from __future__ import annotations

import glob
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from rlcore import config as configs
from rlcore.config import Config
from rlcore.errors import UserError

PACKAGES = ("rlcore", "torch", "numpy", "gymnasium", "scipy", "safetensors", "pydantic")


def fresh(recipe: str, seed: int, root: Path = Path("runs")) -> Path:
    """Return a folder under ``root`` that does not exist yet, named by recipe, seed and time."""
    stem = f"{recipe or 'run'}-s{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    return next(root / name for name in names if not (root / name).exists())


def create(out: Path, config: Config[Any]) -> None:
    """Make the folder with config.yaml and manifest.json.

    Raises:
        UserError: the folder holds another run or other files, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; expected a folder")
    if (out / "config.yaml").exists():
        other = configs.validate(configs.read(out), str(out / "config.yaml"))
        same = "this very run; add --resume to continue it" if other == config else "another run's configuration"
        raise UserError(f"--out {out}: holds {same}, expected a new or empty folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: is not empty and holds no run; expected a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out, config)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); expected a writable folder") from None


def write(run: Path, config: Config[Any]) -> None:
    """(Re)write config.yaml and manifest.json; the result of an earlier end no longer holds."""
    (run / "config.yaml").write_text(configs.dump(config), encoding="utf-8")
    write_json(run / "manifest.json", manifest(config))
    (run / "result.json").unlink(missing_ok=True)


def manifest(config: Config[Any]) -> dict[str, Any]:
    """Return versions, git revision, machine and command: what a reader needs to trust or repeat a run."""
    return {
        "format": 1,
        "recipe": config.recipe,
        "seed": config.seed,
        "command": shlex.join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "pid": os.getpid(),
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
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return revision.stdout.strip() or None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file in one move, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def resolve(pattern: str | Path, root: Path = Path("runs")) -> list[Path]:
    """Return the run folders that a folder, a glob or ``latest`` names, sorted by name.

    Raises:
        UserError: there is none, or one is not a run.
    """
    if str(pattern) == "latest":
        found = [p.parent for p in root.glob("*/manifest.json")]
        if not found:
            raise UserError(f"run 'latest': there is no run under {root}/")
        return [max(found, key=lambda p: (p / "manifest.json").stat().st_mtime)]
    path = Path(pattern)
    found = [path] if path.exists() else sorted(Path(p) for p in glob.glob(str(pattern)))
    if not found:
        raise UserError(f"run '{pattern}': there is no such folder; expected a run's folder, a glob, or latest")
    for run in found:
        if not (run / "config.yaml").is_file():
            raise UserError(f"run '{run}': is not a run's folder (it has no config.yaml)")
    return found


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON mapping, or None where the file is absent or broken."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def describe(run: Path) -> dict[str, Any]:
    """Return what `runs.py list` says of a folder: recipe, seed, status, frames, result. Never fails."""
    made, result = read_json(run / "manifest.json"), read_json(run / "result.json")
    about: dict[str, Any] = {"run": str(run), "recipe": "", "seed": None, "status": "broken", "frames": None}
    for name, broken in (("config.yaml", not (run / "config.yaml").is_file()), ("manifest.json", made is None)):
        if broken:
            return about | {"problem": f"{name} is absent or broken"}
    assert made is not None
    about |= {"recipe": made.get("recipe"), "seed": made.get("seed")}
    if result is None:
        about["status"] = "running" if _alive(made.get("pid")) else "unfinished"
        saved = [p.name for p in (run / "checkpoints").glob("[0-9]*")]
        return about | {"frames": int(max(saved)) if saved else 0}
    evaluation = result.get("evaluation") or {}
    about |= {"status": result.get("status", "finished"), "frames": result.get("frames")}
    return about | {key: evaluation[key] for key in ("mean", "ci_low", "ci_high") if key in evaluation}


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return pid == os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def listing(folder: str | Path) -> list[dict[str, Any]]:
    """Return what `describe` says of every run directly under a folder.

    Raises:
        UserError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"folder '{folder}': is not there; expected a folder of runs")
    return [describe(path) for path in sorted(root.iterdir()) if path.is_dir()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `listing` as a table."""
    from rich.console import Console
    from rich.table import Table

    columns = ("run", "recipe", "seed", "status", "frames", "result")
    drawn = Table(*columns, box=None)
    for row in rows:
        result = row.get("problem", "")
        if "mean" in row:
            result = f"{row['mean']:.4g} [{row['ci_low']:.4g}, {row['ci_high']:.4g}]"
        cells = ["" if row[name] is None else str(row[name]) for name in columns[:-1]]
        drawn.add_row(*cells, result, style="red" if row["status"] in ("broken", "failed") else None)
    console = Console(width=None if sys.stdout.isatty() else 200)
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip()


def show(run: Path, about: dict[str, Any]) -> str:
    """Return all about one run as YAML: what `describe` says, its result, manifest and settings."""
    result = {k: v for k, v in (about.pop("result") or {}).items() if k != "evaluation"}
    evaluation = (read_json(run / "result.json") or {}).get("evaluation") or {}
    numbers = {k: v for k, v in evaluation.items() if k != "returns"}
    saved = [p.name for p in sorted((run / "checkpoints").glob("[0-9b]*"))]
    parts = {**about, "result": {**result, "evaluation": numbers}, "checkpoints": saved}
    parts |= {"manifest": read_json(run / "manifest.json"), "config": configs.read(run)}
    return yaml.safe_dump(parts, sort_keys=False, allow_unicode=True).rstrip()
