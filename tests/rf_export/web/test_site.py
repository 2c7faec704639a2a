"""An exported site in a real browser: draws what Python draws, stops, edits, answers, and needs no network but once.

Needs Chromium (apt-get install chromium, or CHROMIUM=/path/to/it), playwright, and onnxruntime-web from npm's registry.
One browser and one visitor serve all tests; each draws what it needs.
"""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import IDLE, SHOTS, WIDE, launched, require_browser
from PIL import Image
from sites import StaticServer, damage, write_site

from runtime import GenerationOptions, PictureEvent, Pipeline
from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import TunedPlan
from runtime.bundle.plan import record_plan
from runtime.commands.token_edits import choose_tokens, parse_edit
from runtime.pictures.png import read_parameters
from runtime.pictures.token_file import RepGrid, read_grid

require_browser()

# SHA-256 of what is kept of a file; then one bit is changed, and what comes after so many bytes is cut off.
OF_KEPT = """async ([end, length]) => {
  for (const name of await caches.keys()) {
    const store = await caches.open(name);
    for (const request of await store.keys()) {
      const kept = new URL(request.url).pathname.endsWith(end) && (await store.match(request));
      if (!kept) continue; // another file, or forgotten meanwhile
      const content = new Uint8Array(await kept.arrayBuffer());
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
      if (length) {
        content[content.length >> 1] ^= 1;
        await store.put(request, new Response(content.subarray(0, length)));
      }
      return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    }
  }
}"""
KEPT = "async () => { for (const name of await caches.keys()) return (await (await caches.open(name)).keys()).length; }"


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tuned plan."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("web") / "bundle"))
    record_plan(open_bundle(bundle), TunedPlan(num_steps=3, shift=2.0, guided=(0.0, 0.5), window=4))
    return bundle


@pytest.fixture(scope="module")
def site(bundle: Path) -> Path:
    """In fp32, which the browser computes as Python does."""
    return write_site(bundle, bundle.with_name("site"), precision="fp32")


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[StaticServer]:
    server = StaticServer(site)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def visitor(browser: Any, server: StaticServer) -> Iterator[Any]:
    """Someone who opened the page; nothing but the site may be asked, and nothing may go wrong in the page."""
    context = browser.new_context(viewport={"width": 1280, "height": 844}, color_scheme="light")
    troubles: list[str] = []
    context.on("weberror", lambda error: troubles.append(str(error.error)))
    context.on(
        "console",
        lambda told: troubles.append(told.text) if told.type == "error" and "CONNECTION" not in told.text else None,
    )
    context.on(
        "request",
        lambda asked: None if asked.url.startswith((server.url, "blob:", "data:")) else troubles.append(asked.url),
    )
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(server.url)
    page.wait_for_selector(IDLE)
    yield page
    context.close()
    assert troubles == []


@pytest.fixture
def page(visitor: Any) -> Any:
    """The page as it is, with nothing chosen."""
    visitor.select_option("#width", "24")
    visitor.select_option("#height", "16")
    visitor.fill("#seed", "7")
    visitor.uncheck("#show-tokens")
    visitor.select_option("#plan", "paper")
    visitor.evaluate("plan.onchange()")
    return visitor


def draw(page: Any, prompt: str, steps: int | None = None) -> None:
    page.fill("#prompt", prompt)
    if steps is not None:
        page.evaluate(f"steps.max = 1000; steps.value = {steps}; steps.oninput()")
    page.click("#go")
    page.wait_for_selector(IDLE)
    assert page.locator("#error").is_hidden(), page.text_content("#error")


