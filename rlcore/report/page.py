"""The page as HTML: one file that loads nothing. Every text is escaped, and no script but the page's own may run."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from rlcore.errors import UserError
from rlcore.report.drawing import Picture
from rlcore.report.known import NOTHING, Table
from rlcore.report.sections import Section

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Page:
    """What the template shows."""

    title: str
    subtitle: str
    runs: list[Section]
    made: str
    version: str
    groups: Table = NOTHING
    comparison: Table = NOTHING
    curves: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def html(page: Page) -> str:
    """Return the page.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise UserError("reports need jinja2: pip install 'rlcore[report]'") from None
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style, script = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(
        page=page, style=Markup(style), script=Markup(script), script_hash=f"sha256-{digest}"
    )
