"""The packed encoder against one example at a time, unpadded, in plain formulas; and in batches that lack something.

Shape suffixes: T tokens of one text, R regions of one image, Q queries, K keys, H width; x is a state by stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.examples import batch_of, double, of_blocks, shaken
from vlp.data.packing import join, pack
from vlp.models.attention import attend, spread, take
from vlp.models.blocks import BlockConfig, rows_of
from vlp.models.model import ModelConfig, Network
from vlp.types import Batch

SELF, CROSS, JOINT = ["self", "ffn"], ["cross", "ffn"], ["joint", "ffn"]
OTHER = {"text": "image", "image": "text"}
DISTANCES = {"text": 3, "rows": 2, "columns": 3, "prefix": 1}
WIDER = {"width": 24, "heads": 4, "ffn": 20, "activation": "relu"}

ENCODERS: dict[str, ModelConfig] = {
    "one stream": of_blocks({"stream": "both", "repeat": 2, "sublayers": JOINT, "share": JOINT}),
    "one stream, ffn per modality": of_blocks({"stream": "both", "repeat": 2, "sublayers": JOINT, "share": ["joint"]}),
    "one stream, attention per modality": of_blocks({"stream": "both", "sublayers": JOINT, "share": ["ffn"]}),
    "one stream, nothing shared": of_blocks({"stream": "both", "repeat": 2, "sublayers": JOINT}),
    "towers, then one cross for both": of_blocks(
        {"stream": "text", "repeat": 2, "sublayers": SELF},
        {"stream": "image", "sublayers": SELF, "activation": "relu", "heads": 4},
        {"stream": "both", "repeat": 2, "sublayers": ["cross", "self", "ffn"], "share": ["cross"]},
    ),
    "two widths, cross of its own": of_blocks(
        {"stream": "text", "sublayers": SELF},
        {"stream": "both", "sublayers": CROSS},
        {"stream": "both", "sublayers": SELF},
        {"stream": "both", "sublayers": CROSS},
        image_layer=WIDER,
    ),
    "cross after self": of_blocks({"stream": "both", "repeat": 2, "sublayers": ["self", "cross", "ffn"]}),
    "text looks at the image": of_blocks(
        {"stream": "image", "sublayers": SELF}, {"stream": "text", "repeat": 2, "sublayers": ["self", "cross", "ffn"]}
    ),
    "self shared": of_blocks({"stream": "both", "sublayers": SELF, "share": SELF}),
    "joint between towers": of_blocks(
        {"stream": "both", "sublayers": JOINT, "share": JOINT},
        {"stream": "text", "sublayers": SELF},
        {"stream": "both", "sublayers": JOINT, "share": JOINT},
        {"stream": "both", "sublayers": CROSS},
    ),
    "towers of two widths, bridged to a third": of_blocks(
        {"stream": "text", "sublayers": SELF},
        {"stream": "image", "sublayers": [*SELF, "norm"]},
        {"stream": "both", "linear": 20, "add": {"kind": "modality", "rows": 3, "image": 2}},
        {"stream": "both", "sublayers": ["self", "cross", "ffn"]},
        {"stream": "text", "linear": 12},
        image_layer=WIDER,
    ),
    "co-attention of a width of its own, grouped": of_blocks(
        {
            "repeat": 2,
            "blocks": [
                {"stream": "both", "sublayers": CROSS, "attention_width": 30, "heads": 3},
                {"stream": "both", "sublayers": SELF},
            ],
        },
        image_layer=WIDER,
    ),
    "joint over two widths": of_blocks(
        {"stream": "both", "sublayers": JOINT, "attention_width": 8, "heads": 2}, image_layer=WIDER
    ),
    "inner norms and scales": of_blocks(
        {"stream": "both", "add": "modality"},
        {"stream": "both", "sublayers": JOINT, "share": ["joint"], "inner_norm": True, "layer_scale": 0.3},
        {"stream": "both", "sublayers": JOINT, "inner_norm": True},
        {"stream": "both", "sublayers": ["norm"], "share": ["norm"]},
    ),
    "queries, keys and values without bias": of_blocks({"stream": "both", "sublayers": JOINT, "qkv_bias": False}),
    "one set of weights, three times": of_blocks(
        {"stream": "both", "repeat": 3, "sublayers": JOINT, "share": JOINT, "one_set": True},
        {"stream": "text", "repeat": 2, "sublayers": SELF, "activation": "silu"},
    ),
    "attention that knows distances": of_blocks(
        {"stream": "text", "sublayers": SELF, "relative": DISTANCES},
        {"stream": "image", "sublayers": SELF, "relative": DISTANCES},
        {"stream": "both", "repeat": 2, "sublayers": JOINT, "share": JOINT, "relative": DISTANCES},
        {"stream": "both", "sublayers": JOINT, "share": ["ffn"], "relative": DISTANCES},
    ),
}
NORMS = ("post", "pre")
SIZES = [(3, 4), (7, 1), (5, 0), (2, 6), (4, None), (6, 3)]


def encoder_config(name: str, norm: str, **settings: Any) -> ModelConfig:
    """One of ENCODERS with all norms where they are said to be."""
    config = ENCODERS[name]
    blocks = tuple(block.model_copy(update={"norm": norm}) for block in rows_of(config.encoder))
    return config.model_copy(update={"encoder": blocks, **settings})


def model_of(config: ModelConfig) -> Network:
    model = shaken(Network(config))
    assert isinstance(model, Network)
    return model


# ------------------------------------------------------------------- (a) one example at a time, in plain formulas


class Plain:
    """The encoder on one example, from its weights by name."""

    def __init__(self, model: Network) -> None:
        self.weights = model.encoder.state_dict()
        self.runs: list[tuple[int, BlockConfig]] = []
        number = 0
        for block in rows_of(model.config.encoder):
            for _ in range(block.repeat):
                self.runs.append((number, block))
                number += not block.one_set
            number += block.one_set
        self.layers = {"text": model.config.layer("text"), "image": model.config.layer("image")}

    def __call__(self, text_TH: Tensor, image_RH: Tensor) -> dict[str, Tensor]:
        x = {"text": text_TH, "image": image_RH}
        for number, block in self.runs:
            for s in block.streams if block.linear else ():
                x[s] = self._linear(x[s], f"blocks.{number}.linear.{s}")
            for s in block.streams if block.add else ():
                x[s] = x[s] + self.weights[f"blocks.{number}.modality.table.weight"][getattr(block.add, s)]
            before = dict(x)
            for name in block.sublayers:
                x = x | {s: self._sublayer(number, block, name, s, x, before) for s in block.streams}
        return x

    def _sublayer(
        self, number: int, block: BlockConfig, name: str, stream: str, x: dict[str, Tensor], before: dict[str, Tensor]
    ) -> Tensor:
        def prefix(s: str) -> str:
            return f"blocks.{number}.sublayers.{name}.weights.{'both' if name in block.share else s}"

        layer = block.layer(self.layers[stream])  # type: ignore[index]
        own = prefix(stream)

        def enter(s: str) -> Tensor:
            return self._norm(x[s], prefix(s), layer.eps) if layer.norm == "pre" else x[s]

        if name == "norm":
            return self._norm(x[stream], own, layer.eps)
        if name == "ffn":
            active = ACTIVE[layer.activation](self._linear(enter(stream), f"{own}.up"))
            update = self._linear(self._inner(active, own, block, layer.eps), f"{own}.down")
        else:
            if name == "cross":
                looked_at = [(before[OTHER[stream]], own)]
            else:
                looked_at = [(enter(s), prefix(s)) for s in (("text", "image") if name == "joint" else (stream,))]
            keys = torch.cat([self._linear(y, f"{p}.attention.key_value") for y, p in looked_at])
            query = self._linear(enter(stream), f"{own}.attention.query")
            bias = self._bias(number, block, name, stream, x) if block.relative and name != "cross" else None
            seen = self._look(query, *keys.split(query.shape[1], dim=1), layer.heads, bias)
            update = self._linear(self._inner(seen, own, block, layer.eps), f"{own}.attention.output")
        if block.layer_scale is not None:
            update = update * self.weights[f"{own}.scale.gain"]
        total = x[stream] + update
        return total if layer.norm == "pre" else self._norm(total, own, layer.eps)

    def _look(self, query_QH: Tensor, key_KH: Tensor, value_KH: Tensor, heads: int, bias_QKA: Tensor | None) -> Tensor:
        if len(key_KH) == 0:
            return torch.zeros_like(query_QH)
        parts = []
        for head, (q, k, v) in enumerate(
            zip(*(y.chunk(heads, dim=1) for y in (query_QH, key_KH, value_KH)), strict=True)
        ):
            score_QK = q @ k.T / q.shape[1] ** 0.5
            weight_QK = torch.exp(score_QK if bias_QKA is None else score_QK + bias_QKA[..., head])
            parts.append(weight_QK / weight_QK.sum(1, keepdim=True) @ v)
        return torch.cat(parts, dim=1)

    def _bias(self, number: int, block: BlockConfig, name: str, stream: str, x: dict[str, Tensor]) -> Tensor:
        """The bias of each query of a stream on each key, [Q, K, A], pair by pair."""
        table = self.weights[f"blocks.{number}.sublayers.{name}.relative.table"]
        keys = [(s, place) for s in (("text", "image") if name == "joint" else (stream,)) for place in range(len(x[s]))]
        rows = [[kind_of((stream, place), key) for key in keys] for place in range(len(x[stream]))]
        return table[torch.tensor(rows, dtype=torch.int64).view(len(rows), len(keys))]

    def _inner(self, seen: Tensor, own: str, block: BlockConfig, eps: float) -> Tensor:
        return self._norm(seen, own, eps, "inner_norm") if block.inner_norm else seen

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", torch.zeros(1).to(x))

    def _norm(self, x: Tensor, name: str, eps: float, norm: str = "norm") -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
        return scaled * self.weights[f"{name}.{norm}.weight"] + self.weights[f"{name}.{norm}.bias"]


ACTIVE = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def kind_of(query: tuple[str, int], key: tuple[str, int]) -> int:
    """The kind of distance between two tokens, counted by hand for DISTANCES: 5 of words, 15 of cells, 5 others."""
    (query_stream, q), (key_stream, k) = query, key
    match query_stream, key_stream:
        case "text", "text":
            return max(-2, min(2, q - k)) + 2
        case "text", "image":
            return 23
        case "image", "text":
            return 24
    if q == 0 or k == 0:
        return {(False, True): 20, (True, False): 21, (True, True): 22}[q == 0, k == 0]
    (row, column), (other_row, other_column) = divmod(q - 1, 3), divmod(k - 1, 3)
    return 5 + (row - other_row + 1) * 5 + (column - other_column + 2)


def streams_of(config: ModelConfig, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random states for the encoder, float64."""
    draw = torch.Generator().manual_seed(seed)
    tokens = {"text": batch.text.packing.tokens, "image": batch.image.packing.tokens}
    text, image = (
        torch.randn(tokens[s], config.layer(s).width, generator=draw, dtype=torch.float64)  # type: ignore[arg-type, index]
        for s in ("text", "image")
    )
    return text, image


