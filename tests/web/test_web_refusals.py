"""What the Python runtime refuses, the browser host refuses in the same words; texts it reads exactly or not at all."""

import base64
import json
import os
import shutil
import subprocess
from hashlib import sha256
from random import Random

import pytest
from browsing import HOST, in_javascript
from chromium import require_browser
from damages import damage
from fuzz import mutate
from fuzz.targets import write_filler_bundle
from tokenizers_made import byte_level, compare_readings, known_texts, other_kinds, texts, word_level

from runtime import GenerationOptions, Pipeline, RFError
from runtime.bundle.manifest import FileEntry, Manifest, format_manifest
from runtime.bundle.strict_json import parse_json
from runtime.text.tokenizer import PromptTokenizer

require_browser()

TSC = "tsc of the package typescript checks the types: npm install --global typescript@5.9"


def sentence(call):
    try:
        call()
    except RFError as error:
        return [str(error), error.kind]
    return None


DRAWINGS = (
    ("a red car", {"height": 7}),
    ("a red car", {"width": 4000}),
    ("a red car", {"num_steps": 1001}),
    ("a red car", {"num_steps": -1}),
    ("a red car", {"shift": 10001}),
    ("a red car", {"times": (0, 0.5, 0.5, 1)}),
    ("a red car", {"times": (0.1, 1)}),
    ("a red car", {"times": (0, 1), "num_steps": 1}),
    ("a red car", {"guided": (0.7, 0.2)}),
    ("a red car", {"rep_guidance_scale": -1001}),
    ("a red car", {"temperature": -0.5}),
    ("a red car", {"window": 99}),
    ("a red car", {"top_k": 41}),
    ("a red car", {"plan": "tuned"}),
    ("a red car", {"plan": "best"}),
    ("a red zebra", {}),
    ("a red carr, 'Wilma' and twoo", {}),
    ("a red \u2603", {}),
    ("a red car " * 60, {}),
    ("a" * 100_001, {}),
)


def test_the_same_sentence_for_what_cannot_be_drawn(tiny, web, pipeline):
    found = web("refusedDrawings", "fp32", [{"prompt": prompt, **in_javascript(more)} for prompt, more in DRAWINGS])
    for (prompt, more), refused in zip(DRAWINGS, found, strict=True):
        expected = sentence(lambda p=prompt, m=more: pipeline.check([p], options=GenerationOptions(**m)))
        assert expected is not None
        assert refused == expected
    size = pipeline.check([""])[0].plan.num_rep_tokens
    for rep_ids in ([40] * size, [-2] * size):
        (refused,) = web("refusedDrawings", "fp32", [{"repIds": rep_ids}])
        assert refused == sentence(lambda r=rep_ids: pipeline.check([""], rep_ids=[r]))


@pytest.mark.parametrize(
    ("request_", "start"),
    [
        ({"steps": 3}, "There is no option 'steps'. There are numSteps, "),
        ({"plan": {"steps": 3}}, "There is no option 'steps'. There are numSteps, "),
        ({"seed": -1}, "seed must be 0 to 2**64 - 1 for 1 prompts, got -1."),
        ({"seed": str(2**64)}, "seed must be 0 to 2**64 - 1 for 1 prompts, got 18446744073709551616."),
        ({"seed": 2**60}, "seed must be 0 to 2**64 - 1 for 1 prompts, got "),  # not exact: give a text or a bigint
        ({"numSteps": 2.5}, "num_steps must be 1 to 1000, got 2.5."),
        ({"numSteps": "3"}, "num_steps must be 1 to 1000, got '3'."),
        ({"ids": [10**6]}, "The ids of a prompt must be 0 to "),
        ({"ids": [0.5]}, "The ids of a prompt must be 0 to "),
        ({"repIds": [1, 2]}, "rep_ids must be 6 whole numbers, got 2."),
        ({"edits": ["0:9,:=1"]}, "The region 0:9,0: is not inside a grid of 2 rows and 3 columns, "),
        ({"edits": ["0,0=40"]}, "The edit 0:1,0:1=40 paints with a code that does not exist: they are 0 to 39."),
        ({"edits": ["0,:=:,0"]}, "The edit 0:1,0:=0:,0:1 copies 2 x 1 tokens to a region of 1 x 3: give one as large"),
        ({"edits": ["0,0=other.png"]}, "The edit 0:1,0:1=other.png is not understood: the browser reads no files."),
        ({"edits": ["nonsense"]}, "The edit 'nonsense' is not understood. Write ROWS,COLUMNS=SOURCE"),
        ({"edits": [f"0,0=redraw:{2**64}"]}, "The seed of 'redraw:18446744073709551616' must be below 2**64."),
        ({"prompt": "\ud800"}, "The prompt '\\ud800' cannot be read: "),
    ],
)
def test_what_only_a_browser_can_be_asked(request_, start, tiny, web):
    ((message, kind),) = web("refusedDrawings", "fp32", [request_])
    assert message.startswith(start)
    assert kind == "input"


