"""The search with planted scores: it finds the cheapest plan that is good, and the held-out half has the last word."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import sample_manifest

from runtime.errors import RFError
from runtime.options import GenerationOptions, Plan
from runtime.plans import plan_drawing
from tuning.candidates import Candidates
from tuning.config import TuneConfig
from tuning.judging import Mark, compare
from tuning.search import search
from tuning.subjects import split

CONFIG = TuneConfig(num_pictures=400, min_prompts=2)
PROMPTS = [f"prompt {i}" for i in range(400)]
MANIFEST = sample_manifest()


class PlantedBench:
    """Marks that a function of the plan and the subject decides; counts what is drawn."""

    def __init__(self, score):
        self._score, self.drawn = score, {}

    def compare(self, candidate, subjects, what):
        self.drawn.setdefault(candidate.plan, set()).update(each.index for each in subjects)
        marks = [Mark(float(bool(self._score(candidate, each))), 30.0, 0.9) for each in subjects]
        return compare([Mark(1.0, 99.0, 1.0)] * len(subjects), marks, [each.prompt for each in subjects])


def candidates(manifest=MANIFEST):
    return Candidates(manifest.sampling, lambda plan: plan_drawing(GenerationOptions(plan=plan), manifest))


def searched(score, config=CONFIG):
    bench, halves = PlantedBench(score), split(PROMPTS, config)
    return search(bench, candidates(), halves, config), bench, halves


@settings(max_examples=40)
@given(steps=st.integers(2, 20), end=st.sampled_from([0.0, 0.3, 0.6, 0.9]), loss=st.sampled_from([3, 5, 10]))
def test_the_cheapest_good_plan_of_those_tried_is_taken(steps, end, loss):
    def is_good(plan):
        return plan.num_steps >= steps and (plan.guided or (0, 1))[1] >= end

    found, bench, halves = searched(lambda each, subject: is_good(each.plan) or subject.index % loss)
    good = [each.candidate for each in found.tried if is_good(each.candidate.plan)]
    assert all(each.is_promising == is_good(each.candidate.plan) for each in found.tried)
    if found.best is None:
        assert not good
        assert found.reason == "no plan was as good that is cheaper than the full one"
        return
    assert is_good(found.best[0].plan)
    assert found.best[0].rows == min(each.rows for each in good)
    assert found.best[1].pictures == len(halves.held_out)
    held_out = {each.index for each in halves.held_out}
    for plan, drawn in bench.drawn.items():  # nobody else saw the held-out half
        assert plan in {each.plan for each, *_ in found.judged} or not drawn & held_out


def test_what_is_good_on_the_first_half_alone_is_not_taken():
    held_out = {each.index for each in split(PROMPTS, CONFIG).held_out}
    honest = 16

    def score(each, subject):
        return each.rows >= honest or subject.index not in held_out or subject.index % 5

    found, _, _ = searched(score, dataclasses.replace(CONFIG, max_tries=30))
    assert found.best is not None
    assert found.best[0].rows >= honest
    assert {verdict for *_, verdict in found.judged[:-1]} == {"worse"}
    assert len({candidate.plan for candidate, *_ in found.judged}) == len(found.judged)
    few, _, _ = searched(score)
    assert few.best is None
    assert len(few.judged) == CONFIG.max_tries
    assert few.reason.startswith("the held-out half found 3 plans worse")


@given(num=st.integers(2, 398), flaw=st.integers(2, 50))
@settings(max_examples=25)
def test_too_few_held_out_pictures_take_no_plan(num, flaw):
    found, _, _ = searched(
        lambda each, subject: subject.index % flaw > 0, dataclasses.replace(CONFIG, num_pictures=num)
    )
    assert found.best is None
    if found.judged and found.judged[-1][2] == "cannot tell":
        assert "held-out pictures are too few" in found.reason
        assert "--pictures 400" in found.reason


def test_a_scorer_of_chance_takes_no_plan():
    found, _, _ = searched(lambda each, subject: hash((each.rows, subject.index)) % 2)
    assert found.best is None


def test_a_bad_plan_is_given_up_after_a_few_pictures():
    _, bench, _ = searched(lambda each, subject: each.rows >= 12 or subject.index % 2)
    assert {len(drawn) for plan, drawn in bench.drawn.items() if plan.num_steps == 4} == {24}


def test_no_plan_draws_what_another_one_drew_or_costs_as_much_as_the_full_one():
    made = candidates()
    found = made.coarse()
    found += made.finer(found[-1])
    drawn = [plan_drawing(GenerationOptions(plan=each.plan), MANIFEST) for each in found]
    content = [(plan.times, *map(plan.is_guided, plan.times[:-1])) for plan in drawn]
    assert len(set(content)) == len(content)
    assert made.full.rows == 50
    assert all(each.rows < 50 for each in found)
    assert [each.rows for each in made.coarse()] == []  # all of them were there


def test_without_guidance_only_steps_and_shift_are_tried():
    manifest = MANIFEST.replace(sampling=MANIFEST.sampling.replace(pix_guidance_scale=1.0))
    found = candidates(manifest).coarse()
    assert {each.plan.guided for each in found} == {None}
    assert [each.rows for each in found] == [each.plan.num_steps for each in found]


def test_a_full_plan_of_few_steps_leaves_little_to_try():
    manifest = MANIFEST.replace(sampling=MANIFEST.sampling.replace(num_steps=2))
    assert candidates(manifest).coarse() == []
    found = search(PlantedBench(lambda *_: 1), candidates(manifest), split(PROMPTS, CONFIG), CONFIG)
    assert (found.best, found.tried) == (None, [])


@given(num_prompts=st.integers(16, 60), num_pictures=st.integers(2, 120), seed=st.integers(0, 2**40))
def test_the_halves_share_no_prompt_and_no_seed(num_prompts, num_pictures, seed):
    config = TuneConfig(num_pictures=num_pictures, seed=seed)
    prompts = [f"prompt {i}" for i in range(num_prompts)]
    halves = split([*prompts, "prompt  1", "", "prompt 2 "], config)
    assert [each.index for each in halves.all] == list(range(num_pictures))
    assert [each.seed for each in halves.all] == [seed + i for i in range(num_pictures)]
    assert not {each.prompt for each in halves.search} & {each.prompt for each in halves.held_out}
    assert len(halves.held_out) - len(halves.search) in (0, 1)


def test_too_few_prompts_are_refused():
    with pytest.raises(RFError, match="15 different prompts are too few to tune with, expected at least 16"):
        split([f"prompt {i % 15}" for i in range(100)], TuneConfig())


@pytest.mark.parametrize(
    ("value", "message"),
    [({"max_loss": -1}, "max_loss"), ({"min_psnr": -1}, "min_psnr"), ({"num_pictures": 1}, "num_pictures")],
)
def test_a_config_of_nonsense_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        TuneConfig(**value)


def test_the_full_plan_is_no_candidate():
    assert candidates().full.plan == Plan()
