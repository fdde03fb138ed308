"""Every Python block of the README and of the documents runs as written, in order; every command to train is valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlcore import command, registry
from rlcore import config as configs

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("document", WITH_CODE, ids=lambda path: path.name)
def test_python_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    names: dict[str, object] = {"__name__": document.stem}
    for block in re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(document), "exec", dont_inherit=True), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_to_train_name_recipes_and_settings_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ *(?:python|torchrun\b.*) scripts/train\.py (.*)$", text, re.MULTILINE):
        settings, (config, *_) = command.settings_of(shlex.split(line, comments=True))
        if not config.startswith("--") and not config.isupper():  # else a run is continued, or CONFIG stands for any
            configs.validate(configs.override(configs.read(config), settings), line)