@pytest.mark.parametrize(
    "how",
    [
        *("no manifest", "no graph", "cut off", "one bit", "lfs", "checksum", "requires", "path", "path in table"),
        *("bundle_id", "failed", "nobody", "other graphs", "no precision"),
    ],
)
def test_the_same_sentence_for_a_damaged_bundle(how, tiny, web, site, tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", copy_function=shutil.copy)
    for name in ("manifest.json", damage(bundle, how)):
        site.spoilt[f"tiny/{name}"] = (bundle / name).read_bytes() if (bundle / name).exists() else None
    try:
        found = web("refusedOpening", tiny, {"precision": "fp32"})
    finally:
        site.spoilt.clear()
    message, kind = sentence(lambda: Pipeline.load(bundle, engine="none"))
    assert found == [message.replace(str(bundle), tiny), kind]


def test_an_older_file_in_the_cache_of_the_browser_is_none_that_is_damaged(tiny, web, site):
    site.spoilt["tiny/tokenizer.json"] = b"{}"
    assert "tokenizer.json has 2 bytes and " in web("refusedOpening", tiny, {"precision": "fp32"})[0]
    site.spoilt.clear()
    assert web("refusedOpening", tiny, {"precision": "fp32"}) is None


def test_changed_manifests_are_refused_alike(tmp_path, web):
    """Both refuse, or neither, and nearly always in the same words; for what is no JSON each has words of its own."""
    manifest, rng = write_filler_bundle(tmp_path), Random(5)
    changed = [mutate.change_json(manifest, rng) for _ in range(150)]
    refused, differ = 0, []
    sent = [base64.b64encode(each).decode() for each in changed]
    for data, found in zip(changed, web("manifests", sent), strict=True):
        expected = sentence(lambda d=data: Manifest.from_dict(parse_json(d, "manifest.json"), "manifest.json"))
        assert (expected is None) == (found is None), (expected, found)
        refused += expected is not None
        is_json = expected is not None and " is not valid JSON (" in expected[0] and " is not valid JSON (" in found[0]
        if expected != found and not is_json:
            differ.append((expected, found))
            assert found[1] is not None, found
    print(f"{refused} refused, {len(differ)} in other words: {differ[:20]}")
    assert refused > 100
    assert len(differ) <= refused // 20


def test_a_site_that_cannot_be_reached_or_has_another_library(tiny, web, site):
    site.dropped.add("tiny/manifest.json")
    found = web("refusedOpening", tiny)
    site.dropped.clear()
    assert found == [
        f"{tiny}/manifest.json cannot be reached. Open the page again where there is a network.",
        "missing",
    ]
    message, kind = web("refusedOpening", tiny, {"ort": f"{site.url}/host/nothing.mjs"})
    assert message.startswith(f"onnxruntime-web cannot be loaded from {site.url}/host/nothing.mjs (")
    assert kind == "missing"


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_opens_a_folder_of_the_user(kind, tiny, tiny_bundle, opened, web):
    """Without a site: from what an <input> or a dialog gives."""
    names = [str(path.relative_to(tiny_bundle)) for path in tiny_bundle.rglob("*") if path.is_file()]
    assert (
        opened[1].evaluate(
            """async ([kind, url, names]) => {
          const info = await rf.open("folder", await rf[kind](url, names), { open: { precision: "fp32" } });
          return [info.bundleId, rf.pipelines.fp32.info.bundleId];
        }""",
            [kind, tiny, names],
        )
        == [json.loads((tiny_bundle / "manifest.json").read_text())["bundle_id"]] * 2
    )
    request = [{"prompt": "a red car", "numSteps": 1}]
    assert web("draw", "folder", request) == web("draw", "fp32", request)
    opened[1].evaluate("rf.pipelines.folder.close()")
    assert web("refusedDrawings", "folder", request)[0][0].startswith("This pipeline was closed. Open the bundle again")


def test_types_are_sound():
    """As JSDoc has them, by TypeScript's checker."""
    command = (
        [shutil.which("tsc")]
        if shutil.which("tsc")
        else ["npx", "--yes", "--prefer-offline", "-p", "typescript@5.9.3", "tsc"]
    )
    if shutil.which(command[0]) is None:
        pytest.skip(TSC)
    environment = {**os.environ, "npm_config_fetch_retries": "0", "npm_config_fetch_timeout": "20000"}
    done = subprocess.run(
        [*command, "-p", HOST / "jsconfig.json"], capture_output=True, text=True, check=False, env=environment
    )
    if "npm err" in done.stderr.lower():  # there is no network
        pytest.skip(TSC)
    assert done.returncode == 0, done.stdout


KINDS = {
    "gpt2": lambda: byte_level("gpt2"),
    "gpt2 with a blank in front": lambda: byte_level("gpt2", prefix=True),
    "qwen": lambda: byte_level("qwen"),
    "llama": lambda: byte_level("llama"),
    "words": word_level,
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_read_exactly(kind, web, tmp_path):
    path = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(path))
    python, content = PromptTokenizer(path, 1000), base64.b64encode(path.read_bytes()).decode()
    every = [*(known_texts(200) if kind == "words" else ()), *texts(500)]
    read, refused = compare_readings(python, every, web("tokenize", content, 1000, every))
    print(f"{kind}: {read} texts read alike, {refused} refused alike")
    assert read > 200


def test_other_kinds_are_refused_by_name(web, tmp_path):
    path = tmp_path / "tokenizer.json"
    for tokenizer in other_kinds():
        tokenizer.save(str(path))
        message, kind = web("refusedTokenizer", base64.b64encode(path.read_bytes()).decode())
        assert f"a model of the kind '{json.loads(path.read_text())['model']['type']}', which this library" in message
        assert kind == "unsupported"


def test_a_bundle_whose_texts_are_read_otherwise_takes_ids(tiny, tiny_bundle, web, site):
    """Its check texts say so: one is changed here, and the manifest with it."""
    manifest = Manifest.from_dict(json.loads((tiny_bundle / "manifest.json").read_text()), "manifest.json")
    texts = json.dumps({"texts": [{"text": "a red car", "ids": [1, 2, 3]}]}).encode()
    entry = FileEntry(sha256=sha256(texts).hexdigest(), size=len(texts))
    changed = manifest.replace(files={**manifest.files, "check_texts.json": entry})
    site.spoilt.update({"tiny/check_texts.json": texts, "tiny/manifest.json": format_manifest(changed).encode()})
    try:
        assert web("open", "ids", tiny, {"open": {"precision": "fp32"}})["tokenizer"] is None
    finally:
        site.spoilt.clear()
    ((message, kind),) = web("refusedDrawings", "ids", [{"prompt": "a red car"}])
    assert message.startswith(
        "This library reads the bundle's tokenizer otherwise than the bundle was made with: 'a red"
    )
    assert kind == "unsupported"
    assert web("words", "ids", [4, 14, 20]) == [message, kind]
    assert web("words", "fp32", [4, 14, 20]) == "a red car"
    ids = web("draw", "ids", [{"ids": [4, 14, 20], "numSteps": 1}])
    assert ids[0]["rgba"] == web("draw", "fp32", [{"prompt": "a red car", "numSteps": 1}])[0]["rgba"]
