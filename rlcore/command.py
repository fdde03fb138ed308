"""What every command is made of: errors as sentences, a parser, settings and plugins."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from rlcore import config as configs
from rlcore import plain_yaml
from rlcore.errors import UserError, nearest


class Command(Protocol):
    """What a script calls."""

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Run on the arguments (default: the command line's) and exit."""


def guarded(command: Callable[[list[str]], None]) -> Command:
    """Turn bad input into one sentence and exit code 2, and Ctrl-C or SIGTERM into 130."""

    def run(argv: Sequence[str] | None = None) -> None:
        """Run the command and exit."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            command(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        raise SystemExit(0)

    run.__doc__ = command.__doc__
    return run


class Parser(argparse.ArgumentParser):
    """Raises UserError where argparse prints its usage and exits."""

    def __init__(self, text: str, **more: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=text, formatter_class=formatter, allow_abbrev=False, **more)

    def error(self, message: str) -> Any:
        """Raise what is printed as one sentence."""
        raise UserError(message)

    def read(self, argv: list[str]) -> Any:
        """Parse the arguments; one that is not known is told with the nearest that is."""
        options, rest = self.parse_known_args(argv)
        if rest:
            commands = [action.choices.values() for action in self._actions if isinstance(action.choices, dict)]
            actions = [action for parser in (self, *chain(*commands)) for action in parser._actions]
            raise unknown(rest[0], {text[2:] for action in actions for text in action.option_strings if text[2:]})
        return options

    def plugins(self) -> None:
        """Add --plugin."""
        text = "import a module or package that registers own parts (may be repeated)"
        self.add_argument("--plugin", metavar="PKG", action="append", default=[], help=text)

    def checkpoint(self) -> None:
        """Add --checkpoint."""
        text = "which checkpoint [the run's eval.use: last]"
        self.add_argument("--checkpoint", metavar="last|best|FRAME", help=text)

    def json(self) -> None:
        """Add --json."""
        self.add_argument("--json", action="store_true", help="print JSON")


def unknown(word: str, known: Iterable[str]) -> UserError:
    """Return the error for a word that no option begins with."""
    name = word.lstrip("-").partition("=")[0].split(".")[0]
    return UserError(f"argument '{word}' is not known{nearest(name, known)}")


def import_plugins(plugins: Sequence[str]) -> None:
    """Import plugins, from the current folder too; what is installed comes first, and so do our own packages."""
    for folder in (str(Path(__file__).resolve().parent.parent), os.getcwd()) if plugins else ():
        if folder not in sys.path:
            sys.path.append(folder)
    for name in plugins:
        _import_one(name)


def _import_one(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except UserError as error:
        raise UserError(f"--plugin {plugin}: {error}") from error
    except Exception as error:  # whatever another's code raises
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"--plugin {plugin}: cannot be imported ({what})") from error


def settings_of(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take ``--optim.lr=1e-3`` and ``--optim.lr 1e-3`` out of the arguments; return the settings and the rest."""
    values: dict[str, Any] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        if not (word.startswith("--") and name.split(".")[0] in configs.Config.model_fields):
            rest.append(word)
            continue
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise UserError(f"argument {word}: has no value; expected {word}=VALUE")
        values[name] = plain_yaml.parse(text, f"--{name}")
    return values, rest


def positive(text: str) -> int:
    """Parse a positive integer."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive integer")
    return value


def natural(text: str) -> int:
    """Parse a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got '{text}', expected a non-negative integer")
    return int(text)


def number(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got '{text}', expected a number") from None
