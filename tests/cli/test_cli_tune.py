"""`rf-export tune` from prompts to a plan in the bundle, interrupted and gone on with; what is wrong, in a sentence."""

import functools
import json
import shutil
from pathlib import Path

import pytest
from running import invoke, refused, run

import tuning
import tuning.scorers
from runtime.bundle.folder import open_bundle
from runtime.bundle.plan import describe_plan, read_plan
from runtime.pictures.png import read_parameters
from tuning.config import TuneConfig

WORDS = ("car", "fish", "tree", "hat", "key", "cup", "bell", "star")
PROMPTS = [f"a {colour} {name}" for colour in ("red", "blue") for name in WORDS]
OPTIONS = ("--pictures", "32", "--engine", "none", "--threads", "1")


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, for which 16 held-out pictures are enough."""
    few = functools.partial(TuneConfig, min_held_out=16, max_doubt=50.0, num_rounds=1)
    monkeypatch.setattr(tuning, "TuneConfig", few)
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines")))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


class Judge:
    """In place of a user's command: finds every picture right, and counts how often it was asked."""

    name = "a judge"
    asked = 0
    stop_at = 10**9

    def __init__(self, *_: object) -> None:
        pass

    def score(self, pictures, prompts):
        Judge.asked += len(pictures)
        if Judge.asked > Judge.stop_at:
            raise KeyboardInterrupt
        return [1.0] * len(pictures)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> type[Judge]:
    Judge.asked, Judge.stop_at = 0, 10**9
    monkeypatch.setattr(tuning, "CommandScorer", Judge)
    return Judge


def figures(text: str) -> dict:
    """What does not depend on clocks."""
    evidence = json.loads(text)["evidence"]
    return {name: evidence[name] for name in ("tried", "held_out", "rows", "prompts", "scorer")}


def test_the_plan_gets_into_the_bundle_and_draws(
    bundle: Path, prompts: Path, tmp_path: Path, judge: type[Judge]
) -> None:
    plan = tmp_path / "plan.json"
    out = run("tune", bundle, "--prompts", prompts, "--score", "judge {png}", "-o", plan, "--json", *OPTIONS)
    manifest = open_bundle(bundle).manifest
    found = json.loads(out)
    assert manifest.tuned is not None
    assert manifest.tuned.to_dict()["evidence"] == found["evidence"]
    assert read_plan(plan, manifest.checkpoint["sha256"]) == manifest.tuned
    # The judge likes everything: the cheapest of all plans that are tried is taken.
    assert found["evidence"]["rows"][0] == min(each["rows"] for each in found["evidence"]["tried"])
    assert found["evidence"]["held_out"][-1]["verdict"] == "as good"
    assert found["evidence"]["held_out"][-1]["pictures"] == 16
    run("generate", bundle, "a red car", "--plan", "tuned", "--engine", "none", "-o", tmp_path / "car.png")
    drawn = read_parameters(tmp_path / "car.png")["plan"]
    assert len(drawn["times"]) - 1 == manifest.tuned.num_steps
    assert describe_plan(manifest.tuned.plan) in run("inspect", bundle)
    page = (tmp_path / "bundle.tuning.html").read_text()
    assert "upwards: score, %" in page
    assert page.count("<img") >= 6 * 3  # the same pictures by the full plan and others
    for each in found["evidence"]["tried"]:
        assert each["plan"] in page


def test_an_interrupted_search_goes_on_without_asking_again(
    bundle: Path, prompts: Path, tmp_path: Path, judge: type[Judge]
) -> None:
    command = ("tune", bundle, "--prompts", prompts, "--score", "judge {png}", "--json", "--no-record", *OPTIONS)
    whole = figures(run(*command))
    total, judge.asked, judge.stop_at = judge.asked, 0, 40
    result = invoke(*command)
    assert result.exit_code == 130
    assert "bundle.tuning.jsonl; go on with --resume" in result.stderr
    refused(invoke(*command), "bundle.tuning.jsonl has an interrupted search", "--resume")
    judge.stop_at = 10**9
    judge.asked = 0
    assert figures(run(*command, "--resume")) == whole
    assert total - 40 <= judge.asked < total  # the batch that was interrupted is asked again, and no other
    judge.asked = 0
    assert figures(run(*command, "--resume")) == whole
    assert judge.asked == 0
    assert open_bundle(bundle).manifest.tuned is None  # --no-record
    refused(invoke(*command, "--resume", "--seed", "5"), "other values of: prompts")