def wait_until(page: Any, promise: str, timeout_s: float = 180) -> None:
    """Wait for a promise that says yes; `wait_for_function` takes the promise itself for a yes."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(promise):
        assert time.monotonic() < deadline, promise
        time.sleep(0.05)


def saved(page: Any, out: Path) -> Path:
    with page.expect_download() as download:
        page.click("#save")
    download.value.save_as(out)
    return out


def test_a_picture_is_that_of_python(page: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    draw(page, "a red car")
    assert re.search(r"25 steps in [\d.]+ s, seed 7", page.text_content("#status"))
    file = saved(page, tmp_path / "car.png")
    event = list(pipeline.generate(["a red car"], seed=7))[-1]
    assert isinstance(event, PictureEvent)
    assert read_grid(file).rep_ids.ravel().tolist() == event.rep_ids.tolist()
    picture = np.asarray(Image.open(file).convert("RGB"), np.int64)
    assert np.abs(picture - event.picture).max() <= 1
    assert read_parameters(file)["tokens"] == RepGrid.of(event, pipeline.bundle.manifest).to_dict()
    assert read_parameters(file)["precision"] == "fp32"


def test_the_tuned_plan_is_that_of_python(page: Any, bundle: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundle, num_threads=1, engine="none")
    page.select_option("#plan", "tuned")
    for steps in (None, 5):
        draw(page, "two blue fish", steps)
        assert page.text_content("#status").startswith(f"{steps or 3} steps")
        options = GenerationOptions(plan="tuned", num_steps=steps)
        expected = pipeline.draw("two blue fish", seed=7, options=options).astype(np.int64)
        picture = np.asarray(Image.open(saved(page, tmp_path / "fish.png")).convert("RGB"), np.int64)
        assert np.abs(picture - expected).max() <= 1


def test_each_step_is_shown_and_the_page_is_isolated(page: Any) -> None:
    page.evaluate(
        """() => {
          window.seen = new Set();
          new MutationObserver(() => seen.add(picture.src)).observe(picture, {attributes: true});
        }"""
    )
    draw(page, "two blue fish", 12)
    assert page.evaluate("seen.size") >= 12
    assert page.locator("#grid span.known").count() == 6
    assert page.evaluate("crossOriginIsolated")


def test_stop_shows_what_was_there_before(page: Any) -> None:
    draw(page, "a cup", 4)
    pictures = page.locator("#history li").count()
    page.evaluate(
        """() => {
          const status = document.getElementById("status"), button = document.getElementById("stop");
          const observer = new MutationObserver(() => {
            if (/^Step/.test(status.textContent)) { observer.disconnect(); button.click(); }
          });
          observer.observe(status, {childList: true, characterData: true, subtree: true});
        }"""
    )
    draw(page, "a cup", 1000)
    assert page.text_content("#status").startswith("4 steps")
    assert page.locator("#history li").count() == pictures


def test_a_region_is_drawn_anew_as_python_does_it(page: Any, pipeline: Pipeline) -> None:
    draw(page, "a red car")
    page.check("#show-tokens")
    before = [int(code) for code in page.locator("#grid span").all_text_contents()]
    page.locator("#grid").focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    page.click("#redraw")
    page.wait_for_selector(IDLE)
    after = [int(code) for code in page.locator("#grid span").all_text_contents()]
    edit = re.search(r"edited: (\S+)", page.text_content("#status"))
    assert edit
    grid = RepGrid(
        checkpoint=pipeline.bundle.manifest.checkpoint["sha256"],
        height=16,
        width=24,
        prompt="a red car",
        seed=7,
        rep_ids=np.array(before).reshape(2, 3),
    )
    options = GenerationOptions(height=16, width=24)
    edits = [parse_edit(edit[1])]
    chosen = choose_tokens(pipeline, ["a red car"], seed=7, options=options, base=grid, edits=edits)
    assert chosen is not None and after == chosen[0].tolist()
    assert after[0] == before[0]


def test_questions_get_the_answers_of_python(page: Any, pipeline: Pipeline, tmp_path: Path) -> None:
    draw(page, "a red car")
    file = saved(page, tmp_path / "car.png")
    questions = ["", "what colour is the car ?"]
    for question in questions:
        page.fill("#question", question)
        page.click("#ask-go")
        page.wait_for_selector(IDLE)
    answers = page.locator("#said dd").all_text_contents()
    assert answers == [pipeline.understand(file, question=question).strip() or "…" for question in reversed(questions)]


def test_errors_are_sentences(page: Any) -> None:
    page.fill("#prompt", "a red elephant")
    page.click("#go")
    page.wait_for_selector("#error:not([hidden])")
    assert "elephant" in page.text_content("#error")
    draw(page, "a cup", 2)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_it_fits_phones_and_desks(page: Any, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    draw(page, "a green cat left of a blue mushroom", 4)
    page.check("#show-tokens")
    assert page.evaluate(WIDE) == []
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"site-{width}-{scheme}.png", full_page=True)


def test_without_a_network_and_after_an_update(page: Any, server: StaticServer, site: Path, bundle: Path) -> None:
    num_files = sum(path.is_file() and path.suffix != ".gz" for path in site.rglob("*")) - 1  # the service worker
    wait_until(page, f"({KEPT})().then(count => count === {num_files})")
    server.stop()
    page.reload()
    page.wait_for_selector(IDLE)
    assert "fp32" in page.text_content("#model")
    draw(page, "a red car", 4)
    server.start()
    write_site(bundle, site, precision="fp16", force=True)
    page.reload()  # the browser learns of the new site, and goes on with the old one
    page.wait_for_selector(IDLE)
    wait_until(page, "navigator.serviceWorker.getRegistration().then(({waiting}) => Boolean(waiting))")
    page.reload()
    page.wait_for_selector(f"{IDLE} #model:has-text('fp16')")
    draw(page, "a red car", 4)
    wait_until(page, f"({KEPT})().then(count => count === {num_files})")  # what is old is forgotten


def test_damaged_weights_are_refused_in_a_sentence(browser: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    site = write_site(tiny_bundle, tmp_path / "site")
    damage(site, "bundle/graphs/weights/fp16.bin")
    server = StaticServer(site)
    try:
        page = browser.new_page()
        page.set_default_timeout(180_000)
        page.goto(server.url)
        page.wait_for_selector("#error:not([hidden])")
        assert "fp16.bin" in page.text_content("#error") and "damaged" in page.text_content("#error")
        assert page.text_content("#hint") == "Nothing can be drawn."
        assert page.locator("body.ready").count() == 0
        page.close()
    finally:
        server.stop()


@pytest.fixture
def stranger(browser: Any, server: StaticServer) -> Iterator[Any]:
    """Someone who was never here."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(180_000)
    yield page
    context.close()


