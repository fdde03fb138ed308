"""What the scripts call. Parsing and ``--help`` import no torch."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlcore import config as configs
from rlcore import registry, runs
from rlcore.errors import UserError, nearest


class Command(Protocol):
    """A command that may be called without arguments: it reads the command line."""

    def __call__(self, argv: Sequence[str] | None = None) -> None: ...


def _guarded(command: Callable[[Sequence[str] | None], int | None]) -> Command:
    """Turn bad input into one sentence and exit code 2."""

    def run(argv: Sequence[str] | None = None) -> None:
        try:
            code = command(argv)
            sys.stdout.flush()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        raise SystemExit(code or 0)

    run.__doc__ = command.__doc__
    return run


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def _parser(text: str, **more: Any) -> _Parser:
    formatter = argparse.RawDescriptionHelpFormatter
    return _Parser(description=text, formatter_class=formatter, allow_abbrev=False, **more)


def _plugins(names: Sequence[str]) -> None:
    sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--plugin {name}: cannot be imported ({error})") from None


def _dotted(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse ``--optim.lr=1e-3`` and ``--optim.lr 1e-3``; values are YAML."""
    known = {name.split(".")[0] for name in configs.Config.model_fields}
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.split(".")[0] not in known:
            options = {*known, "out", "resume", "init", "plugin", "quiet", "help"}
            raise UserError(f"argument '{word}' is not known{nearest(name.split('.')[0], options)}")
        if not equals:
            if not rest:
                raise UserError(f"argument '{word}' has no value; expected {word}=VALUE")
            value = rest.pop(0)
        values[name] = configs.parse_yaml(value, word)
    return values


def _fields_help() -> str:
    agents = {name: configs.agent_config(name) for name in registry.names("configs")}
    lines = ["settings (override any with --NAME=VALUE; values are YAML):"]

    def add(model: Any, prefix: str = "", skip: frozenset[str] = frozenset()) -> None:
        for name, default, text in configs.fields(model, prefix):
            if name not in skip:
                shown = "" if default is None else f" [{_short(default)}]"
                lines.append(f"  --{name:<28} {text}{shown}")

    add(configs.Config, skip=frozenset({"agent.name"}))
    for name, model in agents.items():
        lines.append(f"\nwith --agent.name={name} ({(model.__doc__ or '').strip().splitlines()[0]}):")
        add(model, "agent.", frozenset({"agent.name"}))
    shipped = ", ".join(sorted(p.stem for p in configs.recipes().glob("*.yaml")))
    lines.append(f"\nrecipes: {shipped}")
    lines.append(f"agents: {', '.join(registry.names('agents'))}")
    lines.append(f"networks: {', '.join(registry.names('networks'))}")
    lines.append(f"environments beside gymnasium's: {', '.join(registry.names('envs'))}")
    return "\n".join(lines)


def _short(default: Any) -> str:
    return str(default.start) if hasattr(default, "start") else json.dumps(default, default=str)


@_guarded
def train(argv: Sequence[str] | None = None) -> int | None:
    """Train an agent."""
    argv = list(sys.argv[1:] if argv is None else argv)
    wants_help = "-h" in argv or "--help" in argv
    parser = _parser("Train an agent on an environment or task.", epilog=_fields_help() if wants_help else None)
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="a recipe's name, a YAML file or a run's folder [cartpole_dqn]")
    parser.add_argument("--out", metavar="DIR", help="the run's folder [a fresh one under runs/]")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out [the latest]")
    parser.add_argument("--init", metavar="RUN", help="start from the weights of a run")
    parser.add_argument("--plugin", metavar="PKG", action="append", default=[], help="import a package that registers own parts")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options, rest = parser.parse_known_args(argv)
    overrides = _dotted(rest)
    _plugins(options.plugin)
    if not options.resume:  # bad settings are told before torch is loaded
        configs.validate(configs.override(configs.read(options.config or "cartpole_dqn"), overrides))
    from rlcore import api

    run = api.train(
        options.config, out=options.out, resume=options.resume, init=options.init, quiet=options.quiet, **overrides
    )
    if run.result["status"] == "interrupted":
        return 130
    if not options.quiet:
        print(_report(str(run.path), run.result["evaluation"]))
        print(f"{run.result['frames']} frames in {run.result['train_seconds']:.1f} s of training; run: {run.path}")
    return 0


