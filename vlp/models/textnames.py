"""How pre-trained text models name the tensors that our layers hold, one entry per architecture of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Names:
    """The names of one architecture, without the prefix that a model with a head puts before them.

    Where our name stands before theirs, both are without `.weight` and `.bias`.
    """

    prefix: str
    """What a model with a head puts before the names of its trunk."""
    embedding: Mapping[str, str]
    """Of the embedding: ours below `text.`."""
    layer: str
    """What each name of a layer begins with; `{group}` and `{layer}` are numbers."""
    attention: Mapping[str, str]
    """Of attention, below `layer`: ours below the sublayer; `key` and `value` are halves of our `key_value`."""
    ffn: Mapping[str, str]
    """Of the feed-forward network, below `layer`; its norm alone where the network cannot be ours."""
    vocabulary: Mapping[str, str]
    """Of the head that guesses masked words: ours below the head."""
    pooler: str = ""
    after_padding: bool = False
    """Whether positions count from the padding token's id and one, so that the table's first rows are never used."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Keys of `config.json` that are called otherwise than in BERT's."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that stand in no `config.json` of this architecture."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Names (or what they begin with) that nothing of ours holds, and why."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Tensors that hold several others one below the other, by name, and what those are called here."""
    norm: Literal["post", "pre"] = "post"
    """Where the norms of its layers stand."""
    left: Mapping[str, str] = field(default_factory=dict)
    """Names below `layer` that nothing of ours holds, and why."""
    absent: frozenset[str] = frozenset()
    """Weights that its first layers lack, though others have them."""
    differs: str = ""
    """Why the layers compute something else than ours, if they do; then they start ours only if they are named."""

    def setting(self, config: Mapping[str, Any], key: str, default: Any = None) -> Any:
        """A value of a `config.json` by BERT's name for it; `default` where there is none."""
        value = config.get(self.settings.get(key, key), self.fixed.get(key))
        return default if value is None else value


_BERT_EMBEDDING = {
    "parts.word.table": "embeddings.word_embeddings",
    "parts.position.table": "embeddings.position_embeddings",
    "parts.segment.table": "embeddings.token_type_embeddings",
    "combine.norm": "embeddings.LayerNorm",
}
_BERT_ATTENTION = {
    "attention.query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
}
_BERT_FFN = {"up": "intermediate.dense", "down": "output.dense", "norm": "output.LayerNorm"}
_COUNTERS = {"embeddings.position_ids": "counts the positions", "embeddings.token_type_ids": "is all zeros"}

ARCHITECTURES: dict[str, Names] = {
    # Devlin et al. 2019, arXiv 1810.04805
    "bert": Names(
        prefix="bert.",
        embedding=_BERT_EMBEDDING,
        layer="encoder.layer.{layer}.",
        attention=_BERT_ATTENTION,
        ffn=_BERT_FFN,
        vocabulary={
            "transform.linear": "cls.predictions.transform.dense",
            "transform.norm": "cls.predictions.transform.LayerNorm",
            "bias": "cls.predictions.bias",
            "decoder": "cls.predictions.decoder",
        },
        pooler="pooler.dense",
        unused={**_COUNTERS, "cls.seq_relationship.": "tells whether two sentences follow each other"},
    ),
    # Liu et al. 2019, arXiv 1907.11692
    "roberta": Names(
        prefix="roberta.",
        embedding=_BERT_EMBEDDING,
        layer="encoder.layer.{layer}.",
        attention=_BERT_ATTENTION,
        ffn=_BERT_FFN,
        vocabulary={
            "transform.linear": "lm_head.dense",
            "transform.norm": "lm_head.layer_norm",
            "bias": "lm_head.bias",
            "decoder": "lm_head.decoder",
        },
        pooler="pooler.dense",
        after_padding=True,
        unused=_COUNTERS,
    ),
    # Lan et al. 2020, arXiv 1909.11942
    "albert": Names(
        prefix="albert.",
        embedding={**_BERT_EMBEDDING, "linear": "encoder.embedding_hidden_mapping_in"},
        layer="encoder.albert_layer_groups.{group}.albert_layers.0.",
        attention={
            "attention.query": "attention.query",
            "key": "attention.key",
            "value": "attention.value",
            "attention.output": "attention.dense",
            "norm": "attention.LayerNorm",
        },
        ffn={"up": "ffn", "down": "ffn_output", "norm": "full_layer_layer_norm"},
        vocabulary={
            "transform.linear": "predictions.dense",
            "transform.norm": "predictions.LayerNorm",
            "bias": "predictions.bias",
            "decoder": "predictions.decoder",
        },
        pooler="pooler",
        unused={**_COUNTERS, "sop_classifier.": "tells the order of two sentences"},
    ),
    # Sanh et al. 2019, arXiv 1910.01108
    "distilbert": Names(
        prefix="distilbert.",
        embedding={name: theirs for name, theirs in _BERT_EMBEDDING.items() if "segment" not in name},
        layer="transformer.layer.{layer}.",
        attention={
            "attention.query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "attention.output": "attention.out_lin",
            "norm": "sa_layer_norm",
        },
        ffn={"up": "ffn.lin1", "down": "ffn.lin2", "norm": "output_layer_norm"},
        vocabulary={
            "transform.linear": "vocab_transform",
            "transform.norm": "vocab_layer_norm",
            "bias": "vocab_projector.bias",
            "decoder": "vocab_projector",
        },
        settings={"num_attention_heads": "n_heads", "num_hidden_layers": "n_layers", "hidden_act": "activation"},
        fixed={"layer_norm_eps": 1e-12},
        unused=_COUNTERS,
    ),
    # Warner et al. 2024, arXiv 2412.13663
    "modernbert": Names(
        prefix="model.",
        embedding={"parts.word.table": "embeddings.tok_embeddings", "combine.norm": "embeddings.norm"},
        layer="layers.{layer}.",
        attention={
            "attention.query": "attn.Wq",
            "key": "attn.Wk",
            "value": "attn.Wv",
            "attention.output": "attn.Wo",
            "norm": "attn_norm",
        },
        ffn={"norm": "mlp_norm"},
        joined={"attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv")},
        norm="pre",
        absent=frozenset({"layers.0.attn_norm.weight"}),  # the embedding's norm stands before it
        left={"mlp": "of gated feed-forward networks"},
        vocabulary={"transform.linear": "head.dense", "transform.norm": "head.norm", "decoder": "decoder"},
        settings={"layer_norm_eps": "norm_eps", "hidden_act": "hidden_activation"},
        unused={
            "final_norm.": "stands behind layers that compute something else",
            "decoder.bias": "needs that head's transform",
        },
        differs="rotary positions, local attention, gated feed-forward networks and no biases",
    ),
}
