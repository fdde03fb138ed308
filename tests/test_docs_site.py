"""The site of the documents, with the reference made from docstrings, builds without a warning and fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mkdocs_hooks

ROOT = Path(__file__).parent.parent


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a remark of the theme's on another project's plans
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    return subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", out)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return out


def test_every_document_has_a_page(site: Path) -> None:
    for document in (ROOT / "docs").glob("*.md"):
        assert (site / document.stem / "index.html").exists(), document.name
    assert "make train" in (site / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        found = re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^\s>]*", text)
        assert not found, f"{page.relative_to(site)}: {found and found[0]}"


def test_the_reference_has_every_public_name(site: Path) -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").rglob("*.html"))
    names = ["rlcore.api.train", "rlcore.run.Run.act", "rlcore.trainer.Trainer.fit", "rlcore.agent.Agent.loss"]
    names += ["rlcore.losses.q_learning_target", "rlcore.returns.lambda_returns", "rlcore.testing.check_agent"]
    names += ["agents.dqn.DQN", "agents.configs.policy.PPOConfig", "agents.networks.attention.attend"]
    for name in names:
        assert f'id="{name}"' in shown, f"the reference lacks {name}"


def test_every_agent_and_its_options_are_in_the_reference() -> None:
    from importlib.metadata import entry_points

    for kind in ("agents", "configs", "networks", "envs"):
        for entry in entry_points(group=f"rlcore.{kind}"):
            assert entry.value.partition(":")[0] in mkdocs_hooks.PAGE_OF, f"{kind}: {entry.value}"


def test_links_of_the_repository_become_links_of_the_site() -> None:
    links = mkdocs_hooks.links
    assert links("[a](../agents/dqn.py)", "docs") == "[a](reference/agents.md#agents.dqn)"
    assert links("[a](docs/AGENTS.md#many-seeds)", "") == "[a](AGENTS.md#many-seeds)"
    assert links("![a](docs/img/x.png)", "") == "![a](img/x.png)"
    assert links("[a](../README.md) [b](TOUR.md)", "docs") == "[a](index.md) [b](TOUR.md)"
    assert links("[a](https://x.org) [b](#c)", "docs") == "[a](https://x.org) [b](#c)"
    assert links("[`x.py`](../tests/x.py)", "docs") == "`x.py`"


def test_what_is_wrong_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("hooks: [mkdocs_hooks.py]", "")
    (tmp_path / "mkdocs.yml").write_text(settings.replace("paths: [.]", f"paths: [{ROOT}]"), encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("[a](NOWHERE.md) [b](#nowhere)", encoding="utf-8")
    (tmp_path / "docs" / "b.md").write_text("::: rlcore.nowhere", encoding="utf-8")
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "rlcore.nowhere" in built.stderr
    (tmp_path / "docs" / "b.md").unlink()
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "NOWHERE.md" in built.stderr
    assert "#nowhere" in built.stderr
