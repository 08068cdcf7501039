import numpy as np
import pytest
import torch

from vlp.data.batch import ImageForm, TargetForm, collate
from vlp.types import Batch, Example, PixelBatch, PixelInput, RegionBatch, RegionInput, Target

REGIONS = ImageForm("regions", 3)
PIXELS = ImageForm("pixels", 4)


def target(positions: list[int], **values: np.ndarray) -> Target:
    return Target(np.array(positions, np.int64), dict(values))


FORMS = {
    "words": TargetForm("text", target([], token=np.zeros(0, np.int64))),
    "looks": TargetForm("image", target([], feature=np.zeros((0, 3), np.float16))),
    "match": TargetForm("example", target([], label=np.zeros(0, np.int64), weight=np.zeros(0, np.float32))),
}


def example(number: int, tokens: int, regions: int | None, **targets: Target) -> Example:
    image = None
    if regions is not None:
        features = np.full((regions, 3), number, np.float32)
        image = RegionInput(features, np.full((regions, 4), 0.5, np.float32), hidden_R=np.arange(regions) == 0)
    ids = np.arange(tokens) + 100 * number
    return Example(f"e{number}", ids, np.zeros(tokens, bool), np.arange(tokens), image, targets=targets)


def regions_of(batch: Batch) -> RegionBatch:
    assert isinstance(batch.image, RegionBatch)
    return batch.image


def test_tokens_lie_one_after_the_other() -> None:
    batch = collate([example(1, 2, 3), example(2, 3, None), example(3, 1, 1)], REGIONS, {})
    assert batch.ids == ("e1", "e2", "e3")
    assert batch.text.ids_N.tolist() == [100, 101, 200, 201, 202, 300]
    assert batch.text.positions_N.tolist() == [0, 1, 0, 1, 2, 0]
    image = regions_of(batch)
    assert image.features_MD[:, 0].tolist() == [1, 1, 1, 3]
    assert image.hidden_M.tolist() == [True, False, False, True]
    assert image.packing.lengths == (3, 0, 1)
    assert batch.tokens == 10
    assert batch.padded_tokens == 3 * 5


def test_targets_are_moved_to_where_their_example_lies() -> None:
    first = example(1, 4, 2, words=target([1, 3], token=np.array([7, 8])), match=match(1, 1.0))
    second = example(2, 3, 2, looks=target([1], feature=np.full((1, 3), 0.25, np.float16)), match=match(0, 0.5))
    third = example(3, 3, 2, words=target([2], token=np.array([9])))
    targets = collate([first, second, third], REGIONS, FORMS).targets
    assert targets["words"].positions_K.tolist() == [1, 3, 4 + 3 + 2]
    assert targets["words"].values["token"].tolist() == [7, 8, 9]
    assert targets["words"].count == 3
    assert targets["looks"].positions_K.tolist() == [2 + 1]
    assert targets["looks"].values["feature"].tolist() == [[0.25] * 3]
    assert targets["match"].positions_K.tolist() == [0, 1]
    assert targets["match"].count == 1.5, "weights are what a loss is divided by"


def match(label: int, weight: float) -> Target:
    return target([0], label=np.array([label]), weight=np.array([weight], np.float32))


@pytest.mark.parametrize("image", [REGIONS, PIXELS])
def test_no_examples_give_zero_rows_of_the_right_shape(image: ImageForm) -> None:
    batch = collate([], image, FORMS)
    assert len(batch) == batch.tokens == batch.text.packing.tokens == batch.image.packing.tokens == 0
    assert batch.text.ids_N.shape == batch.text.positions_N.shape == (0,)
    assert batch.joint_rows_J.shape == batch.split_rows_J.shape == (0,)
    if isinstance(batch.image, RegionBatch):
        assert batch.image.features_MD.shape == (0, 3)
        assert batch.image.boxes_M4.shape == (0, 4)
        assert batch.image.hidden_M.dtype == torch.bool
    else:
        assert batch.image.pixels_P3HW.shape == (0, 3, 4, 4)
    check_empty(batch)


def test_an_objective_without_targets_has_zero_rows() -> None:
    check_empty(collate([example(1, 2, 2), example(2, 2, 0)], REGIONS, FORMS))


def check_empty(batch: Batch) -> None:
    for name, shape in {"words": (0,), "looks": (0, 3), "match": (0,)}.items():
        targets = batch.targets[name]
        assert targets.count == 0
        assert targets.positions_K.dtype == torch.int64
        assert targets.positions_K.shape == (0,)
        assert next(iter(targets.values.values())).shape == shape
    assert batch.targets["looks"].values["feature"].dtype == torch.float32
    assert batch.targets["words"].values["token"].dtype == torch.int64


def test_numbers_become_float32_and_int64() -> None:
    words = target([0], token=np.array([3], np.int32))
    looks = target([0], feature=np.ones((1, 3), np.float64))
    batch = collate([example(1, 2, 2, words=words, looks=looks)], REGIONS, FORMS)
    assert batch.text.ids_N.dtype == torch.int64
    assert regions_of(batch).features_MD.dtype == torch.float32
    assert batch.targets["words"].values["token"].dtype == torch.int64
    assert batch.targets["looks"].values["feature"].dtype == torch.float32


def test_pixels_of_the_examples_that_have_an_image() -> None:
    seen, blind = example(1, 2, None), example(2, 3, None)
    seen.image = PixelInput(np.ones((3, 4, 4), np.float32), tokens=5)
    batch = collate([blind, seen], PIXELS, {})
    assert isinstance(batch.image, PixelBatch)
    assert batch.image.pixels_P3HW.shape == (1, 3, 4, 4)
    assert batch.image.pixels_P3HW.is_contiguous(memory_format=torch.channels_last)
    assert batch.image.packing.lengths == (0, 5)
    assert batch.joint.lengths == (3, 7)


def test_images_of_their_own_shapes_are_padded_and_no_token_is_of_padding() -> None:
    patch = 2
    examples = []
    for number, (grid, kept) in enumerate([((2, 3), None), ((3, 2), [1, 4]), ((1, 1), None)]):
        made = example(number, 2, None)
        pixels = np.full((3, patch * grid[0], patch * grid[1]), number + 1, np.uint8)
        made.image = PixelInput(pixels, grid[0] * grid[1], None if kept is None else np.array(kept), grid)
        examples.append(made)
    image = collate(examples, PIXELS, {}).image
    assert isinstance(image, PixelBatch)
    assert image.pixels_P3HW.shape == (3, 3, 6, 6)
    assert image.packing.lengths == (6, 2, 1)
    assert image.grids_P2 is not None
    assert image.grids_P2.tolist() == [[2, 3], [3, 2], [1, 1]]
    # Of frames of 3 x 3 patches: the upper two rows; row 0 column 1 and row 2 column 0; the corner.
    assert image.kept_M is not None
    assert image.kept_M.tolist() == [0, 1, 2, 3, 4, 5, 9 + 1, 9 + 6, 18]
    owners = image.pixels_P3HW[:, 0].unfold(1, patch, patch).unfold(2, patch, patch).flatten(0, 2)[image.kept_M]
    assert owners.flatten(1).unique(dim=1).flatten().tolist() == [1] * 6 + [2] * 2 + [3]


def test_a_batch_does_not_share_memory_with_its_examples() -> None:
    lone = example(1, 2, 1)
    batch = collate([lone], REGIONS, {})
    batch.text.ids_N += 1
    assert lone.token_ids_T.tolist() == [100, 101]


def test_a_target_without_a_form_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="words"):
        collate([example(1, 2, 1, words=target([0], token=np.array([1])))], REGIONS, {})
