"""A real browser for tests: Debian's Chromium, driven by playwright. Knows of our page only when it rests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SHOTS = os.environ.get("RF_EXPORT_TEST_SHOTS")  # a folder for screenshots, to look at
IDLE = "body.ready:not(.busy)"  # of our page: it has drawn
# What of a page is wider than the screen.
WIDE = """() => [...document.querySelectorAll("body *")].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1) && !each.classList.contains("unseen");
}).map(each => each.outerHTML.slice(0, 90))"""


def require_browser() -> Any:
    """playwright; skips the tests of a module where it or Chromium is not there."""
    if CHROMIUM is None:
        pytest.skip("these tests look in Chromium: apt-get install chromium", allow_module_level=True)
    return pytest.importorskip("playwright.sync_api", reason="drives Chromium: pip install playwright")


@contextmanager
def launched(*arguments: str) -> Iterator[Any]:
    """A browser. Its driver holds the event loop of the process: no longer than a file of tests, and one at a time."""
    with require_browser().sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *arguments])
        yield browser
        browser.close()