def by_example(states: Tensor, lengths: tuple[int, ...]) -> Iterator[Tensor]:
    yield from states.split(list(lengths))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ENCODERS)
def test_packed_encoder_is_the_plain_formula_on_each_example(name: str, norm: str) -> None:
    config = encoder_config(name, norm)
    model = model_of(config).double().eval()
    batch = batch_of(SIZES)
    text_NH, image_MH = streams_of(config, batch)
    found_text, found_image, _ = model.encoder(text_NH, image_MH, batch)
    lengths = batch.text.packing.lengths, batch.image.packing.lengths
    plain = Plain(model)
    wanted = [plain(t, i) for t, i in zip(*(map(by_example, (text_NH, image_MH), lengths)), strict=True)]
    torch.testing.assert_close(found_text, torch.cat([x["text"] for x in wanted]), atol=1e-10, rtol=0)
    torch.testing.assert_close(found_image, torch.cat([x["image"] for x in wanted]), atol=1e-10, rtol=0)
    assert found_text.shape != text_NH.shape or (found_text - text_NH).abs().max() > 0.1


# ------------------------------------------------------------------------- (b) the two implementations of attention


def outcome(model: Network, batch: Batch) -> dict[str, Tensor]:
    """Outputs and the gradients of all parameters for a loss that weighs every output differently."""
    model.zero_grad()
    encoded = model(batch)
    outputs = {"text": encoded.text_NH, "image": encoded.image_MH, "pooled": encoded.pooled_BH}
    loss = sum((y * torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)).sum() for y in outputs.values())
    assert isinstance(loss, Tensor)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        outputs[f"d {name}"] = parameter.grad
    return {name: y.detach().clone() for name, y in outputs.items()}


