"""The joint objective: who sees whom, three losses against plain references, and training tied to inference."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rf_export.config import preset
from rf_export.eager import EagerRequest, EagerResult, generate
from rf_export.layers import unpatchify
from rf_export.model import RFModel, Segment
from rf_export.training.objective import (
    MIN_NOISE,
    Batch,
    Draws,
    describe_loss,
    draw_losses,
    draw_mask,
    grid_positions,
    joint_losses,
)

HEIGHT, WIDTH, NUM_REP, NUM_PATCHES = 16, 24, 6, 24  # the tiny model's default picture: 2 x 3 tokens, 4 x 6 patches
PROMPT_SLOTS, TEXT_SLOTS = 7, 9
LENGTHS = (5, 7, 0, 2)  # words of the captions in a batch
QUESTIONS = ((4, 1), (3, 4), (6, 1), (0, 2))  # words of the question and of the answer, the second text of a picture
LOSS_ROUNDING = {"rtol": 2e-5, "atol": 2e-5}  # fp32 in another order of sums
STATE_ROUNDING = {"rtol": 1e-4, "atol": 1e-4}  # of hidden states, after two layers


@pytest.fixture(scope="module")
def model() -> RFModel:
    torch.manual_seed(0)
    return RFModel(preset("tiny"))


def make_batch(seed: int = 0) -> Batch:
    """Random pictures, captions of `LENGTHS` words and a question each, padded as training pads them."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(4, 61, (len(LENGTHS), PROMPT_SLOTS))
    texts = np.zeros((len(LENGTHS), 2, TEXT_SLOTS), np.int64)
    targets = np.zeros(texts.shape, bool)
    for row, (length, (asked, said)) in enumerate(zip(LENGTHS, QUESTIONS, strict=True)):
        texts[row, 0, : length + 2] = [2, *prompts[row, PROMPT_SLOTS - length :], 3]
        targets[row, 0, 1 : length + 2] = True
        texts[row, 1, : asked + said + 2] = [2, *rng.integers(4, 61, asked + said), 3]
        targets[row, 1, 1 + asked : asked + said + 2] = True
    return Batch(
        pixels=torch.from_numpy(rng.uniform(-1, 1, (len(LENGTHS), 3, HEIGHT, WIDTH)).astype(np.float32)),
        prompt_ids=torch.from_numpy(prompts),
        prompt_starts=PROMPT_SLOTS - torch.tensor(LENGTHS),
        text_ids=torch.from_numpy(texts),
        text_targets=torch.from_numpy(targets),
    )


def make_draws(seed: int = 0, *, drop_text: bool = False, drop_rep: bool = False) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        t=torch.rand(len(LENGTHS), generator=generator) * 0.9,
        noise=torch.randn(len(LENGTHS), 3, HEIGHT, WIDTH, generator=generator),
        drop_text=torch.full((len(LENGTHS),), drop_text),
        drop_rep=torch.full((len(LENGTHS),), drop_rep),
    )


def make_rep_ids(seed: int = 0) -> Tensor:
    return torch.randint(40, (len(LENGTHS), NUM_REP), generator=torch.Generator().manual_seed(seed))


# Who sees whom


def sees(query: int, key: int, num_text: int, num_rep: int, text_visible: list[bool], rep_dropped: bool) -> bool:
    """The rule in words: place by place, for [text | representation | pixels]."""
    num_prefix = num_text + num_rep
    if query < num_prefix:  # causal over text and representation tokens; a token always sees itself
        return key == query or (key < query and (key >= num_text or text_visible[key]))
    if key >= num_prefix:
        return True  # every patch sees every patch
    return text_visible[key] if key < num_text else not rep_dropped


@settings(max_examples=60)
@given(st.data(), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6), st.integers(1, 3))
def test_the_mask_is_the_rule_for_every_pair(
    data: st.DataObject, num_text: int, num_rep: int, num_patches: int, rows: int
) -> None:
    starts = data.draw(st.lists(st.integers(0, num_text), min_size=rows, max_size=rows))
    dropped = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows))
    text_visible = torch.arange(num_text) >= torch.tensor(starts)[:, None]
    rep_visible = ~torch.tensor(dropped)[:, None].expand(-1, num_rep)
    mask = draw_mask(text_visible, rep_visible, num_patches)
    total = num_text + num_rep + num_patches
    assert mask.shape == (rows, 1, total, total)
    for row in range(rows):
        visible = text_visible[row].tolist()
        expected = [
            [sees(query, key, num_text, num_rep, visible, dropped[row]) for key in range(total)]
            for query in range(total)
        ]
        assert mask[row, 0].tolist() == expected
    assert mask.any(-1).all(), "a row that sees nothing is a softmax over nothing"


