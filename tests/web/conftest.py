"""One page for the tests of the module, with the tiny bundle opened in it."""

from pathlib import Path
from typing import Any

import pytest
from browsing import Site, opened_page

from runtime import Pipeline


@pytest.fixture(scope="package")
def opened():
    with opened_page(Path(__file__).parent / "page.js") as both:
        yield both


@pytest.fixture(scope="package")
def site(opened) -> Site:
    """The site that serves the module and the bundles."""
    return opened[0]


@pytest.fixture(scope="package")
def web(opened):
    """Calls a function of page.js: `web("draw", name, requests)`."""

    def call(method: str, *arguments: Any) -> Any:
        return opened[1].evaluate("([method, args]) => rf[method](...args)", [method, list(arguments)])

    return call


@pytest.fixture(scope="package")
def tiny(site, web, tiny_bundle) -> str:
    """The address of the tiny bundle, opened in workers as fp32 and fp16."""
    url = site.add("tiny", tiny_bundle)
    for precision in ("fp32", "fp16"):
        web("open", precision, url, {"open": {"precision": precision}})
    return url


@pytest.fixture(scope="package")
def python(tiny_bundle, pipeline):
    """The Python runtime's pipelines of the same graphs."""
    return {"fp32": pipeline, "fp16": Pipeline.load(tiny_bundle, "fp16", num_threads=1, engine="none")}
