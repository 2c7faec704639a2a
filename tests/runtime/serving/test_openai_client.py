"""OpenAI's own client, unchanged, against a server in a process of its own."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from PIL import Image
from processes import ROOT
from servers import Server

from runtime import Pipeline


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def native(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rf-export generate` writes for "a red car" and seed 7."""
    path = tmp_path_factory.mktemp("native") / "car.png"
    command = [sys.executable, ROOT / "cli.py", "generate", tiny_bundle, "a red car", "--seed", "7", "-o", path]
    subprocess.run([*command, "--engine", "none"], check=True, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    return path


def pixels(text: str | None) -> np.ndarray:
    assert text is not None
    with Image.open(BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image).astype(int)


def draw(client: OpenAI, prompt: str = "a red car", seed: int = 7, **own: Any) -> Any:
    return client.images.generate(model="rf-export", prompt=prompt, extra_body={"seed": seed, **own})


def data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(client: OpenAI, question: str, *pictures: str, **options: Any) -> Any:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    parts += [{"type": "text", "text": question}] if question else []
    return client.chat.completions.create(model="rf-export", messages=[{"role": "user", "content": parts}], **options)


def test_the_picture_is_the_file_that_the_command_writes(client: OpenAI, native: Path) -> None:
    drawn = draw(client)
    assert base64.b64decode(drawn.data[0].b64_json) == native.read_bytes()
    assert drawn.size == "24x16" and drawn.output_format == "png"
    assert drawn.usage.output_tokens == 6 and drawn.usage.input_tokens == 3


def test_the_picture_is_the_same_at_every_concurrency(client: OpenAI, native: Path) -> None:
    expected = np.asarray(Image.open(native)).astype(int)
    prompts = ["two blue fish", "a cup", "a yellow tree and a red car"]
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(draw, client, prompts[seed % 3], seed) for seed in range(8)]
        ours = [pool.submit(draw, client) for _ in range(4)]
        for each in ours:
            assert np.abs(pixels(each.result().data[0].b64_json) - expected).max() <= 1
        assert all(each.result().data for each in others)


def test_several_pictures_and_sizes(client: OpenAI) -> None:
    drawn = client.images.generate(prompt="a cup", n=3, size="32x16", extra_body={"seed": 5, "steps": 3})
    found = [pixels(each.b64_json) for each in drawn.data or []]
    assert [each.shape for each in found] == [(16, 32, 3)] * 3
    assert [each.seed for each in drawn.data or []] == [5, 6, 7]  # type: ignore[attr-defined]
    again = client.images.generate(prompt="a cup", size="32x16", extra_body={"seed": 6, "steps": 3})
    assert np.abs(pixels((again.data or [])[0].b64_json) - found[1]).max() <= 1


@pytest.mark.parametrize("partial_images", [0, 1, 2, 3])
def test_a_stream_has_as_many_previews_as_asked_for_and_the_same_picture(
    client: OpenAI, native: Path, partial_images: int
) -> None:
    stream = client.images.generate(
        prompt="a red car", stream=True, partial_images=partial_images, extra_body={"seed": 7}
    )
    *partial, last = list(stream)
    assert [each.type for each in partial] == ["image_generation.partial_image"] * partial_images
    assert [each.partial_image_index for each in partial] == list(range(partial_images))  # type: ignore[union-attr]
    assert all(pixels(each.b64_json).shape == (16, 24, 3) for each in partial)
    assert last.type == "image_generation.completed"
    assert base64.b64decode(last.b64_json) == native.read_bytes()
    assert last.usage.total_tokens == 9


