"""What mkdocs does not know of our documents: the README is the front page, docstrings make the reference."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
FRONT = {"README.md": "index.md", "README.zh.md": "zh.md", "CHANGELOG.md": "changelog.md"}

# The pages of the reference and the public modules on each.
REFERENCE: dict[str, list[str]] = {
    page: [f"{package}{module}" for package, modules in groups for module in modules.split()]
    for page, groups in {
        "rlcore": [("", "rlcore"), ("rlcore.", "api run config training_config errors")],
        "engine": [("rlcore.", "trainer sources optim clock schedules callbacks")],
        "contracts": [("rlcore.", "agent types tree spaces registry")],
        "environments": [("rlcore.", "vector native make"), ("envs.", "one_step")],
        "experience": [("rlcore.", "replay prioritized normalize recorded")],
        "mathematics": [("rlcore.", "losses returns exploration targets")],
        "evaluation": [("rlcore.", "evaluation statistics runs testing")],
        "study": [("rlcore.", "curves plots compare trackers search.tune search.spaces report video explain export")],
        "agents": [
            ("agents.", "value_based dqn c51 qr_dqn iqn rainbow pqn r2d2 actor_critic distributions ppo a2c reinforce"),
            ("agents.", "continuous sac td3 ddpg bc cql iql supervised seq2seq grpo"),
        ],
        "options": [("agents.configs.", "value policy continuous offline supervised text")],
        "networks": [
            ("agents.", "networks"),
            ("agents.networks.", "encode mlp cnn keys recurrent history attention positions transformer text_model"),
            ("agents.networks.", "text_gru ngrams pretrained lora resnet vit"),
        ],
        "tasks": [
            ("envs.", "cartpole acrobot mountain_car pendulum pixel_breakout bit_flip tabular text_classification"),
            ("envs.", "language_model translation pairs prompts classify_and_write images"),
        ],
    }.items()
}
PAGE_OF = {module: page for page, modules in REFERENCE.items() for module in modules}

# The order of the pages; a document that is not named here comes last.
# fmt: off
ORDER = [
    "TOUR", "CONCEPTS", "EXTENDING", "AGENTS", "TRAINING", "TUNING", "SEEING", "PLOTS", "REPORTS", "COMPARING",
    "METRICS", "EXPORT", "FINETUNING", "PRETRAINED", "DISTRIBUTED", "TUTORIALS", "MIGRATION", "SCOPE", "ARCHITECTURE",
    "RESULTS", "SPEED", "LOG",
]
# fmt: on


def on_config(config: Any) -> Any:
    """Set the navigation: the documents that there are, in our order, then the reference."""
    found = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
    ordered = sorted(found, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    reference: list[Any] = [{name: f"reference/{name}.md"} for name in REFERENCE]
    front = [{"Start": "index.md"}, {"中文": "zh.md"}]
    config.nav = [*front, *(f"{name}.md" for name in ordered), {"Reference": reference}, {"Changelog": "changelog.md"}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in FRONT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=links(text, "")))
    for page, modules in REFERENCE.items():
        directives = "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"reference/{page}.md", content=f"# {page}\n\n{directives}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links out of docs/ into links within the site."""
    return markdown if page.file.generated_by else links(markdown, "docs")


def links(text: str, folder: str) -> str:
    """Return a document of a folder of the repository with its links as the site has them."""

    def link(found: re.Match[str]) -> str:
        mark, shown, given, anchor = found[1], found[2], found[3], found[4] or ""
        target = posixpath.normpath(posixpath.join(folder, given))
        module = target.removesuffix(".py").replace("/", ".")
        if target in FRONT:
            return f"[{shown}]({FRONT[target]}{anchor})"
        if target.startswith("docs/"):
            return f"{mark}[{shown}]({target.removeprefix('docs/')}{anchor})"
        if module in PAGE_OF:
            return f"[{shown}](reference/{PAGE_OF[module]}.md#{module})"
        return f"`{shown.strip('`')}`"  # a file of the repository that the site does not show

    return re.sub(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text)
