"""Opens pages in headless Chromium by subprocess; the tests that need it say so when there is none."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=4000",
)


@dataclass
class Dom(HTMLParser):
    """What tests ask of a page: attributes of `body` and of elements with an id, text by tag."""

    by_id: dict[str, dict[str, str]] = field(default_factory=dict)
    body: dict[str, str] = field(default_factory=dict)
    text: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "body":
            self.body = values
        if "id" in values:
            self.by_id[values["id"]] = values
        self._open.append(tag)

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)


def find_browser() -> str:
    """Path of a Chromium; skips the test without one, or fails it where CLA_REQUIRE_BROWSER=1."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    message = "no Chromium on PATH: apt-get install chromium"
    if os.environ.get("CLA_REQUIRE_BROWSER") == "1":
        pytest.fail(message)
    pytest.skip(message)


def open_page(page: Path, tmp: Path, address: str = "") -> Dom:
    """The page's DOM after its script has run. `address` is the part of the URL after `#`."""
    dom = Dom()
    dom.feed(_run(page, tmp, address, "--dump-dom"))
    return dom


def screenshot(page: Path, tmp: Path, out: Path, address: str = "", size: tuple[int, int] = (1280, 900)) -> None:
    """A picture of the page in `out`."""
    _run(page, tmp, address, f"--screenshot={out}", f"--window-size={size[0]},{size[1]}")


def _run(page: Path, tmp: Path, address: str, *options: str) -> str:
    url = page.resolve().as_uri() + (f"#{address}" if address else "")
    command = [find_browser(), *FLAGS, f"--user-data-dir={tmp / 'profile'}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