def mask_of(text_start: int, *, drop_rep: bool) -> Tensor:
    """Three text slots, four representation inputs and two patches: `[9, 9]`."""
    text = torch.arange(3)[None] >= text_start
    return draw_mask(text, torch.full((1, 4), not drop_rep), 2)[0, 0]


def test_text_is_causal_and_sees_nothing_but_text() -> None:
    assert torch.equal(mask_of(0, drop_rep=False)[:3], torch.ones(3, 9, dtype=torch.bool).tril())


def test_representation_tokens_are_causal_over_text_and_themselves() -> None:
    assert torch.equal(mask_of(0, drop_rep=False)[3:7], torch.ones(7, 9, dtype=torch.bool).tril()[3:])


def test_patches_see_the_whole_prefix_and_all_patches() -> None:
    assert mask_of(0, drop_rep=False)[7:].all()


def test_dropped_text_is_hidden_from_representation_tokens_and_patches() -> None:
    mask = mask_of(3, drop_rep=False)
    assert not mask[3:, :3].any()
    assert mask[7:, 3:].all()


def test_dropped_representation_tokens_are_hidden_from_patches_only() -> None:
    mask = mask_of(0, drop_rep=True)
    assert not mask[7:, 3:7].any()
    assert mask[7:, :3].all()
    assert torch.equal(mask[:7], mask_of(0, drop_rep=False)[:7])


# The three losses against plain references: one sample at a time, nothing padded


def cross_entropies(logits: Tensor, targets: Tensor) -> np.ndarray:
    scores = logits.detach().double().numpy()
    scores = scores - scores.max(1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    return -log_p[np.arange(len(targets)), targets.numpy()]


def causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()[None, None]


def plain_draw(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor | None, row: int) -> tuple[Tensor, Tensor]:
    """Logits `[N, K]` and predicted picture `[3, H, W]` of one row; what is dropped is left out altogether."""
    words = [] if draws.drop_text[row] else batch.prompt_ids[row, batch.prompt_starts[row] :].tolist()
    prefix = []
    if words:
        prefix.append(Segment("understanding", model.text_embedding[words][None], torch.arange(len(words))[None]))
    logits = torch.empty(0)
    if rep_ids is not None:
        ids = torch.cat([torch.tensor([40]), rep_ids[row]])
        spots = torch.tensor([[0, 0], [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])
        after = torch.arange(len(words), len(words) + NUM_REP + 1)[None]
        both = [*prefix, Segment("representation", model.embed_rep(ids, spots)[None], after)]
        outs, _ = model.run(both, causal(len(words) + NUM_REP + 1))
        logits = model.rep_head(outs[-1][0, :-1])
        prefix = prefix if draws.drop_rep[row] else both
    z_t = draws.t[row] * batch.pixels[row] + (1 - draws.t[row]) * draws.noise[row]
    hidden = model.embed_pixels(z_t[None], draws.t[row][None])
    length = sum(segment.hidden.shape[1] for segment in prefix)
    total = length + NUM_PATCHES
    mask = torch.ones(total, total, dtype=torch.bool)
    mask[:length] = mask[:length].tril()
    pixels = Segment("pixel", hidden, torch.full((1, NUM_PATCHES), length))
    outs, _ = model.run([*prefix, pixels], mask[None, None])
    return logits, unpatchify(model.pixel_out(outs[-1]), 4, HEIGHT, WIDTH)[0]


def test_the_text_loss_is_the_mean_cross_entropy_of_captions_and_answers_each_asked_alone(model: RFModel) -> None:
    """Every text alone after its picture, without padding and without the others; of a question, the answer only."""
    batch, losses = make_batch(), []
    words = [[(0, length), question] for length, question in zip(LENGTHS, QUESTIONS, strict=True)]
    for row, texts in enumerate(words):
        image = model.connector(model.encoder(batch.pixels[row : row + 1]), 4, 6)
        for n, (asked, said) in enumerate(texts):
            ids = batch.text_ids[row, n, : asked + said + 2]  # BOS, question, answer, EOS
            hidden = torch.cat([image, model.text_embedding[ids[:-1]][None]], dim=1)
            tokens = hidden.shape[1]
            (out,), _ = model.run([Segment("understanding", hidden, torch.arange(tokens)[None])], causal(tokens))
            losses.append(cross_entropies(model.text_head(out[0, NUM_REP + asked :]), ids[1 + asked :]))
    assert sum(map(len, losses)) == sum(LENGTHS) + sum(said for _, said in QUESTIONS) + 2 * len(LENGTHS)
    torch.testing.assert_close(
        describe_loss(model, batch).item(), float(np.concatenate(losses).mean()), **LOSS_ROUNDING
    )


def answer_logits(model: RFModel, batch: Batch) -> Tensor:
    """What the text head is asked in `describe_loss`, `[B, Q, U - 1, V]`."""
    seen: list[Tensor] = []
    handle = model.text_head.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))
    describe_loss(model, batch)
    handle.remove()
    (logits,) = seen
    return logits


