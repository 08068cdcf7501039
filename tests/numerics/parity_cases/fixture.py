"""A folder of official numbers, and what all families need to be compared with theirs.

A folder holds `config.json` (the authors' config and ours of the fixture), `tiny.safetensors` (weights under official
names), `io.safetensors` (`in.<case>.<name>` and `out.<case>.<name>` in float32), `out_f64.safetensors` (the outputs in
float64) and `grads.json` (norm and sum of each parameter's gradient).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.examples import Words
from vlp.data.batch import collate
from vlp.models.convert.account import Plan, plan_of
from vlp.models.convert.checkpoint import convert_from, read_checkpoint, to_theirs
from vlp.models.convert.family import Official, read_official
from vlp.models.convert.registry import family_of
from vlp.models.image import images_of
from vlp.models.model import ModelConfig, Network
from vlp.models.streams import States
from vlp.objectives.objective import Facts
from vlp.types import Batch, Encoded, Example, ImageInput, Packing, RegionBatch, RegionInput, Targets


@dataclass
class Ours:
    """A result of ours in the layout of the official one."""

    value: Tensor
    valid: Tensor | None = None
    """True where the official numbers mean something, on the leading axes; None for everywhere."""


Results = dict[str, Ours]


class Fixture:
    """One folder, its numbers in one precision."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.directory, self.dtype = directory, dtype
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        self.weights = load_file(directory / "tiny.safetensors")
        extra = directory / "extra.safetensors"
        self.extra = load_file(extra) if extra.is_file() else {}
        io = load_file(directory / "io.safetensors")
        self.inputs = {name.removeprefix("in."): tensor for name, tensor in io.items() if name.startswith("in.")}
        self.wanted_f32 = {name: tensor for name, tensor in io.items() if name.startswith("out.")}
        twin = directory / "out_f64.safetensors"
        self.wanted_f64 = load_file(twin) if twin.is_file() else {}
        self.gradients = _gradients(directory / "grads.json")

    def __getitem__(self, name: str) -> Tensor:
        """An input; floats in this fixture's precision."""
        tensor = self.inputs[name]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def has(self, name: str) -> bool:
        return name in self.inputs

    @property
    def official(self) -> Official:
        return read_official(self.directory / "config.json")

    def model(
        self, source: str, weights: Mapping[str, Tensor] | None = None, official: Official | None = None
    ) -> Network:
        """A model of ours with these official weights, by way of `vlp convert`."""
        family, given = family_of(source, "--from"), official or self.official
        with TemporaryDirectory() as folder:
            file, out = Path(folder) / "weights.safetensors", Path(folder) / "model"
            save_file(dict(self.weights if weights is None else weights), file)
            convert_from(source, family, read_checkpoint(file), family.config(given), family.counts(given), out)
            return Network.from_pretrained(out).to(self.dtype)