@_guarded
def evaluate(argv: Sequence[str] | None = None) -> int | None:
    """Evaluate runs."""
    parser = _parser("Play seeded greedy episodes (for tasks: the held-out split) and print their statistics.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, globs, or latest")
    parser.add_argument("--episodes", type=_positive, help="episodes per run [the run's eval.final_episodes: 100]")
    parser.add_argument("--seed", type=_natural, help="episode i starts from SEED + i [the run's eval.final_seed: 10000]")
    parser.add_argument("--checkpoint", default="last", metavar="last|best|FRAME", help="which checkpoint [last]")
    parser.add_argument("--render", metavar="window|FILE.gif", help="show or record the first episode")
    parser.add_argument("--plugin", metavar="PKG", action="append", default=[], help="import a package that registers own parts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    _plugins(options.plugin)
    from rlcore import api
    from rlcore.render import render

    result = api.evaluate(options.runs, options.episodes, options.seed, options.checkpoint)
    if options.render:
        total = render(api.load(options.runs[0], options.checkpoint), options.render, options.seed)
        if not options.json:
            print(f"rendered an episode with return {total:.6g} to {options.render}")
    print(json.dumps(result) if options.json else _report(" ".join(options.runs), result))
    return 0


@_guarded
def predict(argv: Sequence[str] | None = None) -> int | None:
    """Predict with a run."""
    parser = _parser("Predictions for new rows of a table, or greedy actions for observations.")
    parser.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="a CSV file, NAME=VALUE pairs of one row, or an observation in JSON")
    parser.add_argument("--checkpoint", default="last", metavar="last|best|FRAME", help="which checkpoint [last]")
    parser.add_argument("--plugin", metavar="PKG", action="append", default=[], help="import a package that registers own parts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    _plugins(options.plugin)
    from rlcore.predict import predict as predicted

    predictions, remarks = predicted(options.run, options.inputs, options.checkpoint)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(json.dumps(predictions) if options.json else "\n".join(map(_readable, predictions)))
    return 0


@_guarded
def list_runs(argv: Sequence[str] | None = None) -> int | None:
    """List and show runs."""
    parser = _parser("List the runs under a folder, or show one.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show")
    listing = commands.add_parser("list", help="a line for every run")
    listing.add_argument("folder", nargs="?", default="runs", help="where to look [runs]")
    show = commands.add_parser("show", help="all about one run")
    show.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    options = parser.parse_args(argv)
    if options.command == "show":
        [run, *_] = runs.resolve(options.run)
        about = runs.describe(run) | {"result": runs.read_json(run / "result.json")}
        print(json.dumps(about) if options.json else runs.show(run, about))
        return 0
    rows = runs.listing(options.folder)
    print(json.dumps(rows) if options.json else runs.table(rows))
    return 0


def _report(name: str, result: dict[str, Any]) -> str:
    """Return an evaluation as readable lines."""
    what = f"{len(result['runs'])} runs, {result['episodes']} episodes each" if "runs" in result else f"{result['episodes']} episodes"
    lines = [
        f"evaluation of {name} ({what}, seed {result['seed']})",
        f"  mean {result['mean']:.6g}   std {result['std']:.4g}   min {result['min']:.6g}   max {result['max']:.6g}",
        f"  iqm  {result['iqm']:.6g}   95 % interval [{result['ci_low']:.6g}, {result['ci_high']:.6g}]",
    ]
    usual = {"episodes", "seed", "mean", "std", "iqm", "ci_low", "ci_high", "min", "max", "returns", "runs", "length"}
    own = [f"{key} {value:.6g}" for key, value in result.items() if key not in usual]
    return "\n".join([*lines, *(["  " + "   ".join(own)] if own else [])])


def _readable(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _positive(text: str) -> int:
    value = _natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive integer")
    return value


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got '{text}', expected a non-negative integer")
    return int(text)
