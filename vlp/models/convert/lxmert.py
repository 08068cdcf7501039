"""LXMERT (Tan and Bansal 2019, arXiv 1908.07490): names and config of the code at github.com/airsplay/lxmert, and of
the transformers library, whose names differ in their first word.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlp.models.blocks import unrolled
from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, Values
from vlp.models.convert.names import Names, Shaped, Table, below
from vlp.models.heads import ClassHead, FeatureHead, VocabularyHead
from vlp.models.model import ModelConfig

DEPTHS = {"l_layers": 9, "r_layers": 5, "x_layers": 5}
SIZES = {"visual_feat_dim": 2048, "visual_pos_dim": 4, "obj_id_num": 1600, "attr_id_num": 400}
"""Constants of the authors' code, which their config does not hold."""
ANSWERS = 9500

IMAGE: Table = {
    "visn_fc": "image.parts.feature.linear",
    "visn_layer_norm": "image.parts.feature.norm",
    "box_fc": "image.parts.box.linear",
    "box_layer_norm": "image.parts.box.norm",
}
CROSS: Table = {
    "att.query": "attention.query",
    ("att.key", "att.value"): "attention.key_value",
    "output.dense": "attention.output",
    "output.LayerNorm": "norm",
}
"""One module for both directions."""


def feed_forward(of: str) -> Table:
    return {f"{of}_inter.dense": "up", f"{of}_output.dense": "down", f"{of}_output.LayerNorm": "norm"}


def cross_layer(theirs: str, number: int) -> dict[Names, Names | Shaped]:
    ours = f"encoder.blocks.{number}.sublayers"
    return {
        **below(CROSS, f"{theirs}.visual_attention", f"{ours}.cross.weights.both"),
        **below(bert.ATTENTION, f"{theirs}.lang_self_att", f"{ours}.self.weights.text"),
        **below(bert.ATTENTION, f"{theirs}.visn_self_att", f"{ours}.self.weights.image"),
        **below(feed_forward("lang"), theirs, f"{ours}.ffn.weights.text"),
        **below(feed_forward("visn"), theirs, f"{ours}.ffn.weights.image"),
    }


def table(config: ModelConfig, body: str) -> Table:
    table: dict[Names, Names | Shaped] = {
        **below(bert.TEXT, f"{body}.embeddings", ""),
        **below(IMAGE, f"{body}.encoder.visn_fc", ""),
        f"{body}.pooler.dense": "pooler.linear.text",
    }
    made = {"text": 0, "image": 0, "both": 0}
    for number, block in enumerate(unrolled(config.encoder)):
        count = made[block.stream]
        match block.stream:
            case "text":
                table |= bert.layer(f"{body}.encoder.layer.{count}", number, "self", "text")
            case "image":
                table |= bert.layer(f"{body}.encoder.r_layers.{count}", number, "self", "image")
            case "both":
                table |= cross_layer(f"{body}.encoder.x_layers.{count}", number)
        made[block.stream] += 1
    return table


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    activation = config.text.layer.activation
    inner: Table = {
        "obj_predict_head.transform.dense": "transform.linear",
        "obj_predict_head.transform.LayerNorm": "transform.norm",
    }
    regions = "obj_predict_head.decoder_dict"
    return {
        "mlm": HeadNames(VocabularyHead(activation=activation), below(bert.WORDS, "cls.predictions", "")),
        "itm": HeadNames(ClassHead(reads="example", classes=2), {"cls.seq_relationship": "output"}),
        "obj": HeadNames(
            ClassHead(reads="image", classes=SIZES["obj_id_num"], inner="same", activation=activation),
            {f"{regions}.obj": "output"},
            inner,
            counted=f"{regions}.obj.weight",
        ),
        "attr": HeadNames(
            ClassHead(reads="image", classes=SIZES["attr_id_num"], inner="same", activation=activation),
            {f"{regions}.attr": "output"},
            inner,
            counted=f"{regions}.attr.weight",
        ),
        "feat": HeadNames(
            FeatureHead(width=SIZES["visual_feat_dim"], activation=activation),
            {f"{regions}.feat": "output"},
            inner,
            counted=f"{regions}.feat.weight",
        ),
        "qa": HeadNames(
            ClassHead(reads="example", classes=ANSWERS, inner="double"),
            {
                "answer_head.logit_fc.0": "transform.linear",
                "answer_head.logit_fc.2": "transform.norm",
                "answer_head.logit_fc.3": "output",
            },
            counted="answer_head.logit_fc.3.weight",
        ),
    }


def model(bert_values: Values, visual: Values, where: str) -> ModelConfig:
    """Our model from the sizes of BERT and those of the visual side."""
    text = bert.text(bert_values)
    for part in text["parts"]:
        part["padding_row"] = True
    return ModelConfig.parse(
        {
            "text": text,
            "image": {
                "source": {
                    "kind": "regions",
                    "width": visual["visual_feat_dim"],
                    "classes": visual["obj_id_num"],
                    "attributes": visual["attr_id_num"],
                    "max_regions": 36,
                },
                "parts": [
                    {"kind": "feature", "norm": True},
                    {"kind": "box", "numbers": visual["visual_pos_dim"], "norm": True},
                ],
                "combine": "mean",
                "norm": False,
            },
            "encoder": [
                {"stream": "text", "repeat": visual["l_layers"], "sublayers": ["self", "ffn"]},
                {"stream": "image", "repeat": visual["r_layers"], "sublayers": ["self", "ffn"]},
                {
                    "stream": "both",
                    "repeat": visual["x_layers"],
                    "sublayers": ["cross", "self", "ffn"],
                    "share": ["cross"],
                },
            ],
            **bert.habits(bert_values),
        },
        where,
    )


def config(official: Official) -> ModelConfig:
    visual = {**DEPTHS, **SIZES, **official.whole.get("visual_config", {})}
    return model(official.section("official_config"), visual, str(official.path))


def counts(official: Official) -> Mapping[str, int]:
    visual = official.whole.get("visual_config", {})
    known = {
        "obj": visual.get("obj_id_num"),
        "attr": visual.get("attr_id_num"),
        "qa": official.whole.get("num_answers"),
    }
    return {head: count for head, count in known.items() if count is not None}


def hf_config(official: Official) -> ModelConfig:
    values = official.section()
    visual = {
        **{key: values[key] for key in (*DEPTHS, "visual_feat_dim", "visual_pos_dim")},
        "obj_id_num": values["num_object_labels"],
        "attr_id_num": values["num_attr_labels"],
    }
    return model(values, visual, str(official.path))


LXMERT = Family(
    config=config,
    table=lambda config: table(config, "bert"),
    heads=heads,
    counts=counts,
    tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
)
HF_LXMERT = Family(
    config=hf_config,
    table=lambda config: table(config, "lxmert"),
    heads=heads,
    counts=lambda official: official.counts(obj="num_object_labels", attr="num_attr_labels", qa="num_qa_labels"),
    tied={"cls.predictions.decoder.weight": "lxmert.embeddings.word_embeddings.weight"},
    ignored={r".*\.position_ids": "a buffer that counts places"},
)
