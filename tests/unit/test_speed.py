"""What a run says of its speed."""

from __future__ import annotations

import pytest
import torch

from tests.examples import batch_of, of_blocks, shipped
from tests.unit.backbones import batch_of as pixel_batch
from tests.unit.backbones import config_of, source_of
from vlp.data.packing import pack
from vlp.distributed import World
from vlp.models.flops import Arithmetic, count_flops, head_flops
from vlp.models.heads import ContrastHead, HeadConfig, VocabularyHead
from vlp.models.model import ModelConfig, meta_model
from vlp.train.engine import StepResult
from vlp.train.speed import Utilisation, measured_peak
from vlp.types import Batch, Read, Step, Stream, Targets

SIZES = [(4, 2), (7, None), (15, 11), (3, 1)]


def with_head(config: ModelConfig, head: HeadConfig | None = None) -> ModelConfig:
    return config.model_copy(update={"heads": {"mlm": head or VocabularyHead()}})


def targets(batch: Batch, rows: int) -> Batch:
    batch.targets = {"mlm": Targets(torch.arange(rows), {}, float(rows))}
    return batch


@pytest.mark.parametrize("name", ["uniter_tiny", "lxmert_tiny"])
def test_a_batch_costs_what_its_examples_and_its_targets_cost(name: str) -> None:
    config = with_head(shipped(name, "text.max_length=16"))
    model = meta_model(config)
    counted = sum(count_flops(model, text, regions).total for text, regions in SIZES)
    row = head_flops(model.heads["mlm"], config.width("text"))
    found = Arithmetic(config).forward(targets(batch_of(SIZES), 5))
    assert found == pytest.approx(counted + 5 * row, rel=1e-4)


@pytest.mark.parametrize("read", [[(3, 2), (1, 2)], [(3, 0), (2, 0)]])
@pytest.mark.parametrize("name", ["uniter_tiny", "lxmert_tiny", "vilbert_tiny"])
def test_rows_that_nobody_reads_cost_less(name: str, read: list[tuple[int, int]]) -> None:
    config = with_head(shipped(name, "text.max_length=16", "image.source.whole=false"))
    model, sizes = meta_model(config), [(9, 6), (15, 11)]
    batch = targets(batch_of(sizes), 0)
    counts: dict[Stream, tuple[int, ...]] = {"text": (read[0][0], read[1][0]), "image": (read[0][1], read[1][1])}
    batch.read = {
        stream: Read(torch.arange(sum(rows)), pack(rows), ever=sum(rows) > 0) for stream, rows in counts.items()
    }
    counted = sum(count_flops(model, *size, rows).total for size, rows in zip(sizes, read, strict=True))
    assert Arithmetic(config).forward(batch) == pytest.approx(counted, rel=1e-6)
    batch.read = {}
    assert Arithmetic(config).forward(batch) > 1.1 * counted


def test_regions_that_nobody_reads_do_not_look_around() -> None:
    """In a joint sublayer before the end of the last block they would: the operations have a square of their number."""
    config = of_blocks({"stream": "both", "sublayers": ["joint", "self", "ffn"], "share": ["joint"]})
    model = meta_model(config)
    for size in ((12, 40), (5, 90)):
        batch = targets(batch_of([size]), 0)
        batch.read = {"text": Read(torch.arange(2), pack([2])), "image": Read(torch.arange(0), pack([0]), ever=False)}
        counted = count_flops(model, *size, (2, 0)).total
        assert Arithmetic(config).forward(batch) == pytest.approx(counted, rel=1e-6)


def test_contrast_costs_a_projection_of_each_stream() -> None:
    config = with_head(shipped("lxmert_tiny", "text.max_length=16"), ContrastHead(width=64))
    arithmetic, batch = Arithmetic(config), batch_of(SIZES)
    projections = 2 * 64 * (config.width("text") + config.width("image"))
    without = arithmetic.forward(targets(batch, 0))
    assert arithmetic.forward(targets(batch, 5)) - without == pytest.approx(5 * projections, rel=1e-6)


def test_a_backbone_costs_where_there_is_an_image() -> None:
    source = source_of("patches and their class token")
    config = with_head(config_of(source))
    model = meta_model(config)
    batch = pixel_batch(source, [True, False, True])
    lengths = zip(batch.text.packing.lengths, batch.image.packing.lengths, strict=True)
    counted = sum(count_flops(model, text, 1 if image else None).total for text, image in lengths)
    assert Arithmetic(config).forward(targets(batch, 0)) == pytest.approx(counted, rel=1e-4)


def test_mfu_is_the_model_s_arithmetic_over_all_ranks_peak() -> None:
    config = with_head(shipped("uniter_tiny", "text.max_length=16"))
    arithmetic, batch = Arithmetic(config), targets(batch_of(SIZES), 5)
    result = StepResult(1.0, {}, {}, 1.0, True, False, False, 8, 2 * batch.tokens, 0.0, 1, 0, 0)
    record = {"step_seconds": 0.5}
    hook = Utilisation(arithmetic, 1e9, World(0, 2, 0, torch.device("cpu")))
    hook.after(Step(0, [batch], 4), result, record)
    assert record["mfu"] == pytest.approx(2 * 3 * arithmetic.forward(batch) / 0.5 / 2e9)
    hook.after(Step(1, [targets(batch_of([]), 0)], 0), result, empty := {"step_seconds": 0.5})
    assert "mfu" not in empty


def test_a_measured_peak_is_a_speed() -> None:
    assert 1e8 < measured_peak(torch.device("cpu"), "fp32") < 1e14
