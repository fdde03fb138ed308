"""The errors a user can cause. The command line prints them as one sentence and exits with 2."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one clear sentence that says what, where, and what was expected."""


class Diverged(UserError):
    """A loss, an observation or a reward became NaN or infinite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name closest to ``name``, or a list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"; known: {', '.join(known[:20])}{more}"


def note(text: str) -> None:
    """Say on standard error what is worth knowing and no error."""
    print(f"note: {text}", file=sys.stderr)
