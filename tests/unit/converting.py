"""Small configs and random checkpoints of every kind that `vlp convert` knows, and both ways of converting them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vlp.convert import convert
from vlp.models.convert.account import plan_of
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import family_of

BERT = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
HF_LXMERT = {
    "num_object_labels": 9,
    "num_attr_labels": 5,
    "num_qa_labels": 7,
    "visual_feat_dim": 6,
    "visual_pos_dim": 4,
}
DEPTHS = {"l_layers": 2, "r_layers": 1, "x_layers": 1}
VILBERT = {
    "v_feature_size": 6,
    "v_target_size": 5,
    "v_hidden_size": 12,
    "v_num_hidden_layers": 2,
    "v_num_attention_heads": 2,
    "v_intermediate_size": 10,
    "v_hidden_act": "relu",
    "v_hidden_dropout_prob": 0.2,
    "v_attention_probs_dropout_prob": 0.1,
    "bi_hidden_size": 8,
    "bi_num_attention_heads": 4,
    "v_biattention_id": [0, 1],
    "t_biattention_id": [1, 2],
}
VL_BERT = {"visual_size": 16, "type_vocab_size": 3, "with_pooler": True, "visual_region_classes": 5}
SCALES = {"visual_scale_text_init": 0.0, "visual_scale_object_init": 0.0}
OFFICIAL: dict[str, dict[str, Any]] = {
    "uniter": {"official_config": BERT, "img_dim": 6, "img_label_dim": 5},
    "lxmert": {
        "official_config": BERT,
        "visual_config": {**DEPTHS, "visual_feat_dim": 6, "visual_pos_dim": 4, "obj_id_num": 9, "attr_id_num": 5},
        "num_answers": 7,
    },
    "hf-lxmert": {**BERT, **DEPTHS, **HF_LXMERT},
    "vilbert": {**BERT, **VILBERT},
    "visualbert": {"official_config": BERT, "objective_args": {"visual_embedding_dim": 6}},
    "hf-visualbert": {**BERT, "visual_embedding_dim": 6},
    "vl_bert": {"NETWORK": {"VLBERT": {**BERT, **VL_BERT, **SCALES}}},
    "vilt": {**BERT, "image_size": 8, "patch_size": 4},
    "hf-vilt": {**BERT, "image_size": 8, "patch_size": 4},
}
SECOND_NAMES = {
    "uniter": ["cls.predictions.decoder.weight", "feat_regress.weight"],
    "lxmert": ["cls.predictions.decoder.weight"],
    "hf-lxmert": ["cls.predictions.decoder.weight"],
    "vilbert": ["cls.predictions.decoder.weight"],
    "visualbert": ["cls.predictions.decoder.weight"],
    "hf-visualbert": ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"],
    "vl_bert": ["vlbert.mlm_head.predictions.decoder.weight"],
    "vilt": [],
    "hf-vilt": ["mlm_score.decoder.weight", "mlm_score.bias"],
}


def write_official(folder: Path, kind: str, **changes: Any) -> Path:
    """A kind's small config as its authors would write it, with changes."""
    path = folder / f"{kind}.json"
    path.write_text(json.dumps({**OFFICIAL[kind], **changes}))
    return path


def published(kind: str, config: Path) -> dict[str, Tensor]:
    """A random checkpoint of a kind, with all heads that go together, second names and tensors that are never used."""
    family = family_of(kind, "--from")
    given = read_official(config)
    ours = family.config(given)
    heads = {name: head.config for name, head in family.heads(ours).items() if name not in ("mrfr", "images", "rank")}
    counts = {"mrc": 5, "obj": 9, "attr": 5, "qa": 7}
    for name, head in heads.items():
        if name in counts and head.kind == "classes":
            heads[name] = head.model_copy(update={"classes": counts[name]})
    if "attr" in heads:
        heads["attr"] = heads["attr"].model_copy(update={"inner_of": "obj"})
        heads["feat"] = heads["feat"].model_copy(update={"inner_of": "obj", "width": 6})
    if kind == "uniter":
        heads["mrfr"] = family.heads(ours)["mrfr"].config.model_copy(update={"width": 6})
    if kind == "vilt":
        heads["mlm"] = heads["mlm"].model_copy(update={"tied": False})
    ours = ours.model_copy(update={"heads": heads})
    made = plan_of(family, ours, kind)
    draw = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in made.their_shapes().items()}
    unused = {name: torch.randn(each.shape, generator=draw) for name, each in family.unused(ours).items()}
    return tensors | unused | {name: tensors[family.tied[name]].clone() for name in SECOND_NAMES[kind]}


def there(kind: str, file: Path, config: Path, out: Path) -> None:
    """A checkpoint file into a directory of ours."""
    convert(file, source=kind, target=None, config=None, official=config, out=out)


def back(kind: str, directory: Path, file: Path) -> dict[str, Tensor]:
    """A directory of ours into a checkpoint file, and what stands in it."""
    convert(directory, source=None, target=kind, config=None, official=None, out=file)
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether names, numbers and types are the same."""
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in wanted.items()
    )


def record(directory: Path) -> dict[str, Any]:
    """What a conversion says of itself."""
    found: dict[str, Any] = json.loads((directory / "conversion.json").read_text())
    return found
