"""VisualBERT (Li et al. 2019, arXiv 1908.03557): names and config of the code at github.com/uclanlp/visualbert, and of
the transformers library, which calls the visual tables otherwise and gives regions another segment.
"""

from __future__ import annotations

from collections.abc import Mapping

from vlp.models.convert import bert
from vlp.models.convert.family import Family, HeadNames, Official, Values, block_count
from vlp.models.convert.names import Table, below
from vlp.models.heads import ClassHead, VocabularyHead
from vlp.models.model import ModelConfig

FEATURE_WIDTH = 2048

IMAGE: Table = {
    "projection": "image.parts.feature.linear",
    "position_embeddings_visual": "image.parts.position.table",
    "token_type_embeddings_visual": "image.parts.segment.table",
}
HF_IMAGE: Table = {
    "visual_projection": "image.parts.feature.linear",
    "visual_position_embeddings": "image.parts.position.table",
    "visual_token_type_embeddings": "image.parts.segment.table",
}


def table(config: ModelConfig, body: str, image: Table) -> Table:
    return {
        **below(bert.TEXT, f"{body}.embeddings", ""),
        **below(image, f"{body}.embeddings", ""),
        **bert.layers(f"{body}.encoder.layer", range(block_count(config)), "joint", "both"),
        f"{body}.pooler.dense": "pooler.linear.text",
    }


def heads(config: ModelConfig) -> Mapping[str, HeadNames]:
    words = VocabularyHead(activation=config.text.layer.activation)
    return {
        "mlm": HeadNames(words, below(bert.WORDS, "cls.predictions", "")),
        "itm": HeadNames(ClassHead(reads="example", classes=2), {"cls.seq_relationship": "output"}),
    }


def model(values: Values, width: int, segment: int, where: str, eps: float = 1e-12) -> ModelConfig:
    """Our model; regions take row `segment` of their segment table."""
    both, rows = ["joint", "ffn"], values["max_position_embeddings"]
    return ModelConfig.parse(
        {
            "text": bert.text(values, eps),
            "image": {
                "source": {"kind": "regions", "width": width, "classes": None},
                "parts": [
                    {"kind": "feature"},
                    {"kind": "position", "at": "zero", "rows": rows, "start": "text"},
                    {"kind": "segment", "rows": values["type_vocab_size"], "index": segment, "start": "text"},
                    {"kind": "aligned"},
                ],
                "norm": "text",
            },
            "encoder": [{"stream": "both", "repeat": values["num_hidden_layers"], "sublayers": both, "share": both}],
            **bert.habits(values),
        },
        where,
    )


def config(official: Official) -> ModelConfig:
    arguments = official.whole.get("objective_args", {})
    width = arguments.get("visual_embedding_dim", FEATURE_WIDTH)
    return model(official.section("official_config"), width, 0, str(official.path))


def hf_config(official: Official) -> ModelConfig:
    values = official.section()
    return model(values, values["visual_embedding_dim"], 1, str(official.path), values["layer_norm_eps"])


VISUALBERT = Family(
    config=config,
    table=lambda config: table(config, "bert", IMAGE),
    heads=heads,
    tied={"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"},
    wrapper="bert.",
)
HF_VISUALBERT = Family(
    config=hf_config,
    table=lambda config: table(config, "visual_bert", HF_IMAGE),
    heads=heads,
    tied={
        "cls.predictions.decoder.weight": "visual_bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored={r".*\.position_ids": "a buffer that counts places"},
)
