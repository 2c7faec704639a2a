"""The codebook says which training cells have a code, as training assigns them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rf_export.checkpoint import checkpoint_sha256
from rf_export.tokens.codebook import Codebook, _item_at, make_codebook
from rf_export.training.scenes import Demand, Item, Scene
from runtime.errors import RFError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    """Of the committed checkpoint, whose codes mean something."""
    checkpoint = ROOT / "examples/reference/checkpoint"
    return make_codebook(checkpoint, checkpoint_sha256(checkpoint), 100)


def test_nearest_cells_have_the_code_come_from_different_scenes_and_the_first_is_the_nearest(codebook):
    code = int(torch.bincount(codebook.ids).argmax())
    places = codebook.nearest(code, 5)
    assert len({scene for scene, _, _ in places}) == 5
    cells = [scene * 16 + row * 4 + column for scene, row, column in places]
    assert (codebook.ids[cells] == code).all()
    cosines = codebook.features @ codebook.model.quantiser.prototypes[code]
    assert cosines[cells[0]] == cosines[codebook.ids == code].max()
    assert (cosines[cells].diff() <= 0).all()


def test_a_code_that_no_cell_has_is_told(codebook):
    code = int(torch.bincount(codebook.ids, minlength=512).argmin())
    assert codebook.nearest(code, 5) == []
    assert codebook.meaning(code) == "in no training cell"


def test_a_training_scene_has_the_codes_that_it_has_in_its_batch(codebook):
    picture = codebook.scenes[3].picture.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    agreement = codebook.encode(picture).ravel() == codebook.ids[3 * 16 : 4 * 16].numpy()
    assert agreement.mean() > 0.9  # it is in the batch twice now


def test_codes_tell_colours(codebook):
    """Cells of coloured codes: more than half of them have the commonest colour of their code; by chance a sixth."""
    shares = [
        float(text.split("%")[1].split()[-1])
        for text in map(codebook.meaning, codebook.ids.unique().tolist())
        if "background" not in text.split(",")[1]
    ]
    assert np.mean(shares) > 50


def test_the_rarest_codes_are_explained(codebook):
    grid = codebook.ids[:16].reshape(4, 4).numpy()
    rows = codebook.explain(grid, 3)
    shares = [codebook.share(row.code) for row in rows]
    assert shares == sorted(shares)
    assert shares[-1] <= min(codebook.share(int(c)) for c in set(grid.ravel()) - {row.code for row in rows})


def test_a_cell_belongs_to_the_sprite_that_covers_most_of_it():
    car = Item(object="car", colour="red", x=0, y=0, size=9)
    fish = Item(object="fish", colour="blue", x=10, y=0, size=9)
    demand = Demand(kind="two", items=(("red", "car"), ("blue", "fish")))
    scene = Scene(demand=demand, items=(car, fish), picture=np.zeros((24, 24, 3), np.uint8))
    assert [_item_at(scene, spot, 8) for spot in ((0, 0), (0, 1), (2, 2), (1, 1))] == [car, fish, None, None]


def test_another_checkpoint_is_refused(tiny_checkpoint):
    with pytest.raises(RFError, match="not the checkpoint that the bundle was exported from"):
        make_codebook(tiny_checkpoint, "0" * 64, 1)