def test_an_edit_of_a_picture_of_ours(client: OpenAI, native: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    edits = ["0,0=redraw:3", "1,:=5"]
    edited = client.images.edit(image=native, prompt="a red car", n=1, extra_body={"edit": edits})
    path = tmp_path / "edited.png"
    command = [
        sys.executable,
        ROOT / "cli.py",
        "generate",
        tiny_bundle,
        "a red car",
        "--rep-tokens",
        native,
        "-o",
        path,
    ]
    command += ["--engine", "none", *(word for edit in edits for word in ("--edit", edit))]
    subprocess.run(command, check=True, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert (pixels((edited.data or [])[0].b64_json) == np.asarray(Image.open(path))).all()
    *partial, last = list(
        client.images.edit(image=native, prompt="a red car", stream=True, partial_images=2, extra_body={"edit": edits})
    )
    assert [each.type for each in partial] == ["image_edit.partial_image"] * 2
    assert last.type == "image_edit.completed"
    assert (pixels(last.b64_json) == np.asarray(Image.open(path))).all()


def test_questions_about_pictures(client: OpenAI, native: Path, tiny_bundle: Path) -> None:
    pipeline = Pipeline.load(tiny_bundle, num_threads=1, engine="none")
    caption = ask(client, "", data_url(native))
    assert caption.choices[0].message.content == pipeline.understand(str(native))
    question = "what colour is the car ?"
    answer = ask(client, question, data_url(native), seed=3, temperature=0.7, max_tokens=4)
    assert answer.usage.completion_tokens <= 4
    chunks = list(ask(client, question, data_url(native), stream=True, stream_options={"include_usage": True}))
    words = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(words) == pipeline.understand(str(native), question=question)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] in ("stop", "length") and set(reasons[:-1]) <= {None}
    assert chunks[-1].usage.total_tokens > 0


def test_a_conversation_goes_on_about_the_pictures_it_has(client: OpenAI, native: Path) -> None:
    first = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(native)}}]}
    last = {"role": "user", "content": "what colour is the car ?"}
    said = {"role": "assistant", "content": "a red car"}
    messages: Any = [first, said, last]
    answer = client.chat.completions.create(model="rf-export", messages=messages)
    assert (
        answer.choices[0].message.content == ask(client, last["content"], data_url(native)).choices[0].message.content
    )


def test_the_model_is_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "rf-export" == client.models.retrieve("rf-export").id
    assert "car" in model.words and model.cell == 8  # type: ignore[attr-defined]


def test_errors_are_those_that_a_program_expects(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="elephant"):
        draw(client, "a red elephant")
    with pytest.raises(openai.BadRequestError, match="17"):
        client.images.generate(prompt="a cup", size="17x16")
    with pytest.raises(openai.BadRequestError, match="sede is no parameter") as refused:
        draw(client, sede=3)
    assert refused.value.param == "sede"
    with pytest.raises(openai.BadRequestError, match="elephant"):
        client.images.generate(prompt="an elephant", stream=True, partial_images=1)
    with pytest.raises(openai.NotFoundError, match="rf-export") as missing:
        client.images.generate(model="gpt-image-1", prompt="a cup")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="no address is fetched"):
        ask(client, "", "http://127.0.0.1:9/cat.png")


SLOW = {"prompt": "a cup", "steps": 1000, "size": "32x32"}


@contextmanager
def full(server: Server) -> Iterator[list[Any]]:
    """Connections that hold every place of the server until they are closed."""
    held: list[Any] = []

    def filled() -> bool:  # who came before the others had begun is refused, and made up for
        missing = 2 * 4 + 16 - server.in_flight()  # of --max-batch and --max-queue
        held.extend(server.open("/v1/images/generations", SLOW) for _ in range(missing))
        return missing == 0 == 2 * 4 + 16 - server.in_flight()  # what goes to the next stage may be counted twice

    with server.slow():
        try:
            server.wait_for(filled)
            yield held
        finally:
            for each in held:
                each.close()


def test_a_full_queue_is_a_rate_limit_with_a_time_to_wait(server: Server, client: OpenAI) -> None:
    with full(server), pytest.raises(openai.RateLimitError, match="busy") as refused:
        draw(client)
    assert 1 <= int(refused.value.response.headers["Retry-After"]) <= 60
    server.wait_for(lambda: server.in_flight() == 0)
    assert draw(client).data


def test_a_client_that_retries_gets_its_picture_after_all(server: Server) -> None:
    patient = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=9)
    with patient, full(server) as held, ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(draw, patient)
        for each in held:
            each.close()
        assert drawn.result(timeout=120).data
