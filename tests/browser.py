"""A headless Chromium for tests of pages: it says what a page complains of, asks for and shows."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"]
_QUIET += ["disable-sync", "hide-scrollbars"]


@dataclass
class Seen:
    """An open page and what happened on it.

    Attributes:
        page: playwright's.
        complaints: errors and warnings of its console, and errors that no script caught.
        asked: addresses it asked for, but for itself and data in it.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def too_wide(self) -> list[str]:
        """Return what reaches beyond the page's right edge and is not inside something that scrolls."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("body *")].filter((e) =>
                 e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".scroll"))
               .map((e) => e.outerHTML.slice(0, 100))
               .concat(document.documentElement.scrollWidth > innerWidth ? ["the page scrolls sideways"] : [])"""
        )

    def broken_pictures(self) -> list[str]:
        """Return the pictures that have no pixels, and the figures and pictures that no words stand for."""
        self.page.evaluate("() => Promise.all([...document.images].map((i) => i.decode().catch(() => 0)))")
        return self.page.evaluate(
            """() => [...document.images].filter((i) => !i.naturalWidth || !i.alt)
               .concat([...document.querySelectorAll("svg")].filter((s) => !s.closest("[role=img][aria-label]")))
               .map((e) => e.outerHTML.slice(0, 100))"""
        )

    def text(self) -> str:
        """Return the text that is shown, folded parts too."""
        self.page.evaluate("() => document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        return self.page.inner_text("body")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium, and end it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{option}" for option in _QUIET])
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(
    chromium: Any, url: str, width: int = 1280, height: int = 900, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Seen]:
    """Open a page in a window of a width (CSS pixels) and a colour scheme."""
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen = Seen(context.new_page())
    seen.page.on("console", lambda m: m.type in ("error", "warning") and seen.complaints.append(m.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("request", lambda r: r.url.startswith(("data:", url)) or seen.asked.append(r.url))
    try:
        seen.page.goto(url, wait_until="load")
        yield seen
    finally:
        context.close()
