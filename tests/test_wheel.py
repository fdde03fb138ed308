"""What an installation holds that a checkout has elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from rlcore import config as configs
from rlcore import study

ROOT = Path(__file__).resolve().parent.parent
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def test_a_wheel_brings_the_recipes_and_the_sets(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for name in ("rlcore", "agents", "envs", "scripts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-c", BUILD, str(tmp_path)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {path.name: path.read_bytes() for path in configs.recipes().glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (site / "rlcore" / "recipes").iterdir()} == shipped
    sets = {path.name: path.read_bytes() for path in study.folder().glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (site / "rlcore" / "sets").iterdir()} == sets
    code = "from rlcore import config; print(config.recipes()); print(config.read('line')['recipe'])"
    code += "; from rlcore import study; print(study.read('core').title)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(site / "rlcore" / "recipes"), "line", "The core"], done.stderr
