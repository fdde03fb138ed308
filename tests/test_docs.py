"""Every block of the README and of the documents runs, in order; see `docs_blocks` for what is made short."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from pathlib import Path

import docs_blocks as docs
import gymnasium
import pytest

from rlcore import config as configs
from rlcore import registry


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder; what a document registers, imports or sets is gone after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    monkeypatch.setattr(sys, "path", list(sys.path))
    known, modules = dict(gymnasium.registry), set(sys.modules)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(known)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


RUN = [document for document in docs.DOCUMENTS if document.name != "README.zh.md"]  # whose blocks are README.md's


@pytest.mark.parametrize("document", RUN, ids=lambda path: path.name)
@pytest.mark.usefixtures("newcomer")
def test_every_block_runs(document: Path) -> None:
    docs.Reader(document).read()
    imported = {Path(str(getattr(module, "__file__", None))).name for module in list(sys.modules.values())}
    for block in docs.blocks(document):
        later = [one.text for one in docs.blocks(document) if one.line > block.line]
        used = block.file in imported if block.language == "python" else any(str(block.file) in text for text in later)
        assert used or not block.file, f"{document.name}: nothing uses {block.file}"


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_commands_stand_in_blocks(document: Path) -> None:
    """Else nothing would run them."""
    found = re.search(r"^ {4,}(\$ )?(python|torchrun|pip|make|rlcore-\w+) .*", docs.outside(document), re.MULTILINE)
    assert not found, f"{document.name}: '{found and found[0].strip()}' is indented; expected a block of sh"


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_commands_within_a_sentence_or_a_table_name_what_exists(document: Path) -> None:
    for line in re.findall(r"`(python scripts/\w+\.py [^`]*)`", docs.outside(document)):
        name, argv = docs.script(line) or ("", [])
        assert (docs.ROOT / "scripts" / f"{name}.py").exists(), f"{document.name}: {line}"
        stands_for_any = {"--resume", "--plugin"} & set(argv) or any(re.fullmatch(r"[A-Z]+", word) for word in argv)
        if name == "train" and not stands_for_any:
            docs.validate_training([re.sub(r"=N$", "=0", word) for word in argv])


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", docs.outside(document)):
        assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_files_and_tests_that_are_pointed_to_exist(document: Path) -> None:
    for path, name in re.findall(
        r"`((?:rlcore|agents|envs|tests|scripts)/[\w/]+\.py)(?:::(\w+))?`", docs.outside(document)
    ):
        assert (docs.ROOT / path).exists(), f"{document.name}: {path}"
        text = (docs.ROOT / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{document.name}: {path}::{name}"


def test_the_chinese_readme_has_the_blocks_of_the_english_one() -> None:
    def plain(block: docs.Block) -> object:
        return docs.commands(block.text) if block.language == "sh" else block.text

    english, chinese = (docs.blocks(docs.ROOT / name) for name in ("README.md", "README.zh.md"))
    assert [plain(block) for block in english] == [plain(block) for block in chinese]


@pytest.mark.parametrize("front", ["README.md", "README.zh.md"])
def test_every_document_is_linked_from_the_front_pages(front: str) -> None:
    text = (docs.ROOT / front).read_text(encoding="utf-8")
    for document in (docs.ROOT / "docs").glob("*.md"):
        assert f"](docs/{document.name}" in text, f"{front} has no link to docs/{document.name}"


def test_what_cannot_run_is_listed_and_the_rest_is_not() -> None:
    assert docs.not_run("torchrun --nproc-per-node 2 scripts/train.py cartpole_ppo")
    assert docs.not_run("python scripts/evaluate.py runs/mine --render window")
    assert docs.not_run("python scripts/train.py cartpole_dqn --out runs/mine") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```python\nassert 1 == 2\n```", "AssertionError"),
        ("```python\n# rlcore/trainer.py\nno_such_line()\n```", "no such lines"),
        ("```sh\npython scripts/train.py cartpole_dqnn\n```", "neither a file nor a shipped recipe"),
        ("```sh\npython scripts/train.py cartpole_dqn --optim.rate=1\n```", "optim.rate"),
        ("```sh\ntorchrun scripts/train.py cartpole_dqn --optim.rate=1\n```", "optim.rate"),
        ("```sh\npython scripts/evaluate.py runs/none\n```", "runs/none"),
        ("```sh\nrm -r runs\n```", "nothing runs"),
        ("```yaml\nagent: {name: dqn, gamma: 2}\n```", "agent.gamma"),
        ("```yaml\nrows: {one: {recipe: cartpole_dqnn}}\ntitle: x\n```", "neither a file nor a shipped recipe"),
        ("```\npython scripts/train.py cartpole_dqn\n```", "block of sh"),
        ("```json\n{\n```", "JSONDecodeError"),
        ("```ruby\nputs 1\n```", "nothing tests"),
        ("```python\n1", "not closed"),
    ],
)
@pytest.mark.usefixtures("newcomer")
def test_a_wrong_block_is_found(text: str, why: str, tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text(text, encoding="utf-8")
    reader = docs.Reader(document)
    with pytest.raises(Exception) as error:
        reader.read()
    assert why in f"{error.type.__name__}: {error.value}"


def test_short_runs_keep_what_the_document_says() -> None:
    argv = shlex.split("cartpole_ppo --optim.lr=1e-4 --source.horizon=32 --out runs/x")
    short = docs.shortened("train", argv)
    assert short[: len(argv)] == argv
    config = docs.validate_training(short)
    assert config.optim.lr == 1e-4
    assert config.source == docs.validate_training(argv).source
    assert config.budget.frames == 2 * config.env.num_envs * 32


def setting_exists(name: str) -> bool:
    first, second = name.split(".")[:2]
    if first == "agent":
        return any(second in configs.agent_config(agent).model_fields for agent in registry.names("configs"))
    if first == "source":
        kinds = (configs.ReplayConfig, configs.RolloutConfig, configs.DatasetConfig)
        return any(second in kind.model_fields for kind in kinds)
    return second in configs.Config.model_fields[first].annotation.model_fields


def test_settings_named_beside_other_libraries_exist() -> None:
    text = (docs.ROOT / "docs" / "MIGRATION.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[`-]((?:env|agent|source|optim|budget|eval|stop|log|checkpoint)\.[a-z_.]+)", text))
    assert len(named) > 40
    assert [name for name in sorted(named) if not setting_exists(name)] == []
    assert not setting_exists("agent.learning_starts")


@pytest.mark.parametrize("agent", ["DQN", "PPO", "SAC"])
def test_the_other_librarys_options_are_its_own(agent: str) -> None:
    library = pytest.importorskip("stable_baselines3")
    known = set(inspect.signature(getattr(library, agent).__init__).parameters) | {"net_arch"}
    text = (docs.ROOT / "docs" / "MIGRATION.md").read_text(encoding="utf-8")
    table = re.search(rf"^## {agent}\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert table
    first_cells = re.findall(r"^\| (`[^|]*) \|", table[1], re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)", cell)}
    assert named
    assert named <= known
