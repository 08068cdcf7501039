"""Every shipped tiny model: an example does not see its batch, every parameter takes part in every micro-batch, and
what is saved is the same model.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import example, noise, regions, shaken, shipped
from vlp import resources
from vlp.data.batch import collate
from vlp.data.image import PixelImages, with_whole
from vlp.models.heads import ClassHead, HeadConfig, VocabularyHead
from vlp.models.image import RegionSource, images_of
from vlp.models.model import Network
from vlp.models.patches import PatchSource
from vlp.types import Batch, Example, ImageInput

HEADS: dict[str, HeadConfig] = {"mlm": VocabularyHead(), "itm": ClassHead(reads="example", classes=2)}


@cache
def model_of(name: str, dropout: float = 0.0) -> Network:
    """With random gains and shifts, so that what is left out shows; weights small enough for float32 to be exact."""
    config = shipped(name, f"dropout={dropout}", f"attention_dropout={dropout}")
    torch.manual_seed(0)
    model = Network(config.model_copy(update={"heads": HEADS}))
    start = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    noise = shaken(Network(model.config), seed=1).state_dict()
    model.load_state_dict(
        {key: start[key] + (0.3 * noise[key] if tensor.ndim == 1 else 0) for key, tensor in start.items()}
    )
    return model.eval()


NAMES = [
    name
    for name in resources.names("model")
    if name.endswith("_tiny") and isinstance(shipped(name).image.source, RegionSource | PatchSource)
]


def image_of(model: Network, size: int | None, seed: int) -> ImageInput | None:
    """An image of so many regions, or of patches."""
    rng, source = np.random.default_rng([seed, size or 0]), model.config.image.source
    if size is None:
        return None
    images = images_of(model.config.image)
    if isinstance(images, PixelImages):
        return noise(images, rng)
    made = regions(size, rng)
    return with_whole(made) if isinstance(source, RegionSource) and source.whole and size else made


def example_of(model: Network, tokens: int, image: int | None, seed: int) -> Example:
    made = example(tokens, None, seed)
    made.image = image_of(model, image, seed)
    made.segment_T = (np.arange(tokens) > tokens // 2).astype(np.int64) * _second_segment(model)
    return made


def _second_segment(model: Network) -> int:
    """The number of a second text's segment, if the model has a row for it."""
    segments = model.text.tables.segments
    return int(segments is not None and segments.num_embeddings > 1)


def batch_of(model: Network, examples: list[Example]) -> Batch:
    return collate(examples, images_of(model.config.image).form, {})


def test_all_families_are_here() -> None:
    families = {name.removesuffix("_tiny") for name in NAMES}
    assert families == {
        "albef",
        "beit3",
        "lxmert",
        "meter",
        "unicoder_vl",
        "uniter",
        "vilbert",
        "vilt",
        "visualbert",
        "vl_bert",
        "vlmo",
    }
    assert {f"{family}_base" for family in families} <= set(resources.names("model"))


SIZES = st.lists(st.tuples(st.integers(2, 9), st.one_of(st.none(), st.integers(0, 6))), min_size=1, max_size=5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=8)
@given(sizes=SIZES, order=st.randoms(use_true_random=False))
@torch.no_grad()
def test_an_example_does_not_see_its_batch(name: str, sizes: list[tuple[int, int | None]], order: Any) -> None:
    model, places = model_of(name), list(range(len(sizes)))
    order.shuffle(places)
    examples = [example_of(model, tokens, image, seed) for seed, (tokens, image) in enumerate(sizes)]
    batch = batch_of(model, [examples[place] for place in places])
    together = model(batch)
    texts = together.text_NH.split(list(batch.text.packing.lengths))
    images = together.image_MH.split(list(batch.image.packing.lengths))
    for row, place in enumerate(places):
        alone = model(batch_of(model, [examples[place]]))
        torch.testing.assert_close(texts[row], alone.text_NH, atol=1e-5, rtol=0)
        torch.testing.assert_close(images[row], alone.image_MH, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooled_BH[row], alone.pooled_BH[0], atol=1e-5, rtol=0)


MICRO_BATCHES: dict[str, list[tuple[int, int | None]]] = {
    "usual": [(5, 3), (4, 6)],
    "a text alone": [(5, 3), (4, None)],
    "texts only": [(5, None), (4, None)],
    "no regions": [(5, 0)],
    "nothing": [],
}


@pytest.mark.parametrize("sizes", MICRO_BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_takes_part_in_every_micro_batch(name: str, sizes: str) -> None:
    model = model_of(name)
    model.zero_grad()
    examples = [example_of(model, tokens, image, seed) for seed, (tokens, image) in enumerate(MICRO_BATCHES[sizes])]
    encoded = model(batch_of(model, examples))
    loss = encoded.image_MH.square().sum() + encoded.text_NH.square().sum()
    loss = loss + model.heads["mlm"](encoded.text_NH).sum() + model.heads["itm"](encoded.pooled_BH).sum()
    loss.backward()
    grads = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, grad in grads.items() if grad is None]
    assert all(torch.isfinite(grad).all() for grad in grads.values() if grad is not None)
    if sizes == "nothing":
        assert all((grad == 0).all() for grad in grads.values() if grad is not None)
    if sizes == "usual":
        silent = [key for key, grad in grads.items() if grad is not None and not grad.any()]
        assert not [key for key in silent if "key_value.bias" not in key and "missing" not in key]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dropout_drops_in_training_only(name: str) -> None:
    model = model_of(name, dropout=0.2)
    batch = batch_of(model, [example_of(model, 6, 4, 0)])
    assert torch.equal(model(batch).text_NH, model(batch).text_NH)
    model.train()
    assert not torch.equal(model(batch).text_NH, model(batch).text_NH)
    model.eval()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    model.save_pretrained(tmp_path)
    loaded = Network.from_pretrained(tmp_path)
    batch = batch_of(model, [example_of(model, 6, 4, 0), example_of(model, 3, None, 1)])
    assert torch.equal(loaded(batch).text_NH, model(batch).text_NH)
    assert torch.equal(loaded(batch).pooled_BH, model(batch).pooled_BH)
