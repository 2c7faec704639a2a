"""The page in a real browser, on a phone and on a desk: draws, stops, edits, asks, and tells errors in a sentence.

Needs Chromium (apt-get install chromium, or CHROMIUM=/path/to/it) and playwright, which drives it.
"""

import base64
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chromium import IDLE, SHOTS, WIDE, launched, require_browser
from servers import Server

require_browser()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture(params=[(390, "dark"), (1280, "light")], ids=["phone", "desk"])
def page(request, browser, server: Server) -> Iterator[Any]:
    """The page, opened; nothing but its server may be asked, and nothing may be wider than the screen."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(30_000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda told: troubles.append(told.text) if "status of" not in told.text else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith((server.url, "blob:", "data:")) else troubles.append(asked.url),
    )
    page.goto(server.url)
    page.wait_for_selector(IDLE)
    yield page
    assert page.evaluate(WIDE) == []
    assert not page.evaluate("document.documentElement.scrollWidth > innerWidth")
    if SHOTS:
        name = re.sub(r"\W+", "-", request.node.name)
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)
    page.close()
    assert troubles == []


def draw(page: Any, prompt: str, steps: int = 4) -> None:
    page.fill("#prompt", prompt)
    page.evaluate(f"steps.max = 1000; steps.value = {steps}; steps.oninput()")
    page.click("#go")
    page.wait_for_selector(IDLE)


def pictures(page: Any) -> int:
    return page.locator("#history li").count()


def shown(page: Any) -> list[int]:
    """The pixels on the stage."""
    return page.evaluate(
        """async () => {
          await picture.decode();
          const canvas = Object.assign(document.createElement("canvas"), {width: 24, height: 16}).getContext("2d");
          canvas.drawImage(picture, 0, 0);
          return [...canvas.getImageData(0, 0, 24, 16).data];
        }"""
    )


def test_a_newcomer_draws_with_one_click(page: Any, server: Server) -> None:
    page.click("#go")
    page.wait_for_selector(IDLE)
    assert pictures(page) == 1
    assert re.search(r"25 steps in [\d.]+ s, seed 7", page.text_content("#status"))
    assert page.get_attribute("#picture", "alt") == "a red car"
    page.wait_for_function("() => picture.naturalWidth === 24")
    assert page.get_attribute("#save", "download") == "a-red-car.png"
    with page.expect_download() as download:
        page.click("#save")
    body = {"prompt": "a red car", "seed": 7, "plan": "paper", "size": "24x16"}
    drawn = server.json("/v1/images/generations", body)[1]["data"][0]["b64_json"]
    assert download.value.path().read_bytes() == base64.b64decode(drawn)


def test_each_step_is_shown(page: Any) -> None:
    page.evaluate(
        """() => {
          window.seen = {images: new Set(), texts: new Set()};
          new MutationObserver(() => seen.images.add(picture.src)).observe(picture, {attributes: true});
          new MutationObserver(() => seen.texts.add(status.textContent)).observe(
            document.getElementById("status"), {childList: true, characterData: true, subtree: true});
        }"""
    )
    page.evaluate("window.status = document.getElementById('status')")
    draw(page, "two blue fish", 12)
    assert page.evaluate("seen.images.size") >= 12
    grid = page.locator("#grid .known")
    assert grid.count() == 6


def test_an_example_and_another_seed_are_drawn(page: Any) -> None:
    page.click("#examples button:nth-child(2)")
    page.wait_for_selector(IDLE)
    first = shown(page)
    page.click("#another")
    page.wait_for_selector(IDLE)
    assert pictures(page) == 2
    assert shown(page) != first
    assert page.input_value("#seed") != "7"
    page.click("#history li:last-child button")
    assert shown(page) == first
    assert page.input_value("#seed") == "7" and page.input_value("#prompt") == "two blue fish"


@pytest.mark.parametrize("how", ["click", "Escape"])
def test_stop_shows_what_was_there_before(page: Any, server: Server, how: str) -> None:
    draw(page, "a cup")
    before = shown(page)
    page.evaluate("steps.value = 1000")
    page.click("#go")
    page.wait_for_function("() => /Step/.test(document.getElementById('status').textContent)")
    with server.frozen():
        page.click("#stop") if how == "click" else page.keyboard.press("Escape")
        page.wait_for_selector(IDLE)
    assert page.text_content("#status").startswith("4 steps")
    assert pictures(page) == 1
    assert shown(page) == before
    assert page.locator("#error").is_hidden()
    with server.slow():  # it does not end by itself
        server.wait_for(lambda: server.in_flight() == 0)


def test_stop_gives_the_drawing_up(page: Any, server: Server) -> None:
    long = {"prompt": "a cup", "steps": 1000, "size": "32x32"}
    with server.slow(), ExitStack() as held:
        for _ in range(12):
            held.enter_context(server.open("/v1/images/generations", long))
        server.wait_for(lambda: server.in_flight() == 12)
        cancelled = server.metric("rf_cancelled_total", work="picture")
        page.click("#go")
        server.wait_for(lambda: server.in_flight() == 13)
        with server.frozen():
            assert page.text_content("#status") == "Waiting for a place …"
            page.click("#stop")
            page.wait_for_selector(IDLE)
        assert page.locator("#hint").is_visible()
        server.wait_for(lambda: server.metric("rf_cancelled_total", work="picture") == cancelled + 1)


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    box = page.locator("#grid").bounding_box()
    for index, (x, y) in enumerate((start, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        page.mouse.down() if not index else page.mouse.up()


def codes(page: Any) -> list[str]:
    return page.locator("#grid span").all_text_contents()


def test_a_region_is_chosen_and_edited(page: Any) -> None:
    draw(page, "a red car")
    page.check("#show-tokens")
    before = codes(page)
    assert len(before) == 6 and all(each.isdecimal() for each in before)
    drag(page, (0.4, 0.6), (0.9, 0.9))
    assert page.text_content("#chosen") == "Rows 1 to 1, columns 1 to 2"
    assert page.locator("#grid .chosen").count() == 2
    page.click("#erase")
    page.wait_for_selector(IDLE)
    commonest = max(before, key=before.count)
    assert codes(page)[:4] == before[:4] and len(set(codes(page)[4:])) == 1
    assert before.count(commonest) == before.count(codes(page)[4])
    assert "edited: 1:2,1:3=" in page.text_content("#status")

    drag(page, (0.1, 0.1), (0.1, 0.1))
    erased = codes(page)
    page.click("#copy")
    assert "Click where" in page.text_content("#chosen")
    drag(page, (0.9, 0.9), (0.9, 0.9))
    page.wait_for_selector(IDLE)
    assert codes(page) == [*erased[:5], erased[0]]
    assert pictures(page) == 3

    page.locator("#grid").focus()
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert page.text_content("#chosen") == "Rows 0 to 1, columns 1 to 1"
    page.click("#redraw")
    page.wait_for_selector(IDLE)
    kept = [index for index in range(6) if index not in (1, 4)]
    assert [codes(page)[index] for index in kept] == [[*erased[:5], erased[0]][index] for index in kept]
    assert re.search(r"edited: 0:2,1:2=redraw:\d+", page.text_content("#status"))


def test_questions_and_captions_stay_with_their_picture(page: Any, tmp_path: Path) -> None:
    page.click("#ask-go")
    page.wait_for_selector("#error:not([hidden])")
    assert "no picture to ask about" in page.text_content("#error")
    draw(page, "a red car")
    page.click("#ask-go")
    page.wait_for_selector(IDLE)
    page.fill("#question", "what colour is the car ?")
    page.keyboard.press("Enter")
    page.wait_for_selector(IDLE)
    assert page.locator("#said dt").all_text_contents() == ["what colour is the car ?", "caption"]
    answers = page.locator("#said dd").all_text_contents()
    assert all(answer not in ("", "…") for answer in answers)
    from PIL import Image

    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    page.set_input_files("#file", tmp_path / "mine.png")
    page.wait_for_selector("#history li:nth-child(2)")
    assert page.locator("#said dt").count() == 0
    page.fill("#question", "")
    page.click("#ask-go")
    page.wait_for_selector(IDLE)
    assert page.locator("#said dd").count() == 1
    page.click("#history li:last-child button")
    assert page.locator("#said dd").all_text_contents() == answers
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_selector("#error:not([hidden])")
    assert "no.png is no picture" in page.text_content("#error")


def test_errors_are_sentences_and_go_away(page: Any) -> None:
    draw(page, "a red elephant")
    told = page.text_content("#error")
    assert "does not know 'elephant'" in told and told.endswith("listed below the form.")
    assert page.locator("#words").get_attribute("open") is not None
    assert pictures(page) == 0 and page.locator("#hint").is_visible()
    page.click("#words button:text-is('cup')")
    assert page.input_value("#prompt") == "a red elephant cup"
    draw(page, "a cup")
    assert page.locator("#error").is_hidden() and pictures(page) == 1


def test_what_a_prompt_says_is_never_markup(page: Any) -> None:
    draw(page, "<img src=x onerror=alert(1)>")
    assert "<img" in page.text_content("#error")
    assert page.locator("#error img").count() == 0


def test_a_key_is_asked_for_and_a_lost_server_is_told(browser: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Server(tiny_bundle, tmp_path, "--api-key", "secret") as server:
        page = browser.new_page()
        page.goto(server.url)
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_function(
            "() => !document.getElementById('key').value && document.getElementById('key-dialog').open"
        )
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector(IDLE)
        draw(page, "a cup")
        assert pictures(page) == 1
        server.stop()
        draw(page, "a cup")
        assert "cannot be reached" in page.text_content("#error")
        page.close()
