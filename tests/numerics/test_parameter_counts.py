"""Published parameter counts, with all pre-training heads, on the meta device."""

from __future__ import annotations

import pytest

from tests.examples import shipped
from vlp.config import read_yaml
from vlp.models.heads import ClassHead, FeatureHead, HeadConfig, VocabularyHead
from vlp.models.model import ModelConfig, count_parameters, meta_model
from vlp.resources import shipped as shipped_file

WORDS, MATCH = VocabularyHead(), ClassHead(reads="example", classes=2)

HEADS: dict[str, dict[str, HeadConfig]] = {
    "visualbert_base": {"mlm": WORDS, "itm": MATCH},
    "uniter_base": {
        "mlm": WORDS,
        "itm": MATCH,
        "mrfr": FeatureHead(width=2048, tied=True),
        "mrc": ClassHead(reads="image", classes=1601, inner="same"),
    },
    "vl_bert_base": {"mlm": WORDS, "mrc": ClassHead(reads="image", classes=1601, inner="same", norm="none")},
    "vilbert_base": {"mlm": WORDS, "itm": MATCH, "mrc": ClassHead(reads="image", classes=1601, inner="same")},
    "lxmert_base": {
        "mlm": WORDS,
        "itm": MATCH,
        "obj": ClassHead(reads="image", classes=1600, inner="same"),
        "attr": ClassHead(reads="image", classes=400, inner="same", inner_of="obj"),
        "feat": FeatureHead(width=2048, inner_of="obj"),
        "qa": ClassHead(reads="example", classes=9500, inner="double"),
    },
    "vilt_base": {"mlm": WORDS},
}
PUBLISHED = {
    "visualbert_base": 112_074_812,
    "uniter_base": 112_938_887,
    "vl_bert_base": 114_491_515,
    "vilbert_base": 250_044_029 - 11_020_800,  # less the layers that the authors' code makes and never uses
    "lxmert_base": 228_051_752,
    "vilt_base": 112_217_658,
}


def config_of(name: str) -> ModelConfig:
    """A shipped config whose sizes are all given."""
    return ModelConfig.parse(read_yaml(shipped_file("model", name)), name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    config = config_of(name).model_copy(update={"heads": HEADS[name]})
    assert count_parameters(meta_model(config)) == PUBLISHED[name]


def test_the_never_used_layers_of_co_attention() -> None:
    # Six layers, each with a projection from the shared width on both sides.
    assert 6 * (1024 * 1024 + 1024 + 1024 * 768 + 768) == 11_020_800


def test_published_count_of_the_trunk_of_two_streams() -> None:
    assert count_parameters(meta_model(config_of("lxmert_base"))) == 207_936_768  # 207.9 M in the literature


@pytest.mark.parametrize(("base", "large"), [("uniter_base", "uniter_large"), ("vl_bert_base", "vl_bert_large")])
def test_large_is_base_at_another_size(base: str, large: str) -> None:
    sizes = {"width": 1024, "heads": 16, "ffn": 4096}
    values = config_of(base).plain()
    values["text"]["layer"] |= sizes
    values["encoder"][0]["repeat"] = 24
    assert ModelConfig.parse(values, base) == config_of(large)
    per_block = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
    blocks = meta_model(config_of(large)).encoder
    assert count_parameters(blocks) == 24 * per_block


@pytest.mark.parametrize("family", ["visualbert", "uniter", "unicoder_vl", "vl_bert", "vilbert", "lxmert"])
def test_tiny_is_tiny(family: str) -> None:
    assert count_parameters(meta_model(shipped(f"{family}_tiny"))) < 2_000_000