def test_pictures_questions_and_captions_never_leak_into_one_another(model: RFModel) -> None:
    """Another picture in row 0 changes both texts of row 0 only; another question changes itself only."""
    batch = make_batch()
    before = answer_logits(model, batch)
    other_pixels = batch.pixels.clone()
    other_pixels[0] = -other_pixels[0]
    changed = (answer_logits(model, dataclasses.replace(batch, pixels=other_pixels)) - before).abs().amax((2, 3))
    assert (changed[0] > 1e-3).all()
    assert (changed[1:] == 0).all()
    for text in (0, 1):
        other_ids = batch.text_ids.clone()
        other_ids[1, text, 1:3] = (other_ids[1, text, 1:3] + 7) % 61
        after = answer_logits(model, dataclasses.replace(batch, text_ids=other_ids))
        changed = (after - before).abs().amax((2, 3))
        assert changed[1, text] > 1e-3
        changed[1, text] = 0
        assert (changed == 0).all()
        torch.testing.assert_close(after[1, text, 0], before[1, text, 0])  # of BOS, before what changed


def test_the_loss_does_not_ask_for_the_words_of_a_question(model: RFModel) -> None:
    """The gradient of the head's logits is zero but where an answer's word or the end is to come."""
    batch = make_batch()
    logits: list[Tensor] = []

    def keep(_module: object, _inputs: object, out: Tensor) -> None:
        out.retain_grad()
        logits.append(out)

    handle = model.text_head.register_forward_hook(keep)
    describe_loss(model, batch).backward()
    handle.remove()
    model.zero_grad()
    grad = logits[0].grad
    assert grad is not None
    assert torch.equal(grad.abs().sum(-1) > 0, batch.text_targets[:, :, 1:])


@pytest.mark.parametrize("drop_text", [False, True])
@pytest.mark.parametrize("drop_rep", [False, True])
def test_the_drawing_losses_are_cross_entropy_and_squared_velocity_error(
    model: RFModel, drop_text: bool, drop_rep: bool
) -> None:
    batch, draws, rep_ids = make_batch(), make_draws(drop_text=drop_text, drop_rep=drop_rep), make_rep_ids()
    entropies, errors = [], []
    for row in range(len(LENGTHS)):
        logits, x_theta = plain_draw(model, batch, draws, rep_ids, row)
        entropies.append(cross_entropies(logits, rep_ids[row]))
        t, x, eps = draws.t[row], batch.pixels[row], draws.noise[row]
        z_t = t * x + (1 - t) * eps
        v_theta, v = (x_theta - z_t) / (1 - t), x - eps
        errors.append((v_theta - v).square().mean().item())
    loss_rep, loss_fm = draw_losses(model, batch, draws, rep_ids)
    assert loss_rep is not None
    torch.testing.assert_close(loss_rep.item(), float(np.concatenate(entropies).mean()), **LOSS_ROUNDING)
    torch.testing.assert_close(loss_fm.item(), float(np.mean(errors)), rtol=1e-4, atol=1e-4)


