"""ViLT (Kim et al. 2021, arXiv 2102.03334): names and config of the transformers library, and of the authors' code at
github.com/dandelin/ViLT, where norms inside the transformer have another epsilon and the decoder is not tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, Values, block_count
from vlp.models.convert.names import Names, Shape, Shaped, Table, below, leading, squares
from vlp.models.heads import ClassHead, VocabularyHead
from vlp.models.model import ModelConfig

HF_EMBEDDINGS: Table = {
    "vilt.embeddings.cls_token": leading("image.extra.first.vector", 2),
    "vilt.embeddings.position_embeddings": leading("image.parts.grid.table", 1),
    "vilt.embeddings.patch_embeddings.projection": squares("image.parts.feature.linear"),
    "vilt.embeddings.token_type_embeddings": "encoder.blocks.0.modality.table",
    "vilt.pooler.dense": "pooler.linear.text",
}
HF_LAYER: Table = {
    "layernorm_before": "joint.weights.both.norm",
    "attention.attention.query": "joint.weights.both.attention.query",
    ("attention.attention.key", "attention.attention.value"): "joint.weights.both.attention.key_value",
    "attention.output.dense": "joint.weights.both.attention.output",
    "layernorm_after": "ffn.weights.both.norm",
    "intermediate.dense": "ffn.weights.both.up",
    "output.dense": "ffn.weights.both.down",
}
EMBEDDINGS: Table = {
    "transformer.cls_token": leading("image.extra.first.vector", 2),
    "transformer.pos_embed": leading("image.parts.grid.table", 1),
    "transformer.patch_embed.proj": squares("image.parts.feature.linear"),
    "token_type_embeddings": "encoder.blocks.0.modality.table",
    "pooler.dense": "pooler.linear.text",
}
LAYER: Table = {
    "norm1": "joint.weights.both.norm",
    "attn.qkv": ("joint.weights.both.attention.query", "joint.weights.both.attention.key_value"),
    "attn.proj": "joint.weights.both.attention.output",
    "norm2": "ffn.weights.both.norm",
    "mlp.fc1": "ffn.weights.both.up",
    "mlp.fc2": "ffn.weights.both.down",
}
CLASSIFIER: Table = {"0": "transform.linear", "1": "transform.norm", "3": "output"}
CLASSIFIER_EPS = 1e-5
"""Of the classifiers' norms, which are torch's as they come."""


def layers(config: ModelConfig, layer: Table, theirs: str, last_norm: str) -> dict[Names, Names | Shaped]:
    """Block 0 adds the modality, the last one is the norm, and between them stand the layers."""
    last = block_count(config) - 1
    table: dict[Names, Names | Shaped] = {last_norm: f"encoder.blocks.{last}.sublayers.norm.weights.both.norm"}
    for number in range(1, last):
        table |= below(layer, f"{theirs}.{number - 1}", f"encoder.blocks.{number}.sublayers")
    return table


def hf_table(config: ModelConfig) -> Table:
    return {
        **below(bert.TEXT, "vilt.embeddings.text_embeddings", ""),
        **HF_EMBEDDINGS,
        **layers(config, HF_LAYER, "vilt.encoder.layer", "vilt.layernorm"),
    }


def table(config: ModelConfig) -> Table:
    return {
        **below(bert.TEXT, "text_embeddings", ""),
        **EMBEDDINGS,
        **layers(config, LAYER, "transformer.blocks", "transformer.norm"),
    }


def words(config: ModelConfig, bias: str) -> HeadNames:
    """The vocabulary head; its bias stands in different places."""
    inner = below({"dense": "transform.linear", "LayerNorm": "transform.norm"}, "mlm_score.transform", "")
    return HeadNames(
        VocabularyHead(activation=config.text.layer.activation),
        {**inner, bias: "bias"},
        untied={**inner, "mlm_score.decoder.weight": "output.weight", bias: "output.bias"},
    )


def classifier(theirs: str, width: int) -> dict[str, HeadNames]:
    """Answers, or what is said of several images; they have the same names there and differ in what they read."""

    def images(shapes: Mapping[str, Shape]) -> int:
        rows, columns = shapes.get(f"{theirs}.0.weight", (2 * width, width))
        return 0 if rows != columns else columns // width

    def head(inner: str, join: int = 1) -> ClassHead:
        return ClassHead.model_validate(
            {
                "reads": "example",
                "classes": 2,
                "inner": inner,
                "norm": "before_activation",
                "eps": CLASSIFIER_EPS,
                "join": join,
            }
        )

    names, counted = below(CLASSIFIER, theirs, ""), f"{theirs}.3.weight"
    return {
        "qa": HeadNames(head("double"), names, counted=counted, fits=lambda shapes: images(shapes) == 0),
        "images": HeadNames(head("same", 2), names, counted=counted, fits=lambda shapes: images(shapes) == 2),
    }


def hf_heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    return {
        "mlm": words(config, "mlm_score.decoder.bias"),
        "rank": HeadNames(ClassHead(reads="example", classes=1), {"rank_output": "output"}),
        **classifier("classifier", config.layer("text").width),
    }


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    width = config.layer("text").width
    return {
        "mlm": words(config, "mlm_score.bias"),
        "itm": HeadNames(ClassHead(reads="example", classes=2), {"itm_score.fc": "output"}),
        "rank": HeadNames(ClassHead(reads="example", classes=1), {"rank_output": "output"}),
        "qa": classifier("vqa_classifier", width)["qa"],
        "images": classifier("nlvr2_classifier", width)["images"],
    }


def model(values: Values, inner_eps: float, where: str) -> ModelConfig:
    """Our model; the transformer's norms have an epsilon of their own."""
    eps, both = values.get("layer_norm_eps", 1e-12), ["joint", "ffn"]
    text = bert.text(values, eps)
    text["layer"]["norm"] = "pre"
    side, drawn = values["image_size"] // values["patch_size"], values.get("max_image_length", -1)
    own_eps = {} if inner_eps == eps else {"eps": inner_eps}
    projections = {} if values.get("qkv_bias", True) else {"qkv_bias": False}
    encoder: list[dict[str, Any]] = [
        {"stream": "both", "add": {"kind": "modality", "rows": values.get("modality_type_vocab_size", 2)}},
        {
            "stream": "both",
            "repeat": values["num_hidden_layers"],
            "sublayers": both,
            "share": both,
            **own_eps,
            **projections,
        },
        {"stream": "both", "sublayers": ["norm"], "share": ["norm"], **own_eps},
    ]
    return ModelConfig.parse(
        {
            "text": text,
            "image": {
                "source": {
                    "kind": "patches",
                    "size": values["image_size"],
                    "patch": values["patch_size"],
                    "fit": "keep",
                    "sample": drawn if drawn > 0 else None,
                },
                "parts": [{"kind": "feature"}, {"kind": "grid", "rows": side, "columns": side}],
                "norm": False,
                "cls": True,
            },
            "encoder": encoder,
            **bert.habits(values),
        },
        where,
    )


