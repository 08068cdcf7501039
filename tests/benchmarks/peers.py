"""The transformers library's models beside ours: the same weights, by way of `vlp convert`, and the same batch, padded.

Shape suffixes: B examples; T longest text; R most image tokens; N, M packed text and image tokens; D feature width.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from vlp.models.convert.checkpoint import convert_from, read_checkpoint
from vlp.models.convert.family import read_official
from vlp.models.convert.registry import family_of
from vlp.types import Batch, FramedBatch, Packing, PixelBatch, RegionBatch

Size = Literal["tiny", "small", "base"]
Sized = Mapping[Size, Mapping[str, int]]
"""Settings by size; base is the library's own defaults."""
Inputs = dict[str, Any]
WIDTHS: Sized = {
    "tiny": {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {},
}
"""Tiny as our shipped tiny models; small is half as wide as base, and half as deep."""
ONE_STACK: Sized = {"tiny": {"num_hidden_layers": 3}, "small": {"num_hidden_layers": 6}, "base": {}}
"""Layers of a model that has one stack of them."""
FEATURES, CLASSES, ATTRIBUTES = 2048, 1600, 400
VISUAL_WEIGHT = 6.67
"""What LXMERT's class there multiplies the losses of regions by."""
IGNORED = -100


class Peer(ABC):
    """One of the library's classes. It is trained and run as its documentation shows: padded batches with masks.

    Args:
        size: of the model.
        dropout: of units and of attention weights.
    """

    kind: ClassVar[str]
    """The name of its checkpoints at `vlp convert`."""
    depths: ClassVar[Sized]
    """How many layers it has."""

    def __init__(self, size: Size = "base", dropout: float = 0.1) -> None:
        habits = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        self.model: Any = self.make({**WIDTHS[size], **self.depths[size], **habits})

    @abstractmethod
    def make(self, settings: dict[str, Any]) -> Any:
        """The library's model."""

    @abstractmethod
    def inputs(self, batch: Batch) -> Inputs:
        """A batch padded, with masks; on the model's device and in its type."""

    @abstractmethod
    def labels(self, batch: Batch) -> Inputs:
        """The targets of a batch as the class takes them."""

    @abstractmethod
    def states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled vectors [B, H], text states [B, T, H] and image states [B, R, H]."""

    def loss(self, given: Inputs) -> Tensor:
        """Of inputs and labels together."""
        loss: Tensor = self.model(**given).loss
        return loss

    def converted(self, folder: Path) -> Path:
        """A directory of our model with these weights."""
        state = {name: tensor.clone().contiguous() for name, tensor in self.model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.model.config.to_dict(), default=str))
        family, official = family_of(self.kind, "--from"), read_official(folder / "config.json")
        checkpoint = read_checkpoint(folder / "model.safetensors")
        config, counts = family.config(official), family.counts(official)
        convert_from(self.kind, family, checkpoint, config, counts, folder / "ours")
        return folder / "ours"

    def placed(self, tensors: Mapping[str, Tensor]) -> Inputs:
        """Tensors where the model is, floating ones in its type."""
        where, kind = self.model.device, self.model.dtype
        return {n: t.to(where, kind if t.is_floating_point() else None) for n, t in tensors.items()}

    def _text(self, batch: Batch) -> dict[str, Tensor]:
        text = batch.text
        return {
            "input_ids": padded(text.ids_N, text.packing),
            "attention_mask": valid(text.packing),
            "token_type_ids": padded(text.segments_N, text.packing),
        }


class VisualBert(Peer):
    """`VisualBertForPreTraining`: masked words, and whether image and text belong together."""

    kind = "hf-visualbert"
    depths = ONE_STACK

    def make(self, settings: dict[str, Any]) -> Any:
        config = transformers.VisualBertConfig(**settings, visual_embedding_dim=FEATURES)
        return transformers.VisualBertForPreTraining(config)

    def inputs(self, batch: Batch) -> Inputs:
        regions = batch.image
        assert isinstance(regions, RegionBatch)
        mask_BR = valid(regions.packing)
        image = {
            "visual_embeds": padded(regions.features_MD, regions.packing),
            "visual_attention_mask": mask_BR,
            "visual_token_type_ids": torch.ones_like(mask_BR),
        }
        return self.placed({**self._text(batch), **image})

    def labels(self, batch: Batch) -> Inputs:
        words_BT = masked_words(batch)
        regions_BR = words_BT.new_full((len(batch), batch.image.packing.longest), IGNORED)
        labels = {"labels": torch.cat([words_BT, regions_BR], 1), "sentence_image_labels": 1 - matched(batch)}
        return self.placed(labels)

    def states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        out = self.model.visual_bert(**inputs)
        sizes = [inputs["input_ids"].shape[1], inputs["visual_embeds"].shape[1]]
        text_BTH, image_BRH = out.last_hidden_state.split(sizes, dim=1)
        return out.pooler_output, text_BTH, image_BRH


class Lxmert(Peer):
    """`LxmertForPreTraining` without its questions: masked words, matching, and classes, attributes and features of
    regions."""

    kind = "hf-lxmert"
    depths: ClassVar[Sized] = {
        "tiny": {"l_layers": 1, "r_layers": 1, "x_layers": 2},
        "small": {"l_layers": 4, "r_layers": 3, "x_layers": 3},
        "base": {},
    }

    def make(self, settings: dict[str, Any]) -> Any:
        counts = {"num_object_labels": CLASSES, "num_attr_labels": ATTRIBUTES, "visual_feat_dim": FEATURES}
        config = transformers.LxmertConfig(**settings, **counts, task_qa=False, visual_loss_normalizer=VISUAL_WEIGHT)
        return transformers.LxmertForPreTraining(config)

    def inputs(self, batch: Batch) -> Inputs:
        regions = batch.image
        assert isinstance(regions, RegionBatch)
        image = {
            "visual_feats": padded(regions.features_MD, regions.packing),
            "visual_pos": padded(regions.boxes_M4, regions.packing),
            "visual_attention_mask": valid(regions.packing),
        }
        return self.placed({**self._text(batch), **image})

    def labels(self, batch: Batch) -> Inputs:
        words = {"labels": masked_words(batch), "matched_label": matched(batch)}
        return {**self.placed(words), "obj_labels": {name: self._regions(batch, name) for name in _GUESSED}}

    def _regions(self, batch: Batch, name: str) -> tuple[Tensor, Tensor]:
        """Labels, and weights by which its mean over all places is that over real regions."""
        targets, packing = batch.targets[name], batch.image.packing
        label_M = targets.values[_GUESSED[name]]
        weight_K = targets.values.get("confidence", torch.ones(len(label_M)))
        places_K = packing.rows_N[targets.positions_K]
        slots = len(packing) * packing.longest
        labels = label_M.new_zeros(slots, *label_M.shape[1:]).index_copy_(0, places_K, label_M)
        weights = torch.zeros(slots).index_copy_(0, places_K, weight_K * slots / targets.count)
        where, kind = self.model.device, self.model.dtype
        return labels.to(where, kind if labels.is_floating_point() else None), weights.to(where)

    def states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        out = self.model.lxmert(**inputs)
        return out.pooled_output, out.language_output, out.vision_output


_GUESSED = {"obj": "class", "attr": "class", "feat": "feature"}
"""What is guessed of regions, and the values of its targets."""


class Vilt(Peer):
    """`ViltForMaskedLM`: masked words beside square pictures."""

    kind = "hf-vilt"
    depths = ONE_STACK

    def make(self, settings: dict[str, Any]) -> Any:
        return transformers.ViltForMaskedLM(transformers.ViltConfig(**settings))

    def inputs(self, batch: Batch) -> Inputs:
        assert isinstance(batch.image, FramedBatch)
        pixels = batch.image.tokens
        assert isinstance(pixels, PixelBatch)
        values_P3HW = (pixels.pixels_P3HW.float() / 255 - 0.5) / 0.5
        mask_PHW = torch.ones(len(values_P3HW), *values_P3HW.shape[2:], dtype=torch.int64)
        return self.placed({**self._text(batch), "pixel_values": values_P3HW, "pixel_mask": mask_PHW})

    def labels(self, batch: Batch) -> Inputs:
        return self.placed({"labels": masked_words(batch)})

    def states(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        out = self.model.vilt(**inputs)
        longest = inputs["input_ids"].shape[1]
        return out.pooler_output, out.last_hidden_state[:, :longest], out.last_hidden_state[:, longest:]


PEERS: Mapping[str, type[Peer]] = {"visualbert": VisualBert, "lxmert": Lxmert, "vilt": Vilt}


def peer_of(name: str, size: Size = "base", dropout: float = 0.1) -> Peer:
    """One of PEERS, with the same random weights in every process."""
    torch.manual_seed(0)
    return PEERS[name](size, dropout)


def padded(x_N: Tensor, packing: Packing, fill: float = 0) -> Tensor:
    """[N, ...] as [B, longest, ...]."""
    flat = x_N.new_full((len(packing) * packing.longest, *x_N.shape[1:]), fill)
    return flat.index_copy_(0, packing.rows_N, x_N).unflatten(0, (len(packing), packing.longest))


def valid(packing: Packing) -> Tensor:
    """1 at real tokens, int64 [B, longest]."""
    return (torch.arange(packing.longest) < packing.lengths_B[:, None]).long()


def masked_words(batch: Batch) -> Tensor:
    """The hidden words, int64 [B, T]; what is not hidden is ignored."""
    targets, packing = batch.targets["mlm"], batch.text.packing
    flat = torch.full((len(packing) * packing.longest,), IGNORED)
    flat[packing.rows_N[targets.positions_K]] = targets.values["token"]
    return flat.view(len(packing), packing.longest)


def matched(batch: Batch) -> Tensor:
    """Whether each pair belongs together, int64 [B]."""
    return batch.targets["itm"].values["matched"]
