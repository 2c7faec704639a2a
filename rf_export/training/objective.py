"""The joint objective L = L_LM + L_Rep + L_FM on one batch of captioned pictures, both directions.

Source: arXiv 2605.31604; flow matching with x-prediction and velocity loss after JiT (arXiv 2511.13720). Randomness
arrives in `Draws`, so a loss is a pure function. Axes: B batch, T caption slots, N representation tokens, M patches,
Q texts about a picture, U slots of a text.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rf_export.layers import patchify
from rf_export.model import RFModel, Segment

MIN_NOISE = 0.05  # JiT clamps 1 - t here, or the velocity loss explodes at the picture end


@dataclass(frozen=True)
class Batch:
    """Pictures with captions, left-padded for drawing, and texts about them: BOS, question, answer, EOS, padding.

    The first text is the caption, which answers an empty question. Only answers and EOS are to be predicted.
    """

    pixels: Tensor  # [B, 3, H, W] in [-1, 1]
    prompt_ids: Tensor  # [B, T]
    prompt_starts: Tensor  # [B], first slot in use
    text_ids: Tensor  # [B, Q, U]
    text_targets: Tensor  # bool [B, Q, U], true on tokens to be predicted


@dataclass(frozen=True)
class Draws:
    """The random part of a training step."""

    t: Tensor  # [B] in (0, 1)
    noise: Tensor  # [B, 3, H, W]
    drop_text: Tensor  # bool [B]
    drop_rep: Tensor  # bool [B]


@dataclass(frozen=True)
class Losses:
    """The three parts; `rep` is None for a model trained without representation tokens."""

    lm: Tensor
    rep: Tensor | None
    fm: Tensor

    @property
    def total(self) -> Tensor:
        """The paper's unweighted sum."""
        return self.lm + self.fm + (0 if self.rep is None else self.rep)


def describe_loss(model: RFModel, batch: Batch) -> Tensor:
    """L_LM: mean cross-entropy of every answer's tokens after the picture's features and the question.

    All texts about a picture share its features, encoded once: a row holds [features | text | text ...], and no text
    sees another, so that each has the logits that it would have alone.
    """
    rows, columns = (side // model.config.patch_size for side in batch.pixels.shape[2:])
    image = model.connector(model.encoder(batch.pixels), rows, columns)
    size, num_texts, slots = batch.text_ids.shape
    words = F.embedding(batch.text_ids.flatten(1), model.text_embedding)
    hidden = torch.cat([image.to(words.dtype), words], dim=1)
    num_image = image.shape[1]
    positions = torch.cat([torch.arange(num_image), num_image + torch.arange(slots).repeat(num_texts)])
    mask = text_mask(num_image, num_texts, slots)[None, None]
    (out,), _ = model.run([Segment("understanding", hidden, positions.expand(size, -1))], mask)
    said = out[:, num_image:].unflatten(1, (num_texts, slots))[:, :, :-1]
    logits = model.text_head(said).float()  # [B, Q, U - 1, V]
    loss = F.cross_entropy(logits.flatten(0, 2), batch.text_ids[:, :, 1:].flatten(), reduction="none")
    targets = batch.text_targets[:, :, 1:].flatten()
    return (loss * targets).sum() / targets.sum()


def text_mask(num_image: int, num_texts: int, slots: int) -> Tensor:
    """Attention mask `bool [S, S]` of [image features | text | text ...]: causal, and no text sees another."""
    owner = torch.cat([torch.full((num_image,), -1), torch.arange(num_texts).repeat_interleave(slots)])
    shared = (owner == -1)[None, :] | (owner[:, None] == owner[None, :])
    return shared & torch.ones_like(shared).tril()


def grid_positions(rows: int, columns: int) -> Tensor:
    """(row, column) of every representation *input*: the start token at (0, 0), then raster order, `[N + 1, 2]`."""
    raster = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return torch.cat([raster[:1], raster])


def draw_losses(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """L_Rep and L_FM of caption -> tokens -> picture; without `rep_ids [B, N]` the picture follows the caption."""
    config = model.config
    size, num_slots = len(batch.pixels), batch.prompt_ids.shape[1]
    starts = torch.where(draws.drop_text, num_slots, batch.prompt_starts)
    slots = torch.arange(num_slots)
    text_visible = slots >= starts[:, None]  # [B, T]
    text_length = num_slots - starts
    segments = [
        Segment(
            "understanding", F.embedding(batch.prompt_ids, model.text_embedding), (slots - starts[:, None]).clamp(min=0)
        )
    ]
    num_rep = 0
    if rep_ids is not None:
        rows, columns = config.rep_grid(*batch.pixels.shape[2:])
        inputs = torch.cat([torch.full((size, 1), config.rep_start_id), rep_ids], dim=1)
        num_rep = inputs.shape[1]
        rep_positions = text_length[:, None] + torch.arange(num_rep)
        segments.append(
            Segment("representation", model.embed_rep(inputs, grid_positions(rows, columns)), rep_positions)
        )
    noise_level = 1 - draws.t[:, None, None, None]
    x_t = (1 - noise_level) * batch.pixels + noise_level * draws.noise
    patches = model.embed_pixels(x_t, draws.t)
    num_patches = patches.shape[1]
    rep_visible = (~draws.drop_rep)[:, None].expand(-1, num_rep)
    pixel_position = text_length + num_rep * ~draws.drop_rep
    segments.append(Segment("pixel", patches, pixel_position[:, None].expand(-1, num_patches)))
    mask = draw_mask(text_visible, rep_visible, num_patches)
    outs, _ = model.run(segments, mask)

    x_pred = model.pixel_out(outs[-1]).float()
    target = patchify(batch.pixels, config.patch_size)
    error = (x_pred - target) / (1 - draws.t).clamp(min=MIN_NOISE)[:, None, None]
    loss_fm = (error**2).mean()
    if rep_ids is None:
        return None, loss_fm
    logits = model.rep_head(outs[1][:, :-1]).float()
    return F.cross_entropy(logits.flatten(0, 1), rep_ids.flatten()), loss_fm


def draw_mask(text_visible: Tensor, rep_visible: Tensor, num_patches: int) -> Tensor:
    """Attention mask `bool [B, 1, S, S]` of [text | representation | pixels].

    Text and representation tokens are causal; patches see all visible prefix tokens and every patch. Dropping the
    representation sequence hides it from the patches only, and its own loss is still taken.
    """
    size, num_text = text_visible.shape
    num_prefix = num_text + rep_visible.shape[1]
    causal = torch.ones(num_prefix, num_prefix, dtype=torch.bool).tril()
    own = torch.eye(num_prefix, dtype=torch.bool)  # a hidden token still sees itself, or its softmax is 0/0
    visible = torch.cat([text_visible, torch.ones_like(rep_visible)], dim=1)
    prefix = (causal & visible[:, None]) | own
    no_future = torch.zeros(size, num_prefix, num_patches, dtype=torch.bool)
    top = torch.cat([prefix, no_future], dim=2)
    seen = torch.cat([text_visible, rep_visible, torch.ones(size, num_patches, dtype=torch.bool)], dim=1)
    bottom = seen[:, None].expand(-1, num_patches, -1)
    return torch.cat([top, bottom], dim=1)[:, None]


def joint_losses(model: RFModel, batch: Batch, draws: Draws, rep_ids: Tensor | None) -> Losses:
    """All three losses of one step."""
    lm = describe_loss(model, batch)
    rep, fm = draw_losses(model, batch, draws, rep_ids)
    return Losses(lm=lm, rep=rep, fm=fm)
