"""Plans on the command line: by name, as a file, value by value; what is wrong is told by the name of the option."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import invoke, refused, run

from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import TunedPlan
from runtime.bundle.plan import record_plan, write_plan
from runtime.pictures.png import read_parameters

TUNED = TunedPlan(num_steps=3, shift=2.0, guided=(0.0, 0.7), window=2, evidence={"summary": "guessed by a test"})


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy with a tuned plan."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))
    record_plan(open_bundle(copy), TUNED)
    return copy


def drawn(bundle: Path, out: Path, *options: str | Path) -> tuple[np.ndarray, dict]:
    run("generate", bundle, "a red car", "--seed", "5", "-o", out, *options)
    return np.asarray(Image.open(out)).astype(int), read_parameters(out)


def test_a_plan_draws_the_same_by_name_as_a_file_and_value_by_value(bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "my plan.json"
    write_plan(plan, TUNED, open_bundle(bundle).manifest.checkpoint["sha256"])
    ways = [
        ("--plan", "tuned"),
        ("--plan", plan),
        ("--steps", "3", "--shift", "2", "--guided", "0:0.7", "--window", "2"),
    ]
    found = [drawn(bundle, tmp_path / "picture.png", *way) for way in ways]
    facts = [parameters["plan"] for _, parameters in found]
    assert [each.pop("name") for each in facts] == ["tuned", str(plan), "paper"]
    assert facts[0] == facts[1] == facts[2]
    assert (facts[0]["guided"], facts[0]["window"], len(facts[0]["times"])) == ([0.0, 0.7], 2, 4)
    for picture, _ in found[1:]:
        assert np.array_equal(picture, found[0][0])
    paper, _ = drawn(bundle, tmp_path / "picture.png")
    assert not np.array_equal(paper, found[0][0])


def test_the_metadata_draw_the_picture_again(bundle: Path, tmp_path: Path) -> None:
    first, parameters = drawn(bundle, tmp_path / "first.png", "--plan", "tuned")
    plan = parameters["plan"]
    again, _ = drawn(
        bundle,
        tmp_path / "again.png",
        *("--times", ",".join(map(str, plan["times"])), "--guided", "{}:{}".format(*plan["guided"])),
        *("--rep-guidance", str(plan["rep_guidance_scale"]), "--pix-guidance", str(plan["pix_guidance_scale"])),
        *("--temperature", str(plan["temperature"]), "--top-k", str(plan["top_k"]), "--window", str(plan["window"])),
    )
    assert np.array_equal(first, again)


def test_an_option_beside_a_plan_wins(bundle: Path, tmp_path: Path) -> None:
    _, parameters = drawn(bundle, tmp_path / "picture.png", "--plan", "tuned", "--times", "0,0.25,1")
    assert parameters["plan"]["times"] == [0.0, 0.25, 1.0]
    assert parameters["plan"]["guided"] == [0.0, 0.7]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--times", "0,0.5,0.4,1"), ("--times must increase",)),
        (("--times", "0.1,1"), ("--times must begin with 0 and end with 1",)),
        (("--times", "0,x,1"), ("--times", "'x'")),
        (("--times", "0,nan,1"), ("--times", "nan")),
        (("--times", "0,1", "--steps", "3"), ("--times", "--steps", "--shift")),
        (("--times", "0,1", "--shift", "3"), ("--times", "--steps", "--shift")),
        (("--guided", "0.7:0.2"), ("--guided must be two times between 0 and 1",)),
        (("--guided", "0:1.5"), ("--guided must be two times between 0 and 1",)),
        (("--guided", "0.7"), ("--guided", "FROM:TO", "'0.7'")),
        (("--guided", "a:b"), ("--guided", "'a'")),
        (("--shift", "0"), ("--shift",)),
        (("--shift", "1e9"), ("--shift",)),
        (("--window", "0"), ("--window",)),
        (("--window", "8"), ("--window must be 1 to 7",)),
        (("--plan", "nothing.json"), ("--plan", "nothing.json", "neither paper, nor tuned, nor a file")),
    ],
)
def test_a_wrong_value_is_told_by_the_name_of_its_option(
    tiny_bundle: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    result = invoke("generate", tiny_bundle, "a red car", *options)
    refused(result, *words, code=2)
    assert "num_steps" not in result.stderr


def test_a_bundle_without_a_tuned_plan_tells_how_to_make_one(tiny_bundle: Path) -> None:
    refused(invoke("generate", tiny_bundle, "a red car", "--plan", "tuned"), "rf-export tune", "--plan paper")


def test_a_plan_for_another_checkpoint_is_not_drawn_with(tiny_bundle: Path, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", TUNED, "f" * 64)
    result = invoke("generate", tiny_bundle, "a red car", "--plan", tmp_path / "plan.json")
    refused(result, "plan.json is a plan for another checkpoint", "ffffffff")


def test_inspect_tells_the_plan_and_what_proves_it(bundle: Path, tiny_bundle: Path) -> None:
    text = "tuned plan: 3 steps, shift 2, guided from 0 to 0.7, window 2; guessed by a test"
    assert text in run("inspect", bundle)
    assert json.loads(run("inspect", bundle, "--json"))["tuned"] == TUNED.to_dict()
    assert "no tuned plan; make one with rf-export tune" in run("inspect", tiny_bundle)


def test_export_takes_the_plan_of_the_checkpoint_and_no_other(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from rf_export.checkpoint import checkpoint_sha256

    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    write_plan(checkpoint / "plan.json", TUNED, "f" * 64)
    command = ("export", checkpoint, "-o", tmp_path / "out", "--no-verify", "--precision", "fp32")
    refused(invoke(*command), "plan.json is a plan for another checkpoint")
    assert not (tmp_path / "out").exists()
    write_plan(checkpoint / "plan.json", TUNED, checkpoint_sha256(checkpoint))
    run(*command)
    assert open_bundle(tmp_path / "out").manifest.tuned == TUNED