@pytest.mark.parametrize(
    "name",
    ["one stream", "one stream, nothing shared", "towers, then one cross for both", "attention that knows distances"],
)
@pytest.mark.parametrize("sizes", [SIZES, [(4, 3)] * 3], ids=["uneven", "even"])
def test_reference_attention_equals_the_fused_kernel(name: str, sizes: list[tuple[int, int | None]]) -> None:
    batch = batch_of(sizes)
    model = model_of(encoder_config(name, "post"))
    slow = model_of(encoder_config(name, "post", attention="reference"))
    fast, plain = outcome(model, batch), outcome(slow, batch)
    for part in ("text", "image", "pooled"):
        assert (fast[part] - plain[part]).norm() < 1e-6 * plain[part].norm()
    # A part of the gradient that nearly cancels holds the rounding of what cancelled: measured against all of it.
    gradients = [torch.cat([y.flatten() for part, y in run.items() if part.startswith("d ")]) for run in (fast, plain)]
    assert (gradients[0] - gradients[1]).abs().max() < 1e-6 * gradients[1].norm()  # measured: 2e-7
    sharp = outcome(model.double(), double(batch)), outcome(slow.double(), double(batch))
    for part in fast:
        torch.testing.assert_close(sharp[0][part], sharp[1][part], atol=1e-11, rtol=0)