USUAL = {
    "vocab_size": 30522,
    "type_vocab_size": 2,
    "max_position_embeddings": 40,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "image_size": 384,
    "patch_size": 32,
}
"""The library's defaults, which its config files need not hold."""
AUTHORS_KEYS = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "max_position_embeddings": "max_text_len",
    "max_image_length": "max_image_len",
}
"""What the authors' own config calls these."""


def hf_config(official: Official) -> ModelConfig:
    values = {**USUAL, **official.section("official_config")}
    return model(values, values.get("layer_norm_eps", 1e-12), str(official.path))


def config(official: Official) -> ModelConfig:
    given = official.section("official_config")
    theirs = {ours: given[key] for ours, key in AUTHORS_KEYS.items() if key in given}
    values = {**USUAL, **theirs, **given}
    if "mlp_ratio" in given:
        values["intermediate_size"] = given["mlp_ratio"] * values["hidden_size"]
    if "drop_rate" in given:
        values |= {"hidden_dropout_prob": given["drop_rate"], "attention_probs_dropout_prob": given["drop_rate"]}
    return model({**values, "layer_norm_eps": 1e-12}, 1e-6, str(official.path))


HF_VILT = Family(
    config=hf_config,
    table=hf_table,
    heads=hf_heads,
    tied={
        "mlm_score.decoder.weight": "vilt.embeddings.text_embeddings.word_embeddings.weight",
        "mlm_score.bias": "mlm_score.decoder.bias",
    },
    ignored={r".*\.position_ids": "a buffer that counts places"},
)
VILT = Family(
    config=config,
    table=table,
    heads=heads,
    tied={"mlm_score.decoder.weight": "text_embeddings.word_embeddings.weight"},
    ignored={r".*\.position_ids": "a buffer that counts places"},
)