def _gradients(path: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Norm and sum of each parameter's gradient, by loss; a case's name before a parameter's is left out."""
    if not path.is_file():
        return {}
    return {
        loss: {name.split(":")[-1]: (norm, total) for name, (norm, total) in grads.items()}
        for loss, grads in json.loads(path.read_text()).items()
    }


@dataclass
class Losses:
    """Losses of a run with their graphs, by the name of the official output."""

    model: Network
    source: str
    """The kind of checkpoint, which says what our parameters are called there."""
    values: dict[str, Tensor] = field(default_factory=dict)

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Gradients of one loss under official names."""
        own = dict(self.model.named_parameters())
        found = torch.autograd.grad(self.values[name], list(own.values()), retain_graph=True, allow_unused=True)
        grads = {
            key: torch.zeros_like(own[key]) if grad is None else grad for key, grad in zip(own, found, strict=True)
        }
        return to_theirs(self.plan, grads)

    @property
    def plan(self) -> Plan:
        return plan_of(family_of(self.source, "--from"), self.model.config, "model")


# --------------------------------------------------------------------------------------------------------- inputs


def facts(config: ModelConfig) -> Facts:
    return Facts(config, Words())  # type: ignore[arg-type]


def region_input(features_RD: Tensor, hidden_R: Tensor | None = None, aligned_RA: Tensor | None = None) -> RegionInput:
    """Regions without their boxes, which `with_boxes` puts in."""
    return RegionInput(
        features_RD=features_RD.numpy().astype(np.float32),
        boxes_R4=np.zeros((len(features_RD), 4), np.float32),
        hidden_R=None if hidden_R is None else hidden_R.bool().numpy(),
        aligned_RA=None if aligned_RA is None else aligned_RA.numpy(),
    )


def make_batch(
    config: ModelConfig,
    texts: Sequence[Tensor],
    images: Sequence[ImageInput | None],
    dtype: torch.dtype,
    segments: Sequence[Tensor] | None = None,
) -> Batch:
    """Texts (token ids) and images as a packed batch."""
    examples = []
    for row, (ids, image) in enumerate(zip(texts, images, strict=True)):
        nothing = np.zeros(len(ids), np.int64)
        segment_T = None if segments is None else segments[row].numpy()
        examples.append(Example(str(row), ids.numpy(), nothing.astype(bool), nothing, image, segment_T=segment_T))
    return collate(examples, images_of(config.image).form, {}).to("cpu", dtype)


def with_boxes(batch: Batch, boxes: Sequence[Tensor]) -> Batch:
    """The batch with these boxes, in the precision that they have."""
    image = batch.image if isinstance(batch.image, RegionBatch) else batch.image.tokens  # type: ignore[union-attr]
    regions = replace(image, boxes_M4=torch.cat(list(boxes)))
    framed = regions if isinstance(batch.image, RegionBatch) else replace(batch.image, tokens=regions)
    return replace(batch, image=framed)


def valid_rows(x_BL: Tensor, lengths_B: Tensor) -> list[Tensor]:
    """The first rows of each example."""
    return [x[:length] for x, length in zip(x_BL, lengths_B.tolist(), strict=True)]


@contextmanager
def box_numbers_given(model: Network, numbers: Sequence[Tensor]) -> Iterator[None]:
    """Project these numbers instead of those made from the boxes, which must agree but for rounding in float32."""
    given = torch.cat(list(numbers))
    linear: nn.Module = model.image.parts["box"].linear  # type: ignore[assignment]

    def swap(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        torch.testing.assert_close(args[0], given, atol=1e-6, rtol=0)
        return (given,)

    handle = linear.register_forward_pre_hook(swap)
    try:
        yield
    finally:
        handle.remove()


# --------------------------------------------------------------------------------------------------------- states


@dataclass
class Seen:
    """A batch on its way through the model."""

    batch: Batch
    encoded: Encoded
    text_NH: Tensor
    image_MH: Tensor
    layers: list[dict[str, Tensor]]
    """Both streams behind each block."""

    def text(self, states_NH: Tensor, length: int) -> Ours:
        return padded(states_NH, self.batch.text.packing, length)

    def image(self, states_MH: Tensor, length: int) -> Ours:
        return padded(states_MH, self.batch.image.packing, length)

    def joint(self, text_NH: Tensor, image_MH: Tensor, length: int) -> Ours:
        """Text followed by image, example by example."""
        rows = torch.cat([text_NH, image_MH]).index_select(0, self.batch.joint_rows_J)
        return padded(rows, self.batch.joint, length)

    def side_by_side(self, text_NH: Tensor, image_MH: Tensor, text: int, image: int) -> Ours:
        """Padded text followed by padded image."""
        parts = self.text(text_NH, text), self.image(image_MH, image)
        valid = [part.valid for part in parts if part.valid is not None]
        return Ours(torch.cat([part.value for part in parts], dim=1), torch.cat(valid, dim=1))


def watch(model: Network, batch: Batch) -> Seen:
    """Run the model and keep what passes between its parts."""
    layers: list[dict[str, Tensor]] = []
    embedded: dict[str, Tensor] = {}

    def behind_block(module: nn.Module, args: tuple[States], output: None) -> None:
        layers.append(dict(args[0].apart()))

    handles = [block.register_forward_hook(behind_block) for block in model.encoder.blocks]
    handles.append(model.text.register_forward_hook(lambda m, a, out: embedded.update(text=out)))
    handles.append(model.image.register_forward_hook(lambda m, a, out: embedded.update(image=out[0])))
    try:
        encoded = model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return Seen(batch, encoded, embedded["text"], embedded["image"], layers)


def padded(states_NH: Tensor, packing: Packing, length: int) -> Ours:
    """Packed states as [B, length, ...], and where they lie."""
    value = states_NH.new_zeros(len(packing), length, *states_NH.shape[1:])
    valid = torch.arange(length)[None, :] < packing.lengths_B[:, None]
    value[valid] = states_NH.detach()
    return Ours(value, valid)


def stacked(layers: Sequence[Ours]) -> Ours:
    """Layers on axis 0."""
    valid = layers[0].valid
    assert valid is not None
    return Ours(torch.stack([layer.value for layer in layers]), valid.expand(len(layers), *valid.shape))


def positions_of(mask_BL: Tensor, packing: Packing) -> Tensor:
    """Packed rows of the padded places that are marked, row by row."""
    return torch.cat(
        [start + row.nonzero().flatten() for row, start in zip(mask_BL, packing.starts_B1[:-1].tolist(), strict=False)]
    )


def targets(positions_K: Tensor, count: float | None = None, **values: Tensor) -> Targets:
    return Targets(positions_K, values, float(len(positions_K)) if count is None else count)
