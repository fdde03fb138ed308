"""YAML of plain values: nothing but mappings, lists, strings, numbers and booleans is ever built."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from rlcore.errors import UserError

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # seven times as fast


class _Loader(_SafeLoader):
    """YAML 1.1 reads 1e-3 as a string; everybody means the number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
_BLOCKS = {sign + end for sign in "|>" for end in ("", "+", "-")}


def read(path: Path) -> Any:
    """Return the value of a YAML file.

    Raises:
        UserError: it cannot be read, or is not YAML; says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: expected a readable YAML file, got: {why}") from None
    return parse(text, str(path))


def parse(text: str, where: str) -> Any:
    """Parse one YAML document; the sign of a block alone is a string.

    Raises:
        UserError: the text is not YAML; says where.
    """
    if text.strip() in _BLOCKS:  # nothing follows: YAML reads an empty string, where a sign that separates is meant
        return text.strip()
    try:
        value = yaml.load(text, Loader=_Loader)
        json.dumps(value, default=str)  # an alias may make a mapping hold itself
        return value
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" line {mark.line + 1}:" if mark and "\n" in text else f": got '{text}',"
        raise UserError(f"{where}{at} expected YAML, {getattr(error, 'problem', None) or error}") from None
    except (ValueError, TypeError, RecursionError) as error:  # a date that is none, a list as a key
        raise UserError(f"{where}: expected YAML of plain values, {error}") from None


def dump(value: Any) -> str:
    """Return plain values as YAML, mappings in their own order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
