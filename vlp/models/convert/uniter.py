"""UNITER (Chen et al. 2020, arXiv 1909.11740): names and config of the code at github.com/ChenRocks/UNITER."""

from __future__ import annotations

from collections.abc import Mapping

from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, block_count
from vlp.models.convert.names import Table, below
from vlp.models.heads import ClassHead, FeatureHead, VocabularyHead
from vlp.models.model import ModelConfig

FEATURE_WIDTH, CLASSES = 2048, 1601
"""Constants of the authors' code, which their config does not hold."""

IMAGE: Table = {
    "img_linear": "image.parts.feature.linear",
    "img_layer_norm": "image.parts.feature.norm",
    "mask_embedding.weight": "image.parts.feature.hidden",
    "pos_linear": "image.parts.box.linear",
    "pos_layer_norm": "image.parts.box.norm",
    "LayerNorm": "image.combine.norm",
}


def config(official: Official) -> ModelConfig:
    values = official.section("official_config")
    both = ["joint", "ffn"]
    return ModelConfig.parse(
        {
            "text": bert.text(values),
            "image": {
                "source": {
                    "kind": "regions",
                    "width": official.whole.get("img_dim", FEATURE_WIDTH),
                    "classes": official.whole.get("img_label_dim", CLASSES),
                },
                "parts": [
                    {"kind": "feature", "norm": True, "hidden": "learned"},
                    {"kind": "box", "numbers": 7, "norm": True},
                    {"kind": "segment", "table": "text", "index": 1},
                ],
            },
            "encoder": [{"stream": "both", "repeat": values["num_hidden_layers"], "sublayers": both, "share": both}],
            **bert.habits(values),
        },
        str(official.path),
    )


def table(config: ModelConfig) -> Table:
    return {
        **below(bert.TEXT, "uniter.embeddings", ""),
        **below(IMAGE, "uniter.img_embeddings", ""),
        **bert.layers("uniter.encoder.layer", range(block_count(config)), "joint", "both"),
        "uniter.pooler.dense": "pooler.linear.text",
    }


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    return {
        "mlm": HeadNames(
            VocabularyHead(activation=config.text.layer.activation), below(bert.WORDS, "cls.predictions", "")
        ),
        "itm": HeadNames(ClassHead(reads="example", classes=2), {"itm_output": "output"}),
        "mrfr": HeadNames(
            FeatureHead(width=FEATURE_WIDTH, tied=True),
            {
                "feat_regress.net.0": "transform.linear",
                "feat_regress.net.2": "transform.norm",
                "feat_regress.bias": "bias",
            },
            counted="feat_regress.bias",
        ),
        "mrc": HeadNames(
            ClassHead(reads="image", classes=CLASSES, inner="same"),
            {
                "region_classifier.net.0": "transform.linear",
                "region_classifier.net.2": "transform.norm",
                "region_classifier.net.3": "output",
            },
            counted="region_classifier.net.3.weight",
        ),
    }


UNITER = Family(
    config=config,
    table=table,
    heads=heads,
    counts=lambda official: official.counts(mrc="img_label_dim"),
    tied={
        "cls.predictions.decoder.weight": "uniter.embeddings.word_embeddings.weight",
        "feat_regress.weight": "uniter.img_embeddings.img_linear.weight",
    },
)
