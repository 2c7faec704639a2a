"""A plan as a file: it comes back as it was written, belongs to one checkpoint, and is refused in one sentence."""

import json
import shutil
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manifests import sample_manifest

from runtime.bundle.folder import open_bundle
from runtime.bundle.manifest import Manifest, TunedPlan, format_manifest
from runtime.bundle.plan import describe_plan, read_plan, record_plan, write_plan
from runtime.errors import RFError
from runtime.options import Plan

HERE, ELSEWHERE = "a" * 64, "b" * 64
share = st.floats(0, 1)
plans = st.builds(
    TunedPlan,
    num_steps=st.none() | st.integers(1, 1000),
    shift=st.none() | st.floats(0.01, 100),
    guided=st.none() | st.tuples(share, share).map(lambda ends: tuple(sorted(ends))),
    pix_guidance_scale=st.none() | st.floats(-10, 10),
    window=st.none() | st.integers(1, 64),
    evidence=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
)


@given(plan=plans)
def test_a_plan_survives_writing_and_reading(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    write_plan(path, plan, HERE)
    assert read_plan(path, HERE) == plan
    manifest = sample_manifest().replace(tuned=plan)
    assert Manifest.from_dict(json.loads(format_manifest(manifest)), "m").tuned == plan


def test_a_plan_written_by_hand_needs_no_evidence_and_no_checksum(tmp_path):
    path = tmp_path / "plan.json"
    content = {"format": "rf-export-plan", "format_version": 1, "checkpoint": HERE, "times": [0, 0.5, 1]}
    path.write_text(json.dumps(content))
    assert read_plan(path, HERE).plan == Plan(times=(0.0, 0.5, 1.0))


def test_a_plan_for_another_checkpoint_is_refused(tmp_path):
    write_plan(tmp_path / "plan.json", TunedPlan(num_steps=6), HERE)
    with pytest.raises(
        RFError, match=r"plan\.json is a plan for another checkpoint \(aaaa.*, and this is bbbb"
    ) as found:
        read_plan(tmp_path / "plan.json", ELSEWHERE)
    assert found.value.kind == "mismatch"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "'num_steps' must be a whole number >= 1, found 0"),
        ({"num_steps": 4.5}, "'num_steps' must be a whole number >= 1, found 4.5"),
        ({"shift": -1}, "shift must be above 0"),
        ({"shift": "2"}, "'shift' must be a finite number"),
        ({"guided": [0.7, 0.2]}, "guided must be two times between 0 and 1, the smaller one first"),
        ({"guided": [0, 1.5]}, "a number from 0 to 1, found 1.5"),
        ({"times": [0, 0.5]}, "times must begin with 0 and end with 1"),
        ({"times": [0, 0.5, 0.5, 1]}, "times must increase"),
        ({"times": [0, 1], "num_steps": 1}, "times say all of the steps"),
        ({"window": 0}, "'window' must be a whole number >= 1"),
        ({"steps": 3}, "unknown 'steps'"),
        ({"checkpoint": "x"}, "'checkpoint' must be 64 hexadecimal digits"),
        ({"checkpoint": None}, "'checkpoint'"),
        ({"format_version": 2}, "format version 2, and this rf-export reads 1"),
        ({"format": "rf-export-bundle"}, "is no file of the format 'rf-export-plan'"),
        ({"checksum": "0"}, "checksum"),
    ],
)
def test_a_damaged_plan_is_refused_by_the_name_of_what_is_wrong(tmp_path, change, message):
    content = {"format": "rf-export-plan", "format_version": 1, "checkpoint": HERE, **change}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(RFError, match=message):
        read_plan(tmp_path / "plan.json", HERE)


def test_every_value_of_a_plan_may_stand_in_a_file():
    assert {each.name for each in fields(Plan)} == set(TunedPlan.__struct_fields__) - {"evidence"}


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), "as the bundle says"),
        (Plan(num_steps=1), "1 step"),
        (Plan(num_steps=6, shift=2, guided=(0, 0.7), window=4), "6 steps, shift 2, guided from 0 to 0.7, window 4"),
        (Plan(times=(0, 0.5, 1), guided=(0, 0)), "2 steps at times of their own, never guided"),
        (Plan(rep_guidance_scale=1, pix_guidance_scale=2.5), "guidance of tokens 1, guidance of pixels 2.5"),
    ],
)
def test_a_plan_is_told_in_words(plan, words):
    assert describe_plan(plan) == words


def test_a_plan_becomes_the_tuned_one_of_a_bundle_and_of_no_other(tiny_bundle, tmp_path):
    copied_bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    bundle = open_bundle(copied_bundle)
    record_plan(bundle, TunedPlan(num_steps=3, evidence={"summary": "guessed"}))
    after = open_bundle(copied_bundle).manifest
    assert after.tuned is not None
    assert after.tuned.plan == Plan(num_steps=3)
    assert after.replace(tuned=None) == bundle.manifest.replace(tuned=None)
    other = bundle.manifest.replace(checkpoint={**bundle.manifest.checkpoint, "sha256": ELSEWHERE})
    (copied_bundle / "manifest.json").write_text(format_manifest(other))
    with pytest.raises(RFError, match="was exported anew while it was tuned"):
        record_plan(bundle, TunedPlan(num_steps=4))