def test_too_few_pictures_cannot_tell_and_leave_the_bundle_as_it_was(
    bundle: Path, prompts: Path, tmp_path: Path, judge: type[Judge]
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    few = ("--pictures", "16", "--engine", "none", "--threads", "1")
    result = invoke("tune", bundle, "--prompts", prompts, "--score", "judge {png}", "-o", tmp_path / "plan.json", *few)
    refused(result, "No plan was found", "8 held-out pictures are too few", "--pictures 32", "bundle.tuning.html")
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (tmp_path / "plan.json").exists()
    assert "too few" in (tmp_path / "bundle.tuning.html").read_text()


def test_a_picture_of_each_half_says_nothing(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    two = ("--pictures", "2", "--engine", "none", "--threads", "1", "--json", "--min-psnr", "0")
    result = invoke("tune", bundle, "--prompts", prompts, *two)
    refused(result, "No plan was found")
    json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no number"))
    assert "nan" not in (tmp_path / "bundle.tuning.html").read_text()


def test_without_a_scorer_the_distance_to_the_full_plan_decides(bundle: Path, prompts: Path, tmp_path: Path) -> None:
    command = ("tune", bundle, "--prompts", prompts, "--no-record", "--json", *OPTIONS)
    evidence = json.loads(run(*command, "--min-psnr", "1"))["evidence"]
    assert evidence["scorer"] == "distance to the full plan"
    assert evidence["held_out"][0]["score"] is None
    assert evidence["held_out"][0]["psnr_db"]["low"] >= 1
    assert "upwards: PSNR to the full plan, dB" in (tmp_path / "bundle.tuning.html").read_text()
    refused(invoke(*command, "--min-psnr", "90"), "no plan was as good that is cheaper")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 3", "failed with exit code 3"),
        ("echo very good", "printed 'very good', expected one number from 0 to 1"),
        ("sleep 60", "did not answer within 0.5 seconds"),
    ],
)
def test_a_scorer_that_fails_ends_the_search_in_one_sentence(
    bundle: Path, prompts: Path, tmp_path: Path, body: str, words: str
) -> None:
    (tmp_path / "judge.sh").write_text(f"{body}\n")
    score = ("--score", f"sh {tmp_path}/judge.sh {{png}} {{prompt}}", "--score-timeout", "0.5")
    before = (bundle / "manifest.json").read_bytes()
    refused(invoke("tune", bundle, "--prompts", prompts, *score, *OPTIONS), words, "The scorer 'sh'")
    assert (bundle / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--score", "judge"), ("--score", "{png}"), 2),
        (("--score", "judge {png}", "--checker"), ("--checker", "--score"), 2),
        (("--max-loss", "-1"), ("--max-loss",), 2),
        (("--max-loss", "101"), ("--max-loss",), 2),
        (("--pictures", "1"), ("--pictures",), 2),
        (("--min-psnr", "-3"), ("--min-psnr",), 2),
        (("--score-timeout", "0"), ("--score-timeout",), 2),
        (("--report", "/nowhere/x.html"), ("--report", "/nowhere is not a folder"), 2),
        (
            ("--checker", *OPTIONS),
            ("The checker cannot judge these pictures", "--score"),
            1,
        ),  # they have 16 x 24 pixels
        (("--score", "no-such-judge {png}", *OPTIONS), ("'no-such-judge' cannot be run",), 1),
    ],
)
def test_a_wrong_option_is_told_by_its_name(
    bundle: Path, prompts: Path, options: tuple[str, ...], words: tuple[str, ...], code: int
) -> None:
    refused(invoke("tune", bundle, "--prompts", prompts, *options), *words, code=code)


def test_a_prompt_that_the_model_does_not_know_is_refused_before_anything_is_drawn(
    bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    prompts.write_text("\n".join([*PROMPTS, "a red zebra"]))
    refused(invoke("tune", bundle, "--prompts", prompts, "--pictures", "34", "--engine", "none"), "zebra")
    assert not (tmp_path / "bundle.tuning.jsonl").exists()


def test_too_few_prompts(bundle: Path, prompts: Path) -> None:
    prompts.write_text("a red car\na blue fish\n")
    refused(invoke("tune", bundle, "--prompts", prompts), "2 different prompts are too few to tune with")