def test_near_the_picture_the_velocity_error_is_divided_by_the_clamp(model: RFModel) -> None:
    batch, rep_ids = make_batch(), make_rep_ids()
    draws = dataclasses.replace(make_draws(), t=torch.full((len(LENGTHS),), 0.999))
    _, loss_fm = draw_losses(model, batch, draws, rep_ids)
    squares = [
        (plain_draw(model, batch, draws, rep_ids, row)[1] - batch.pixels[row]).square().mean().item()
        for row in range(len(LENGTHS))
    ]
    torch.testing.assert_close(loss_fm.item(), float(np.mean(squares)) / MIN_NOISE**2, rtol=1e-4, atol=1e-4)


def test_without_representation_tokens_the_picture_follows_the_caption(model: RFModel) -> None:
    batch, draws = make_batch(), make_draws()
    loss_rep, loss_fm = draw_losses(model, batch, draws, None)
    errors = []
    for row in range(len(LENGTHS)):
        _, x_theta = plain_draw(model, batch, draws, None, row)
        errors.append(((x_theta - batch.pixels[row]) / (1 - draws.t[row])).square().mean().item())
    assert loss_rep is None
    torch.testing.assert_close(loss_fm.item(), float(np.mean(errors)), rtol=1e-4, atol=1e-4)


def test_the_total_is_the_plain_sum_and_every_part_of_the_model_learns(model: RFModel) -> None:
    losses = joint_losses(model, make_batch(), make_draws(), make_rep_ids())
    assert losses.rep is not None
    torch.testing.assert_close(losses.total, losses.lm + losses.rep + losses.fm)
    model.zero_grad()
    losses.total.backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    still = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.abs().max() > 0
    ]
    assert (idle, still) == ([], [])
    model.zero_grad()


# What a loss does not depend on


def both(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor) -> tuple[Tensor, Tensor]:
    loss_rep, loss_fm = draw_losses(model, batch, draws, rep_ids)
    assert loss_rep is not None
    return loss_rep, loss_fm


def test_with_text_dropped_the_caption_does_not_matter(model: RFModel) -> None:
    batch, rep_ids = make_batch(), make_rep_ids()
    other = dataclasses.replace(batch, prompt_ids=batch.prompt_ids.flip(0), prompt_starts=batch.prompt_starts.flip(0))
    dropped, kept = make_draws(drop_text=True), make_draws()
    for before, after in zip(both(model, batch, dropped, rep_ids), both(model, other, dropped, rep_ids), strict=True):
        assert torch.equal(before, after)
    for before, after in zip(both(model, batch, kept, rep_ids), both(model, other, kept, rep_ids), strict=True):
        assert not torch.equal(before, after)


def test_with_tokens_dropped_the_picture_loss_does_not_depend_on_them_and_their_own_loss_stays(model: RFModel) -> None:
    batch, dropped, kept = make_batch(), make_draws(drop_rep=True), make_draws()
    ids, other = make_rep_ids(0), make_rep_ids(1)
    (rep, fm), (other_rep, other_fm) = both(model, batch, dropped, ids), both(model, batch, dropped, other)
    assert torch.equal(fm, other_fm)
    assert not torch.equal(rep, other_rep)
    (kept_rep, kept_fm), (_, kept_other_fm) = both(model, batch, kept, ids), both(model, batch, kept, other)
    assert not torch.equal(kept_fm, kept_other_fm)
    assert torch.equal(kept_rep, rep)


