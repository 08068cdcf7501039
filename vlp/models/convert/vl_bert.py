"""VL-BERT (Su et al. 2020, arXiv 1908.08530): names and config of the code at github.com/jackroos/VL-BERT, with
precomputed region features.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlp.errors import ConfigError
from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, Section, block_count
from vlp.models.convert.names import Table, below, leading
from vlp.models.heads import ClassHead, VocabularyHead
from vlp.models.model import ModelConfig

FEATURE_WIDTH, FREQUENCIES = 2048, 256
"""Constants of the authors' code; the frequencies are of each of a box's four numbers."""

USUAL = {
    "with_pooler": True,
    "visual_scale_text_init": 0.0,
    "visual_scale_object_init": 0.0,
    "visual_region_classes": 1601,
}
"""The authors' defaults, which their files need not hold."""

PLAIN = {"visual_ln": True, "obj_pos_id_relative": True, "object_word_embed_mode": 2}
"""What the parts here can say of the authors' options."""

EMBEDDINGS: Table = {
    "image_feature_extractor.obj_downsample.1": "image.parts.feature.linear",
    "object_mask_visual_embedding.weight": "image.parts.feature.hidden",
    "object_linguistic_embeddings.weight": leading("image.parts.shared.vector", 1),
    "object_mask_word_embedding.weight": leading("image.parts.shared.hidden", 1),
    "aux_text_visual_embedding.weight": leading("text.parts.whole_image.missing", 1),
    "vlbert.word_embeddings": "text.parts.word.table",
    "vlbert.position_embeddings": "text.parts.position.table",
    "vlbert.token_type_embeddings": "text.parts.segment.table",
    "vlbert.end_embedding.weight": leading("image.extra.last.vector", 1),
    "vlbert.visual_ln_text": "text.parts.whole_image.norm",
    "vlbert.visual_ln_object": "image.parts.feature.norm",
    "vlbert.embedding_LayerNorm": "text.combine.norm",
}


def table(config: ModelConfig) -> Table:
    return {
        **EMBEDDINGS,
        **bert.layers("vlbert.encoder.layer", range(block_count(config)), "joint", "both"),
        "vlbert.pooler.dense": "pooler.linear.text",
    }


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    activation = config.text.layer.activation
    regions = "vlbert.mvrc_head"
    return {
        "mlm": HeadNames(VocabularyHead(activation=activation), below(bert.WORDS, "vlbert.mlm_head.predictions", "")),
        "mrc": HeadNames(
            ClassHead(reads="image", classes=1601, inner="same", norm="none", activation=activation),
            {f"{regions}.transform.dense": "transform.linear", f"{regions}.region_cls_pred": "output"},
            counted=f"{regions}.region_cls_pred.weight",
        ),
        "itm": HeadNames(
            ClassHead(reads="example", classes=2),
            {"vlbert.relationsip_head.caption_image_relationship": "output"},
        ),
    }


def config(official: Official) -> ModelConfig:
    values = official.section("VLBERT")
    if "NETWORK" in official.whole and "VLBERT" in official.whole["NETWORK"]:  # as it stands in the authors' YAML
        values = official.whole["NETWORK"]["VLBERT"]
    values = Section({**USUAL, **values}, official.path)
    for key, said in PLAIN.items():
        if values.get(key, said) != said:
            raise ConfigError(f"{official.path}: {key} is {values[key]}, and only {said} can be said here")
    if values["visual_size"] != values["hidden_size"]:
        raise ConfigError(f"{official.path}: visual_size is not hidden_size, which cannot be said here")
    both = ["joint", "ffn"]
    text = bert.text(values)
    # Objects and [END] take the two places behind the text.
    text["max_length"] -= 2
    text["parts"][1]["rows"] = values["max_position_embeddings"]
    text["parts"].append({"kind": "whole_image", "norm": True, "init_gain": values["visual_scale_text_init"]})
    return ModelConfig.parse(
        {
            "text": text,
            "image": {
                "source": {
                    "kind": "regions",
                    "width": FEATURE_WIDTH,
                    "classes": values["visual_region_classes"],
                    "whole": True,
                },
                "parts": [
                    {
                        "kind": "feature",
                        "box_frequencies": FREQUENCIES,
                        "hidden": "replaced",
                        "activation": "relu",
                        "dropout": 0.1,
                        "norm": True,
                        "init_gain": values["visual_scale_object_init"],
                    },
                    {"kind": "shared", "hidden": "replaced"},
                    {"kind": "segment", "table": "text", "index": 2},
                    {"kind": "position", "table": "text", "at": "after_text"},
                ],
                "norm": "text",
                "end": True,
            },
            "encoder": [{"stream": "both", "repeat": values["num_hidden_layers"], "sublayers": both, "share": both}],
            "pooler": {} if values["with_pooler"] else {"linear": False, "activation": "none"},
            **bert.habits(values),
        },
        str(official.path),
    )


def counts(official: Official) -> Mapping[str, int]:
    values = official.whole.get("VLBERT", {})
    return {"mrc": values["visual_region_classes"]} if "visual_region_classes" in values else {}


VL_BERT = Family(
    config=config,
    table=table,
    heads=heads,
    counts=counts,
    tied={"vlbert.mlm_head.predictions.decoder.weight": "vlbert.word_embeddings.weight"},
)