def kept_hash(page: Any, name: str, length: int = 0) -> str | None:
    """SHA-256 of what is kept of a file, before it is damaged: a bit is changed, and `length` bytes are left."""
    found: str | None = page.evaluate(OF_KEPT, [name, length])
    return found


def test_what_was_damaged_since_it_was_kept_is_loaded_anew(stranger: Any, server: StaticServer, site: Path) -> None:
    stranger.goto(server.url)
    stranger.wait_for_selector(IDLE)
    weights, known = next((site / "bundle").rglob("*.bin")).name, open_bundle(site / "bundle").manifest.files
    for name, length in ((weights, 1 << 30), (weights, 100), ("manifest.json", 100), ("tokenizer.json", 1 << 30)):
        wait_until(stranger, f"({OF_KEPT})(['{name}', 0])")
        right = kept_hash(stranger, name, length)
        assert name == "manifest.json" or right in {entry.sha256 for entry in known.values()}
        assert kept_hash(stranger, name) != right
        stranger.reload()
        stranger.wait_for_selector(IDLE)
        wait_until(stranger, f"({OF_KEPT})(['{name}', 0]).then(found => found === '{right}')")
    # The page cannot draw, says so, and can when it is loaded again.
    for name, says in (("stages.js", "did not start"), ("threaded.wasm", "does not start")):
        right = kept_hash(stranger, name, 100)
        stranger.reload()
        stranger.wait_for_selector("#error:not([hidden])")
        assert says in stranger.text_content("#error") and "Load the page again" in stranger.text_content("#error")
        wait_until(stranger, f"({OF_KEPT})(['{name}', 0]).then(found => !found)")
        stranger.reload()
        stranger.wait_for_selector(IDLE)
        wait_until(stranger, f"({OF_KEPT})(['{name}', 0]).then(found => found === '{right}')")
    kept_hash(stranger, "client.js", 100)
    stranger.reload()
    stranger.wait_for_selector("#error:not([hidden])")
    assert "with Shift held" in stranger.text_content("#error")
    kept_hash(stranger, "index.html", 100)
    stranger.context.new_cdp_session(stranger).send("Page.reload", {"ignoreCache": True})
    stranger.wait_for_selector(IDLE)  # who loads it past all that is kept has a whole page, and keeps it
    assert stranger.evaluate("crossOriginIsolated")
    stranger.reload()
    stranger.wait_for_selector(IDLE)


def test_a_page_that_was_opened_from_a_file_says_so(stranger: Any, site: Path) -> None:
    stranger.goto((site / "index.html").as_uri())
    stranger.wait_for_selector("#error:not([hidden])")
    assert "opened from a file" in stranger.text_content("#error")
    assert stranger.text_content("#hint") == "Nothing can be drawn."


@pytest.mark.parametrize("quota", [1000, 1_000_000])
def test_a_browser_that_keeps_nothing_or_little_draws_all_the_same(
    stranger: Any, server: StaticServer, quota: int
) -> None:
    session = stranger.context.new_cdp_session(stranger)
    session.send("Storage.overrideQuotaForOrigin", {"origin": server.url.rstrip("/"), "quotaSize": quota})
    stranger.goto(server.url)
    for _ in range(2):
        stranger.wait_for_selector(IDLE)
        draw(stranger, "a red car", 2)
        assert kept_hash(stranger, "threaded.wasm") is None  # it is larger
        stranger.reload()


def test_what_a_browser_throws_away_is_loaded_anew(stranger: Any, server: StaticServer) -> None:
    stranger.goto(server.url)
    stranger.wait_for_selector(IDLE)
    wait_until(stranger, f"({OF_KEPT})(['threaded.wasm', 0])")
    session = stranger.context.new_cdp_session(stranger)
    gone = {"origin": server.url.rstrip("/"), "storageTypes": "cache_storage"}
    session.send("Storage.clearDataForOrigin", gone)
    assert stranger.evaluate("caches.keys()") == []
    draw(stranger, "a red car", 2)
    stranger.reload()
    stranger.wait_for_selector(IDLE)
    wait_until(stranger, f"({OF_KEPT})(['threaded.wasm', 0])")