def test_padding_does_not_matter(model: RFModel) -> None:
    batch, draws, rep_ids = make_batch(), make_draws(), make_rep_ids()
    before_start = torch.arange(PROMPT_SLOTS) < batch.prompt_starts[:, None]
    lengths = torch.tensor([[length, sum(question)] for length, question in zip(LENGTHS, QUESTIONS, strict=True)])
    after_end = torch.arange(TEXT_SLOTS) >= lengths[:, :, None] + 2
    padded = dataclasses.replace(
        batch,
        prompt_ids=torch.where(before_start, 9, batch.prompt_ids),
        text_ids=torch.where(after_end, 9, batch.text_ids),
    )
    for before, after in zip(both(model, batch, draws, rep_ids), both(model, padded, draws, rep_ids), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(describe_loss(model, batch), describe_loss(model, padded))


def test_a_prediction_never_sees_its_own_target(model: RFModel) -> None:
    """The logits of token n stay when tokens n, n + 1, ... change."""
    batch, draws, rep_ids = make_batch(), make_draws(), make_rep_ids()
    before = heard(model, batch, draws, rep_ids)[0]
    for n in range(NUM_REP):
        changed = rep_ids.clone()
        changed[:, n:] = (changed[:, n:] + 1) % 40
        after = heard(model, batch, draws, changed)[0]
        torch.testing.assert_close(after[:, : n + 1], before[:, : n + 1])
        if n < NUM_REP - 1:
            assert (after[:, n + 1] - before[:, n + 1]).abs().max() > 1e-4


def test_the_start_token_shares_the_place_of_the_first_token() -> None:
    assert grid_positions(2, 2).tolist() == [[0, 0], [0, 0], [0, 1], [1, 0], [1, 1]]


# Training tied to inference


def heard(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the heads put out during the training forward pass: logits `[B, N, K]`, pictures `[B, 3, H, W]`."""
    outs: dict[str, Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        return getattr(model, name).register_forward_hook(lambda _module, _inputs, out: outs.update({name: out}))

    hooks = [keep("rep_head"), keep("pixel_out")]
    draw_losses(model, batch, draws, rep_ids)  # with gradients on, as in training
    for hook in hooks:
        hook.remove()
    return outs["rep_head"].detach(), unpatchify(outs["pixel_out"].detach(), 4, HEIGHT, WIDTH)


def eager_of(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor, row: int, guidance: float) -> EagerResult:
    """Cached, one token at a time; starts at the noise level of the draw, and guidance 1 or 0 picks one kind of row."""
    t = draws.t[row]
    request = EagerRequest(
        prompt_ids=batch.prompt_ids[row, batch.prompt_starts[row] :],
        gumbel=torch.zeros(NUM_REP, 40),
        noise=t * batch.pixels[row] + (1 - t) * draws.noise[row],
        timesteps=torch.stack([t, torch.ones(())]),
        rep_guidance_scale=guidance,
        pix_guidance_scale=guidance,
        temperature=1.0,
        top_k=10,
        rep_ids=rep_ids[row],
    )
    return generate(model, request)


@pytest.mark.parametrize(("guidance", "dropped"), [(1.0, False), (0.0, True)])
def test_generation_computes_what_training_computed(model: RFModel, guidance: float, dropped: bool) -> None:
    """Conditional rows are training's full rows, unconditional ones those with text and tokens dropped."""
    batch, rep_ids = make_batch(), make_rep_ids()
    draws = make_draws(drop_text=dropped, drop_rep=dropped)
    logits, x_preds = heard(model, batch, draws, rep_ids)
    for row in range(len(LENGTHS)):
        result = eager_of(model, batch, draws, rep_ids, row, guidance)
        torch.testing.assert_close(torch.stack(result.logits), logits[row], **STATE_ROUNDING)
        torch.testing.assert_close(result.x_preds[0], x_preds[row], **STATE_ROUNDING)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 2**31 - 1))
def test_one_token_at_a_time_equals_all_at_once(num_text: int, num_rep: int, seed: int) -> None:
    torch.manual_seed(0)
    model = RFModel(preset("tiny")).eval()
    hidden = torch.randn(1, num_text + num_rep, 32, generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(num_text + num_rep)[None]
    experts = ["understanding"] * num_text + ["representation"] * num_rep
    cuts = [slice(0, num_text), slice(num_text, None)] if num_rep else [slice(0, num_text)]
    with torch.no_grad():
        outs, cache = model.run(
            [Segment(experts[cut.start], hidden[:, cut], positions[:, cut]) for cut in cuts], causal(num_text + num_rep)
        )
        past, steps = None, []
        for i, expert in enumerate(experts):
            (out,), new = model.run([Segment(expert, hidden[:, i : i + 1], positions[:, i : i + 1])], None, past)
            past = (
                new
                if past is None
                else [
                    (torch.cat([k, new_k], 2), torch.cat([v, new_v], 2))
                    for (k, v), (new_k, new_v) in zip(past, new, strict=True)
                ]
            )
            steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), torch.cat(outs, 1), **STATE_ROUNDING)
    for grown, whole in zip(past, cache, strict=True):
        torch.testing.assert_close(grown, whole, **STATE_ROUNDING)
