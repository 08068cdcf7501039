"""Pairs of more than one image or text: regions that others of the block lend, and second texts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.shard_making import WIDTH, region_members, some_regions, texts, write_tar
from tests.unit.task_making import dataset, setting, text_encoder
from vlp.data.dataset import Dataset
from vlp.data.index import build_index, open_index
from vlp.data.loader import StepLoader
from vlp.data.order import Order
from vlp.data.shards import BadSample, ShardReader
from vlp.tasks.pretrain import PretrainConfig, PretrainTask
from vlp.types import Batch, RegionBatch, Sample, Step

CAPTIONS = ("the red circle", "blue square left of the red circle", "what is the colour of the green circle")
OBJECTIVES: dict[str, Any] = {
    "mlm": {"kind": "masked_language", "mask": 0, "random": 0},
    "itm": {"kind": "matching", "replace": "second_text"},
    "mrfr": {"kind": "region_feature"},
    "nce": {"kind": "region_contrast", "negatives": 6, "images": 2},
}


def shards(folder: Path, samples: int = 12) -> Dataset:
    """Samples of one to three captions, and regions."""
    made = []
    for number in range(samples):
        regions = some_regions(3 + number % 4, number)
        made.append(Sample(f"s{number}", regions=regions, captions=CAPTIONS[: 1 + number % 3]))
    return dataset(folder, made, per_shard=4)


def loader_of(
    data: Dataset, rank: int = 0, ranks: int = 1, workers: int = 0, groups: int = 1, **config: Any
) -> StepLoader:
    """Of three steps of eight examples, for a rank."""
    hiding = {"probability": 0.5, "zero": 0.4, "random": 0.4}
    values = {"objectives": OBJECTIVES, "region_hiding": hiding, "on_mismatched": True, **config}
    task = PretrainTask(PretrainConfig.parse(values), setting(3))
    order = Order([data.examples_S], [1.0], seed=3, batch_size=8, groups=groups, block_shards=3)
    options = {"image_tokens": task.image_tokens, "micro_tokens": 60, "first_step": 0, "last_step": 3}
    return StepLoader([data], order, task, **options, rank=rank, world_size=ranks, workers=workers)  # type: ignore[arg-type]


def steps(data: Dataset, *where: int, **options: Any) -> list[Step]:
    return list(loader_of(data, *where, **options))


def by_example(found: list[Step]) -> dict[tuple[int, str], list[np.ndarray]]:
    """What the model and the objectives see of each example of each step."""
    seen: dict[tuple[int, str], list[np.ndarray]] = {}
    for step in found:
        for batch in (made.to("cpu") for made in step.micro_batches):
            for row, name in enumerate(batch.ids):
                seen[step.number, name] = _example(batch, row)
    return seen


def _example(batch: Batch, row: int) -> list[np.ndarray]:
    assert isinstance(batch.image, RegionBatch)
    words, regions = (
        slice(*packing.starts_B1[row : row + 2].tolist()) for packing in (batch.text.packing, batch.image.packing)
    )
    text, image = batch.text, batch.image
    parts = [text.ids_N[words], text.segments_N[words], image.features_MD[regions], image.hidden_M[regions]]
    targets = batch.targets["nce"]
    own = (targets.positions_K >= regions.start) & (targets.positions_K < regions.stop)
    return [part.numpy().copy() for part in (*parts, targets.values["candidate"][own])]


# ------------------------------------------------------------------------------------------------------------ reading


def test_some_features_are_read_as_all_of_them_are(tmp_path: Path) -> None:
    data = shards(tmp_path)
    whole = data.read(1, 2, image=False, regions=True, texts=False).regions
    assert whole is not None
    for first, count in ((0, 1), (2, 2), (0, len(whole))):
        found = data.read_features(1, 2, first, count)
        np.testing.assert_array_equal(found, whole.features_RD[first : first + count])
        assert found.dtype == whole.features_RD.dtype


def test_a_packed_npz_is_read_whole(tmp_path: Path) -> None:
    wanted, stream = some_regions(3), io.BytesIO()
    np.savez(stream, features=wanted.features_RD, boxes=wanted.boxes_R4)
    write_tar(tmp_path / "x.tar", [("a.regions.npz", stream.getvalue()), ("a.json", texts("the circle"))])
    build_index(tmp_path)
    reader = ShardReader(open_index(tmp_path))
    np.testing.assert_array_equal(reader.features(0, 0, 1, 2), wanted.features_RD[1:3])


def test_damaged_features_make_a_bad_sample(tmp_path: Path) -> None:
    features = np.zeros((2, WIDTH), np.float16)
    write_tar(tmp_path / "x.tar", [*region_members("a", features=features), ("a.json", texts("the circle"))])
    build_index(tmp_path)
    data = (tmp_path / "x.tar").read_bytes()
    head = data.index(b"\x93NUMPY")
    (tmp_path / "x.tar").write_bytes(data[: head + 128] + b"\xff\xff" + data[head + 130 :])
    reader = ShardReader(open_index(tmp_path))
    assert reader.features(0, 0, 1, 1).shape == (1, WIDTH)
    with pytest.raises(BadSample, match="sample 'a': features has a number that is not finite"):
        reader.features(0, 0, 0, 1)
    (tmp_path / "x.tar").write_bytes(data[: head + 20] + b"\x00" * (len(data) - head - 20))
    with pytest.raises(BadSample, match="sample 'a': features"):
        reader.features(0, 0, 0, 1)


# ----------------------------------------------------------------------------------------------------------- examples


def test_a_random_feature_is_that_of_a_region_of_another_image(tmp_path: Path) -> None:
    data = shards(tmp_path)
    owners = {}
    for shard in range(3):
        for row in range(4):
            sample = data.read(shard, row, image=False, regions=True, texts=False)
            assert sample.regions is not None
            owners |= {feature.astype(np.float32).tobytes(): sample.key for feature in sample.regions.features_RD}
    own = replaced = zeroed = 0
    for (_, name), (_, _, features, hidden, _) in by_example(steps(data)).items():
        key = name.split("/")[1].split("#")[0]
        for feature, is_hidden in zip(features, hidden, strict=True):
            owner = owners.get(feature.tobytes())
            assert (owner is None) == bool(is_hidden) == (not feature.any())
            own, replaced, zeroed = (
                own + (owner == key),
                replaced + (owner not in (None, key)),
                zeroed + bool(is_hidden),
            )
    assert min(own, replaced, zeroed) > 10


def test_what_is_drawn_depends_on_neither_ranks_nor_workers_nor_groups(tmp_path: Path) -> None:
    data = shards(tmp_path)
    wanted = by_example(steps(data))
    assert len(wanted) == 24
    two = by_example(steps(data, 0, 2)) | by_example(steps(data, 1, 2))
    worked = by_example(steps(data, workers=2))
    for found in (two, worked):
        assert found.keys() == wanted.keys()
        for name, parts in wanted.items():
            for part, its in zip(parts, found[name], strict=True):
                np.testing.assert_array_equal(part, its)
    other = by_example(steps(data, region_hiding={"probability": 0.5, "zero": 0.4, "random": 0.5}))
    assert any((wanted[name][2] != other[name][2]).any() for name in wanted)


def test_negatives_are_of_other_images_and_of_the_same(tmp_path: Path) -> None:
    for step in steps(shards(tmp_path)):
        for batch in step.micro_batches:
            values, positions = batch.targets["nce"].values, batch.targets["nce"].positions_K
            assert values["candidate"].shape == (len(positions), 7)
            assert int(values["regions"].sum()) == len(positions)
            assert int(values["features"].sum()) == len(values["feature"])
            ends = values["features"].repeat_interleave(values["regions"])
            assert (values["candidate"] < ends[:, None]).all()


def test_two_texts_stand_one_after_the_other_and_their_length_is_known(tmp_path: Path) -> None:
    data, encoder = shards(tmp_path), text_encoder()
    loader, seen = loader_of(data), {"matched": 0, "mismatched": 0, "alone": 0}
    for step in loader:
        assert sum(batch.tokens for batch in step.micro_batches) == sum(
            tokens for tokens, _ in loader.maker.plan(step.number).lengths
        )
        for batch in step.micro_batches:
            assert batch.tokens <= 60 or len(batch) == 1
            judged = dict(
                zip(
                    batch.targets["itm"].positions_K.tolist(),
                    batch.targets["itm"].values["matched"].tolist(),
                    strict=True,
                )
            )
            for row, name in enumerate(batch.ids):
                words = slice(*batch.text.packing.starts_B1[row : row + 2].tolist())
                ids, segments = batch.text.ids_N[words].tolist(), batch.text.segments_N[words].tolist()
                number, captions = int(name.split("/s")[1].split("#")[0]), 1
                captions += number % 3
                first = encoder.encode(CAPTIONS[int(name.split("#")[1])])[0].tolist()
                if captions == 1:
                    assert row not in judged
                    assert ids == first
                    seen["alone"] += 1
                    continue
                cut = segments.index(1)
                assert ids[: cut - 1] == first[: cut - 1]
                assert ids[cut - 1] == ids[-1] == encoder.sep_id
                assert len(ids) <= encoder.max_length
                seen["matched" if judged[row] else "mismatched"] += 1
    assert min(seen.values()) > 0
    assert sum(step.cut_texts for step in loader) > 0  # the longest two do not fit into 16 tokens


@pytest.mark.parametrize(("first", "second"), [(3, 3), (12, 3), (3, 12), (12, 12), (7, 6), (6, 7), (13, 1)])
def test_the_longer_text_is_cut(first: int, second: int) -> None:
    encoder = text_encoder()
    ids, special, words, segments = encoder.encode_two("red " * first, "blue square " * ((second + 1) // 2))
    second = 2 * ((second + 1) // 2)
    a, b = first, second
    while a + b > 13:  # as BERT's code does it, token by token
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert segments.tolist() == [0] * (a + 2) + [1] * (b + 1)
    assert len(ids) == len(special) == len(words) == a + b + 3
    assert np.flatnonzero(special).tolist() == [0, a + 1, a + b + 2]
    assert words[~special].tolist() == list(range(a + b))  # what is cut counts for nothing
    one = encoder.encode("red " * a)[0]
    assert ids[: a + 2].tolist() == one.tolist()


def test_a_second_text_has_a_segment_of_its_own_in_the_batch(tmp_path: Path) -> None:
    found = torch.cat([batch.text.segments_N for step in steps(shards(tmp_path)) for batch in step.micro_batches])
    assert set(found.tolist()) == {0, 1}
