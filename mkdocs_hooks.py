"""What mkdocs does not know of our documents: the README is the front page, and the reference is made from docstrings."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent
FRONT = {"README.md": "index.md", "README.zh.md": "zh.md", "CHANGELOG.md": "changelog.md"}

# The pages of the reference and the public modules on each.
REFERENCE: dict[str, tuple[str, ...]] = {
    "rlcore": ("rlcore", "rlcore.api", "rlcore.run", "rlcore.config", "rlcore.training_config", "rlcore.errors"),
    "engine": (
        "rlcore.trainer",
        "rlcore.sources",
        "rlcore.optim",
        "rlcore.clock",
        "rlcore.schedules",
        "rlcore.callbacks",
    ),
    "contracts": ("rlcore.agent", "rlcore.types", "rlcore.tree", "rlcore.spaces", "rlcore.registry"),
    "environments": ("rlcore.vector", "rlcore.native", "rlcore.make", "envs.one_step"),
    "experience": ("rlcore.replay", "rlcore.prioritized", "rlcore.normalize", "rlcore.recorded"),
    "mathematics": ("rlcore.losses", "rlcore.returns", "rlcore.exploration", "rlcore.targets"),
    "evaluation": ("rlcore.evaluation", "rlcore.statistics", "rlcore.runs", "rlcore.testing"),
    "agents": (
        *(
            "agents.value_based",
            "agents.dqn",
            "agents.c51",
            "agents.qr_dqn",
            "agents.iqn",
            "agents.rainbow",
            "agents.pqn",
        ),
        *("agents.r2d2", "agents.actor_critic", "agents.distributions", "agents.ppo", "agents.a2c", "agents.reinforce"),
        *("agents.continuous", "agents.sac", "agents.td3", "agents.ddpg", "agents.bc", "agents.cql", "agents.iql"),
        *("agents.supervised", "agents.seq2seq", "agents.grpo"),
    ),
    "options": (
        *("agents.configs.value", "agents.configs.policy", "agents.configs.continuous", "agents.configs.offline"),
        *("agents.configs.supervised", "agents.configs.text"),
    ),
    "networks": (
        *(
            "agents.networks",
            "agents.networks.encode",
            "agents.networks.mlp",
            "agents.networks.cnn",
            "agents.networks.keys",
        ),
        *(
            "agents.networks.recurrent",
            "agents.networks.history",
            "agents.networks.attention",
            "agents.networks.positions",
        ),
        *(
            "agents.networks.transformer",
            "agents.networks.text_model",
            "agents.networks.text_gru",
            "agents.networks.ngrams",
        ),
        *("agents.networks.pretrained", "agents.networks.lora", "agents.networks.resnet", "agents.networks.vit"),
    ),
    "tasks": (
        *(
            "envs.cartpole",
            "envs.acrobot",
            "envs.mountain_car",
            "envs.pendulum",
            "envs.pixel_breakout",
            "envs.bit_flip",
        ),
        *("envs.tabular", "envs.text_classification", "envs.language_model", "envs.translation", "envs.pairs"),
        *("envs.prompts", "envs.classify_and_write", "envs.images"),
    ),
}
PAGE_OF = {module: page for page, modules in REFERENCE.items() for module in modules}

# The order of the pages; a document that is not named here comes last.
ORDER = (
    *(
        "TOUR",
        "CONCEPTS",
        "EXTENDING",
        "AGENTS",
        "TRAINING",
        "TUNING",
        "SEEING",
        "PLOTS",
        "REPORTS",
        "COMPARING",
        "METRICS",
    ),
    *("EXPORT", "FINETUNING", "PRETRAINED", "DISTRIBUTED", "TUTORIALS", "MIGRATION", "SCOPE", "ARCHITECTURE"),
    *("RESULTS", "SPEED", "LOG"),
)


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
