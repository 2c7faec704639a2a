"""A page for the tests of each file, with the tiny bundle opened in it.

No longer than a file: while a page is open, its driver holds the event loop of the process, which other tests need.
"""

from pathlib import Path
from typing import Any

import pytest
from browsing import Site, opened_page

from runtime import Pipeline


@pytest.fixture(scope="module")
def opened():
    with opened_page(Path(__file__).parent / "page.js") as both:
        yield both


@pytest.fixture(scope="module")
def site(opened) -> Site:
    """The site that serves the module and the bundles."""
    return opened[0]


@pytest.fixture(scope="module")
def web(opened):
    """Calls a function of page.js: `web("draw", name, requests)`."""

    def call(method: str, *arguments: Any) -> Any:
        return opened[1].evaluate("([method, args]) => rf[method](...args)", [method, list(arguments)])

    return call


@pytest.fixture(scope="module")
def tiny(site, web, tiny_bundle) -> str:
    """The address of the tiny bundle, which is opened in a worker as fp32."""
    url = site.add("tiny", tiny_bundle)
    web("open", "fp32", url, {"open": {"precision": "fp32"}})
    return url


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request, tiny, web) -> str:
    """What the bundle is opened as."""
    if request.param != "fp32":
        web("open", request.param, tiny, {"open": {"precision": request.param}})
    return request.param


@pytest.fixture(scope="module")
def python(tiny_bundle, pipeline):
    """The Python runtime's pipelines of the same graphs."""
    return {"fp32": pipeline, "fp16": Pipeline.load(tiny_bundle, "fp16", num_threads=1, engine="none")}