# ------------------------------------------------------------------------------ (c) batches that lack something


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_without_examples_gives_every_parameter_a_zero_gradient(name: str) -> None:
    found = outcome(model_of(encoder_config(name, "post")), batch_of([]))
    assert len(found["text"]) == len(found["image"]) == len(found["pooled"]) == 0
    assert all((y == 0).all() for y in found.values())


@pytest.mark.parametrize("missing", [None, 0], ids=["text only", "no regions"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_without_images_gives_every_parameter_a_finite_gradient(
    name: str, norm: str, missing: int | None
) -> None:
    found = outcome(model_of(encoder_config(name, norm)), batch_of([(3, missing), (5, missing)]))
    assert len(found["image"]) == 0
    assert all(torch.isfinite(y).all() for y in found.values())
    assert all((y == 0).all() for part, y in found.items() if part.startswith("d image."))
    assert any((y != 0).any() for part, y in found.items() if part.startswith("d encoder."))


# ------------------------------------------------------------------------------------ (d) backward of the packing


def random_double(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)


def test_backward_of_spreading_and_collecting_rows() -> None:
    packing = pack([2, 0, 3, 1])
    size = len(packing) * packing.longest
    rows = packing.rows_N
    assert torch.autograd.gradcheck(lambda x: spread(x, rows, size), random_double(6, 2))
    assert torch.autograd.gradcheck(lambda x: take(x, rows), random_double(size, 2))
    _, joint_rows_J, split_rows_J = join(packing, pack([1, 2, 0, 2]))
    assert torch.autograd.gradcheck(lambda x: take(x, joint_rows_J), random_double(11, 2))
    torch.testing.assert_close(take(take(x := random_double(11, 2), joint_rows_J), split_rows_J), x)


@pytest.mark.parametrize("implementation", ["sdpa", "reference"])
def test_backward_of_attention_over_packed_rows(implementation: Any) -> None:
    queries, keys = pack([2, 1, 0, 2]), pack([1, 0, 2, 3])
    inputs = random_double(5, 2, 3), random_double(6, 2, 3), random_double(6, 2, 3)

    def looked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, queries, keys, implementation=implementation)

    assert torch.autograd.gradcheck(looked, inputs)
