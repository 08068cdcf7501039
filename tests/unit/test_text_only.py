"""A dataset that gives its texts alone in a mixture, though its shards hold images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.unit.task_making import dataset, sample, setting, text_encoder
from vlp.data.dataset import Dataset
from vlp.data.lengths import token_lengths
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Step

OBJECTIVES = {
    "mlm": {"kind": "masked_language", "average": "examples"},
    "itm": {"kind": "matching"},
    "mrc": {"kind": "region_class"},
}


def pair_of(folder: Path) -> list[Dataset]:
    seen = dataset(folder, [sample(number, f"red circle {number}", regions=4) for number in range(6)])
    encoder = text_encoder()
    lengths = token_lengths(seen.index, encoder.count, encoder.fingerprint, encoder.max_length)
    return [seen, Dataset(seen.index, "captions", lengths, text_only=True)]


def steps_of(datasets: list[Dataset], steps: int = 6, **ranks: int) -> list[Step]:
    task = PretrainTask(PretrainConfig.parse({"objectives": OBJECTIVES}), setting())
    order = Order([each.examples_S for each in datasets], [1.0, 1.0], seed=0, batch_size=8, groups=1, block_shards=2)
    settings = {"micro_tokens": 60, "rank": 0, "world_size": 1, "workers": 0} | ranks
    loader = StepLoader(
        datasets, order, task, image_tokens=task.image_tokens, first_step=0, last_step=steps, **settings
    )
    return list(loader)


def test_half_of_each_batch_is_text_alone(tmp_path: Path) -> None:
    for step in steps_of(pair_of(tmp_path)):
        lengths = [length for batch in step.micro_batches for length in batch.image.packing.lengths]
        assert sorted(lengths) == [0] * 4 + [4] * 4
        counts = {name: sum(batch.targets[name].count for batch in step.micro_batches) for name in OBJECTIVES}
        assert counts["itm"] == 4  # a text alone matches nothing
        torn = 4 - sum(batch.targets["itm"].values["matched"].sum().item() for batch in step.micro_batches)
        assert counts["mlm"] == 8 - torn  # every text alone, and matched pairs


def test_a_step_is_planned_without_its_images(tmp_path: Path) -> None:
    seen, alone = pair_of(tmp_path)
    tables, _ = alone.open_block((0,))
    assert not tables.has_image_S.any()
    assert not tables.regions_S.any()
    np.testing.assert_array_equal(tables.tokens_E, seen.open_block((0,))[0].tokens_E)
    assert seen.open_block((0,))[0].regions_S.all()


def test_its_images_are_not_read(tmp_path: Path) -> None:
    seen, alone = pair_of(tmp_path)
    assert seen.read(0, 0, image=True, regions=True, texts=True).regions is not None
    read = alone.read(0, 0, image=True, regions=True, texts=True)
    assert read.regions is None
    assert read.captions == ("red circle 0",)


def seen(steps: list[Step]) -> list[tuple[str, int, tuple[int, ...]]]:
    """Of each example its id, the length of its image, and its tokens as they are after hiding; sorted."""
    found = []
    for batch in (batch for step in steps for batch in step.micro_batches):
        tokens = batch.text.ids_N.split(list(batch.text.packing.lengths))
        for id, image, own in zip(batch.ids, batch.image.packing.lengths, tokens, strict=True):
            found.append((id, image, tuple(own.tolist())))
    return sorted(found)


def test_what_is_hidden_is_the_same_on_any_number_of_ranks_and_workers(tmp_path: Path) -> None:
    datasets = pair_of(tmp_path)
    wanted = seen(steps_of(datasets, 3))
    assert seen(steps_of(datasets, 3, workers=1)) == wanted
    assert seen([step for rank in range(2) for step in steps_of(datasets, 3, rank=rank, world_size=2)]) == wanted
    assert seen(steps_of(datasets, 3, micro_tokens=20)) == wanted
    again = {(id, image) for id, image, _ in wanted}
    assert len({(id, image, tokens) for id, image, tokens in wanted}) > len(again)  # another epoch hides other words
