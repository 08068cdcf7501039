"""ViLBERT (Lu et al. 2019, arXiv 1908.02265): names and config of the code at
github.com/facebookresearch/vilbert-multi-task.

There, suffix 1 is the image's side of a co-attention layer and suffix 2 the text's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlp.errors import ConfigError
from vlp.models.blocks import unrolled
from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, Unused, Values
from vlp.models.convert.names import Names, Shape, Shaped, Table, below
from vlp.models.heads import ClassHead, FeatureHead, VocabularyHead
from vlp.models.model import ModelConfig

FEATURE_WIDTH, CLASSES = 2048, 1601
FUSIONS = {"mul": "product", "sum": "sum"}

IMAGE: Table = {
    "image_embeddings": "image.parts.feature.linear",
    "image_location_embeddings": "image.parts.box.linear",
    "LayerNorm": "image.combine.norm",
}
CROSS: Table = {
    "biattention.query1": "cross.weights.image.attention.query",
    ("biattention.key2", "biattention.value2"): "cross.weights.image.attention.key_value",
    "biOutput.dense1": "cross.weights.image.attention.output",
    "biOutput.LayerNorm1": "cross.weights.image.norm",
    "biattention.query2": "cross.weights.text.attention.query",
    ("biattention.key1", "biattention.value1"): "cross.weights.text.attention.key_value",
    "biOutput.dense2": "cross.weights.text.attention.output",
    "biOutput.LayerNorm2": "cross.weights.text.norm",
    "v_intermediate.dense": "ffn.weights.image.up",
    "v_output.dense": "ffn.weights.image.down",
    "v_output.LayerNorm": "ffn.weights.image.norm",
    "t_intermediate.dense": "ffn.weights.text.up",
    "t_output.dense": "ffn.weights.text.down",
    "t_output.LayerNorm": "ffn.weights.text.norm",
}


def table(config: ModelConfig) -> Table:
    table: dict[Names, Names | Shaped] = {
        **below(bert.TEXT, "bert.embeddings", ""),
        **below(IMAGE, "bert.v_embeddings", ""),
        "bert.t_pooler.dense": "pooler.linear.text",
        "bert.v_pooler.dense": "pooler.linear.image",
    }
    for number, theirs in layers(config):
        for stack, count in theirs.items():
            if stack == "c_layer":
                table |= below(CROSS, f"bert.encoder.c_layer.{count}", f"encoder.blocks.{number}.sublayers")
            else:
                owner = {"layer": "text", "v_layer": "image"}[stack]
                table |= bert.layer(f"bert.encoder.{stack}.{count}", number, "self", owner)
    return table


def layers(config: ModelConfig) -> Iterator[tuple[int, dict[str, int]]]:
    """For each block of ours its number and the layers that it is there: of a stack, which one."""
    made = {"layer": 0, "v_layer": 0, "c_layer": 0}
    for number, block in enumerate(unrolled(config.encoder)):
        own = {"text": "layer", "image": "v_layer"}
        stacks = ["c_layer"] if "cross" in block.sublayers else [own[stream] for stream in block.streams]
        yield number, {stack: made[stack] for stack in stacks}
        made |= {stack: made[stack] + 1 for stack in stacks}


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    # All transforms take the text's activation.
    activation = config.text.layer.activation
    classes, width = (getattr(config.image.source, key, None) for key in ("classes", "width"))
    inner = below({"dense": "transform.linear", "LayerNorm": "transform.norm"}, "cls.imagePredictions.transform", "")
    decoder = "cls.imagePredictions.decoder"

    def guesses_classes(shapes: Mapping[str, Shape]) -> bool:
        rows = shapes.get(f"{decoder}.weight", (0,))[0]
        return classes == rows or rows != width

    return {
        "mlm": HeadNames(VocabularyHead(activation=activation), below(bert.WORDS, "cls.predictions", "")),
        "itm": HeadNames(ClassHead(reads="example", classes=2), {"cls.bi_seq_relationship": "output"}),
        "mrc": HeadNames(
            ClassHead(reads="image", classes=CLASSES, inner="same", activation=activation),
            {**inner, decoder: "output"},
            counted=f"{decoder}.weight",
            fits=guesses_classes,
        ),
        "mrfr": HeadNames(
            FeatureHead(width=FEATURE_WIDTH, activation=activation),
            {**inner, decoder: "output"},
            counted=f"{decoder}.weight",
            fits=lambda shapes: not guesses_classes(shapes),
        ),
    }


def unused(config: ModelConfig) -> Mapping[str, Unused]:
    found: dict[str, Unused] = {}
    for number, theirs in layers(config):
        if "c_layer" in theirs:
            inner = list(unrolled(config.encoder))[number].attention_width or config.layer("text").width
            for suffix, stream in (("1", "image"), ("2", "text")):
                width = config.layer(stream).width  # type: ignore[arg-type]
                name = f"bert.encoder.c_layer.{theirs['c_layer']}.biOutput.q_dense{suffix}"
                reason = "the authors' code makes it and never uses it"
                found |= {f"{name}.weight": Unused((width, inner), reason), f"{name}.bias": Unused((width,), reason)}
    return found


def schedule(values: Values) -> list[dict[str, Any]]:
    """The blocks: a co-attention layer comes before the layers of its numbers; what is left runs at the end."""
    blocks: list[dict[str, Any]] = []
    done = {"text": 0, "image": 0}

    def up_to(**numbers: int) -> None:
        """Each stream alone as long as it has more to run than the other, then both."""
        left = {stream: max(number - done[stream], 0) for stream, number in numbers.items()}
        both = min(left.values())
        for stream, repeat in {"text": left["text"] - both, "image": left["image"] - both, "both": both}.items():
            if repeat:
                blocks.append({"stream": stream, "repeat": repeat, "sublayers": ["self", "ffn"]})
        done.update({stream: max(number, done[stream]) for stream, number in numbers.items()})

    for image, text in zip(values["v_biattention_id"], values["t_biattention_id"], strict=True):
        up_to(text=text, image=image)
        blocks.append(
            {
                "stream": "both",
                "sublayers": ["cross", "ffn"],
                "attention_width": values["bi_hidden_size"],
                "heads": values["bi_num_attention_heads"],
            }
        )
    up_to(text=values["num_hidden_layers"], image=values["v_num_hidden_layers"])
    return blocks


def config(official: Official) -> ModelConfig:
    values = official.section("official_config")
    for key, usual in (("dynamic_attention", False), ("task_specific_tokens", False), ("with_coattention", True)):
        if values.get(key, usual) != usual:
            raise ConfigError(f"{official.path}: {key} is {values[key]}, which the blocks here cannot say")
    fusion = values.get("fusion_method", values.get("pooling_method", "mul"))
    if fusion not in FUSIONS:
        raise ConfigError(f"{official.path}: fusion_method is '{fusion}', it should be one of {', '.join(FUSIONS)}")
    classes = values.get("v_target_size", CLASSES) if values.get("visual_target", 0) == 0 else None
    return ModelConfig.parse(
        {
            "text": bert.text(values),
            "image": {
                "source": {
                    "kind": "regions",
                    "width": values.get("v_feature_size", FEATURE_WIDTH),
                    "classes": classes,
                    "whole": True,
                },
                "layer": {
                    "width": values["v_hidden_size"],
                    "heads": values["v_num_attention_heads"],
                    "ffn": values["v_intermediate_size"],
                    "activation": bert.activation(values["v_hidden_act"]),
                    "dropout": _own(values, "v_hidden_dropout_prob"),
                    "attention_dropout": _own(values, "v_attention_probs_dropout_prob"),
                },
                "parts": [{"kind": "feature"}, {"kind": "box", "numbers": 5}],
            },
            "encoder": schedule(values),
            "pooler": {
                "width": values["bi_hidden_size"],
                "activation": "relu",
                "fusion": FUSIONS[fusion],
                "dropout": 0.1,
            },
            **bert.habits(values),
        },
        str(official.path),
    )


def _own(values: Values, key: str) -> float | None:
    """The image's drop rate, where it is not the text's."""
    rate: float = values[key]
    return None if rate == values[key.removeprefix("v_")] else rate


def counts(official: Official) -> Mapping[str, int]:
    values = official.section("official_config")
    return {"mrc": values["v_target_size"]} if "v_target_size" in values else {}


VILBERT = Family(
    config=config,
    table=table,
    heads=heads,
    counts=counts,
    tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
    unused=unused,
)
