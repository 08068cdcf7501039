import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.loader_making import FakeDataset, FakePreparer
from vlp.data.loader import EvaluationLoader
from vlp.types import Sample, Step


def evaluation(dataset: FakeDataset, **options: object) -> list[Step]:
    arguments = {"image_tokens": lambda regions: regions, "micro_tokens": 60, "seed": 1}
    return list(EvaluationLoader(dataset, FakePreparer(), **(arguments | options)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 5))
def test_evaluation_sees_every_example_once_in_order(sizes: list[int], ranks: int) -> None:
    dataset = FakeDataset(sizes)
    shared = [evaluation(dataset, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert len({len(steps) for steps in shared}) == 1
    assert all(len(step.micro_batches) == 1 for steps in shared for step in steps)
    names = [name for steps in shared for step in steps for name in step.micro_batches[0].ids]
    assert names == [f"d{shard}/k{e // 2}#{e % 2}" for shard, size in enumerate(sizes) for e in range(size)]


def test_evaluation_shares_are_of_equal_tokens_and_batches_bounded() -> None:
    dataset = FakeDataset([40, 3, 60])
    shared = [evaluation(dataset, rank=rank, world_size=3) for rank in range(3)]
    blocks = [dataset.open_block((shard,))[0] for shard in range(3)]
    lengths = [block.tokens_E + block.regions_S[block.sample_E] for block in blocks]
    starts = np.cumsum([0, *(step.examples for rank in shared for step in rank)])
    sums = np.add.reduceat(np.append(np.concatenate(lengths), 0), starts[:-1])
    assert sums.max() <= 60
    loads = [sum(step.examples for step in rank) for rank in shared]
    tokens = np.split(np.concatenate(lengths), np.cumsum(loads)[:-1])
    assert max(map(sum, tokens)) - min(map(sum, tokens)) <= 2 * max(map(max, lengths))


def test_evaluation_leaves_bad_samples_out_and_records_them() -> None:
    found = evaluation(FakeDataset([10], bad={(0, 2)}))
    names = [name for step in found for name in step.micro_batches[0].ids]
    assert names == [f"d0/k{e // 2}#{e % 2}" for e in range(10) if e // 2 != 2]
    assert [line["key"] for step in found for line in step.quarantined] == ["k2", "k2"]


def test_evaluation_reads_a_sample_once_for_all_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    read, real = [], FakeDataset.read

    def noted(dataset: FakeDataset, shard: int, row: int, **members: bool) -> Sample:
        read.append((shard, row))
        return real(dataset, shard, row, **members)

    monkeypatch.setattr(FakeDataset, "read", noted)
    assert sum(step.examples for step in evaluation(FakeDataset([9, 4]))) == 13
    assert read == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1)]


def test_a_task_that_draws_no_pairs_is_not_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = evaluation(FakeDataset([9, 4]))
    monkeypatch.setattr(FakePreparer, "draws_pairs", False)
    monkeypatch.setattr(FakePreparer, "pairs", None)
    for step, same in zip(asked, evaluation(FakeDataset([9, 4])), strict=True):
        assert step.micro_batches[0].ids == same.micro_batches[0].ids
        assert step.micro_batches[0].text.ids_N.tolist() == same.micro_batches[0].text.ids_N.tolist()


def test_evaluation_of_a_part() -> None:
    found = evaluation(FakeDataset([4, 10]), limit=7, workers=1)
    names = [name for step in found for name in step.micro_batches[0].ids]
    assert names == ["d0/k0#0", "d0/k0#1", "d0/k1#0", "d0/k1#1", "d1/k0#0", "d1/k0#1", "d1/k1#0"]
