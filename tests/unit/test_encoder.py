"""The vocabulary of blocks: what it builds, what it shares, what it refuses. Its arithmetic is in tests/numerics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.examples import batch_of, of_blocks, shaken
from vlp.errors import ConfigError
from vlp.models.model import Network
from vlp.models.streams import States

SELF, JOINT = ["self", "ffn"], ["joint", "ffn"]


def test_repeat_writes_blocks_out_with_weights_of_their_own() -> None:
    model = Network(of_blocks({"stream": "text", "repeat": 3, "sublayers": SELF}))
    assert len(model.encoder.blocks) == 3
    weights = [p for name, p in model.encoder.named_parameters() if name.endswith("up.weight")]
    assert len({id(p) for p in weights}) == 3
    assert not torch.equal(weights[0], weights[1])


def test_share_decides_who_owns_weights() -> None:
    both = of_blocks({"stream": "both", "sublayers": ["cross", "self", "ffn"], "share": ["cross"]})
    owners = {tuple(name.split(".")[3:6:2]) for name in Network(both).encoder.state_dict() if "norm.weight" in name}
    assert owners == {("cross", "both"), ("self", "text"), ("self", "image"), ("ffn", "text"), ("ffn", "image")}


def test_a_block_of_one_stream_leaves_the_other_alone() -> None:
    model = shaken(Network(of_blocks({"stream": "text", "sublayers": SELF})))
    batch = batch_of([(4, 3), (3, 2)])
    text, image = torch.randn(7, 16), torch.randn(5, 16)
    new_text, new_image, _ = model.encoder(text, image, batch)
    assert torch.equal(new_image, image)
    assert not torch.equal(new_text, text)


def test_both_directions_of_a_cross_read_the_block_s_start() -> None:
    block = {"stream": "both", "sublayers": ["self", "cross"]}
    model = shaken(Network(of_blocks(block)))
    batch = batch_of([(4, 3)])
    text, image = torch.randn(4, 16), torch.randn(3, 16)
    wanted, _, _ = model.encoder(text, image, batch)
    with torch.no_grad():  # what self makes of the image must not matter to the text
        for name, parameter in model.encoder.named_parameters():
            if "self.weights.image" in name:
                parameter.mul_(2)
    found, other, _ = model.encoder(text, image, batch)
    assert torch.equal(found, wanted)
    assert not torch.equal(other, image)


def test_a_block_s_own_settings_stand_over_the_stream_s() -> None:
    config = of_blocks(
        {"stream": "both", "sublayers": ["ffn"], "ffn": 5, "norm": "pre", "eps": 0.5, "activation": "relu"},
        {"stream": "both", "sublayers": ["ffn"]},
        image_layer={"width": 8, "ffn": 6},
    )
    first, second = Network(config).encoder.blocks
    shapes = [
        {owner: tuple(module.up.weight.shape) for owner, module in block.sublayers["ffn"].weights.items()}
        for block in (first, second)
    ]
    assert shapes == [{"text": (5, 16), "image": (5, 8)}, {"text": (24, 16), "image": (6, 8)}]
    module = first.sublayers["ffn"].weights["text"]
    assert module.pre
    assert module.norm.eps == 0.5
    assert module.activation(torch.tensor(-1.0)) == 0


def test_taps_hold_the_streams_before_they_meet() -> None:
    tower = {"stream": "text", "sublayers": SELF}
    batch = batch_of([(4, 3), (3, None)])
    text, image = torch.randn(7, 16), torch.randn(3, 16)
    model = shaken(Network(of_blocks(tower, {"stream": "both", "sublayers": JOINT, "share": JOINT})))
    _, _, taps = model.encoder(text, image, batch)
    alone = shaken(Network(of_blocks(tower)))
    alone.encoder.load_state_dict({k: v for k, v in model.encoder.state_dict().items() if k.startswith("blocks.0.")})
    final, _, never_met = alone.encoder(text, image, batch)
    assert torch.equal(taps["text.unimodal"], final)
    assert torch.equal(taps["image.unimodal"], image)
    assert torch.equal(never_met["text.unimodal"], final)


def test_states_change_form_and_back() -> None:
    batch = batch_of([(2, 1), (3, None), (2, 2)])
    text, image = torch.arange(7.0)[:, None], 10 + torch.arange(3.0)[:, None]
    states = States(text, image, batch)
    assert states.joint().flatten().tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 11, 12]
    states.set_joint(-states.joint())
    assert torch.equal(states.apart()["text"], -text)
    assert torch.equal(states.apart()["image"], -image)


def test_dropout_is_on_in_training_only() -> None:
    config = of_blocks({"stream": "both", "sublayers": JOINT, "share": JOINT}, dropout=0.5, attention_dropout=0.5)
    model, batch = Network(config), batch_of([(4, 3)])
    torch.manual_seed(0)
    assert not torch.equal(model(batch).text_NH, model(batch).text_NH)
    model.eval()
    assert torch.equal(model(batch).text_NH, model(batch).text_NH)


def test_one_set_of_weights_runs_several_times() -> None:
    shared = of_blocks({"stream": "text", "repeat": 3, "sublayers": SELF, "one_set": True})
    model = shaken(Network(shared))
    assert len(model.encoder.blocks) == 1
    thrice = Network(of_blocks({"stream": "text", "repeat": 3, "sublayers": SELF}))
    one = model.encoder.blocks[0].state_dict()
    for block in thrice.encoder.blocks:
        block.load_state_dict(one)
    batch, text, image = batch_of([(4, 3)]), torch.randn(4, 16), torch.randn(3, 16)
    assert torch.equal(model.encoder(text, image, batch)[0], thrice.encoder(text, image, batch)[0])


def test_a_group_is_written_out_row_by_row() -> None:
    row = [{"stream": "text", "sublayers": ["ffn"]}, {"stream": "image", "repeat": 2, "sublayers": ["ffn"]}]
    model = Network(of_blocks({"repeat": 2, "blocks": row}))
    assert [block.config.stream for block in model.encoder.blocks] == ["text", "image", "image"] * 2


def test_a_linear_changes_the_width_of_what_follows() -> None:
    config = of_blocks(
        {"stream": "image", "linear": 16, "sublayers": ["ffn"]},
        {"stream": "both", "sublayers": JOINT, "share": JOINT},
        {"stream": "text", "linear": 6},
        image_layer={"width": 10, "heads": 2},
    )
    assert {stream: layer.width for stream, layer in config.final.items()} == {"text": 6, "image": 16}
    assert (config.width("text"), config.width("image"), config.width("example")) == (6, 16, 6)
    encoded = Network(config)(batch_of([(4, 3), (2, None)]))
    assert (encoded.text_NH.shape, encoded.image_MH.shape, encoded.pooled_BH.shape) == ((6, 6), (3, 16), (2, 6))


def test_modality_may_be_given_by_its_name_alone() -> None:
    short, long = (of_blocks({"stream": "both", "add": add}) for add in ("modality", {"kind": "modality"}))
    assert short == long
    model = shaken(Network(short))
    batch, text, image = batch_of([(4, 3)]), torch.zeros(4, 16), torch.zeros(3, 16)
    found_text, found_image, _ = model.encoder(text, image, batch)
    table = model.encoder.blocks[0].modality.table.weight
    assert torch.equal(found_text, table[:1].expand(4, -1))
    assert torch.equal(found_image, table[1:].expand(3, -1))


def test_layer_scale_starts_small_and_silences_the_block() -> None:
    block = {"stream": "text", "sublayers": SELF, "norm": "pre", "layer_scale": 1e-9}
    model = Network(of_blocks(block))
    batch, text = batch_of([(4, 3)]), torch.randn(4, 16)
    assert torch.equal(model.encoder.blocks[0].sublayers["ffn"].weights["text"].scale.gain, torch.full((16,), 1e-9))
    torch.testing.assert_close(model.encoder(text, torch.randn(3, 16), batch)[0], text)


def test_a_layer_s_own_drop_rates_stand_over_the_model_s() -> None:
    config = of_blocks(
        {"stream": "both", "sublayers": ["ffn"]},
        text_layer={"dropout": 0.9, "attention_dropout": 0.5},
        image_layer={"dropout": None},
        dropout=0.2,
        attention_dropout=0.3,
    )
    text, image = Network(config).encoder.blocks[0].sublayers["ffn"].weights.values()
    assert (text.habits.dropout, text.habits.attention_dropout) == (0.9, 0.5)
    assert (image.habits.dropout, image.habits.attention_dropout) == (0.2, 0.5)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "share of a stranger": (
        {"stream": "both", "sublayers": SELF, "share": ["joint"]},
        {},
        r"encoder.0: share names 'joint', which is not among the sublayers",
    ),
    "joint of one stream": ({"stream": "text", "sublayers": JOINT}, {}, "share and joint need stream: both"),
    "a sublayer twice": ({"stream": "text", "sublayers": ["ffn", "ffn"]}, {}, "a sublayer stands twice in one block"),
    "no sublayer": (
        {"stream": "text", "sublayers": []},
        {},
        "encoder.0: a block needs sublayers, linear or add",
    ),
    "heads": ({"stream": "text", "sublayers": SELF, "heads": 3}, {}, "width 16 of the text stream .* by heads 3"),
    "shared widths": (
        {"stream": "both", "sublayers": SELF, "share": ["ffn"]},
        {"image_layer": {"width": 8}},
        r"encoder.0: share: ffn needs streams of one width, but text is 16 and image 8",
    ),
    "joint widths": (
        {"stream": "both", "sublayers": JOINT},
        {"image_layer": {"width": 8}},
        r"joint needs streams of one width, but text is 16 and image 8",
    ),
    "joint heads": (
        {"stream": "both", "sublayers": JOINT},
        {"image_layer": {"heads": 4}},
        r"joint needs one number of heads, but text has 2 and image 4",
    ),
    "shared ffn": (
        {"stream": "both", "sublayers": SELF, "share": ["ffn"]},
        {"image_layer": {"ffn": 6}},
        "share: ffn needs one ffn for both streams, but text has 24 and image 6",
    ),
    "shared heads": (
        {"stream": "both", "sublayers": SELF, "share": ["self"]},
        {"image_layer": {"heads": 4}},
        "share: self needs one heads for both streams, but text has 2 and image 4",
    ),
    "a linear that repeats": (
        {"stream": "text", "linear": 16, "repeat": 2},
        {},
        "encoder.0: linear cannot be repeated; write it as a block of its own",
    ),
    "a modality without a row": (
        {"stream": "both", "add": {"kind": "modality", "image": 2}},
        {},
        "row 2 needs a table of more than 2 rows",
    ),
    "modalities of two widths": (
        {"stream": "both", "add": "modality"},
        {"image_layer": {"width": 8}},
        "add needs streams of one width, but text is 16 and image 8",
    ),
    "distances without attention to itself": (
        {"stream": "both", "sublayers": ["cross"], "relative": {"text": 2, "rows": 2, "columns": 2}},
        {},
        "relative needs self or joint",
    ),
    "distances with two numbers of heads": (
        {"stream": "both", "sublayers": ["self"], "relative": {"text": 2, "rows": 2, "columns": 2}},
        {"image_layer": {"heads": 4}},
        "relative needs one number of heads",
    ),
    "an attention width": (
        {"stream": "text", "sublayers": ["self"], "attention_width": 9},
        {},
        "width 9 of attention_width is not divisible by heads 2",
    ),
    "a group's block": (
        {"repeat": 2, "blocks": [{"stream": "text", "sublayers": ["ffn"]}, {"stream": "text", "sublayers": JOINT}]},
        {},
        r"encoder\.0\.blocks\.1: share and joint need stream: both",
    ),
    "a group's block that does not fit": (
        {"repeat": 2, "blocks": [{"stream": "text", "sublayers": ["self"], "heads": 3}]},
        {},
        r"encoder\.0\.blocks\.0: width 16 of the text stream is not divisible by heads 3",
    ),
    "a group's unknown key": (
        {"repeat": 2, "blocks": [{"stream": "text", "sublayers": ["self"]}], "haeds": 3},
        {},
        r"unknown key 'encoder\.0\.haeds'",
    ),
    "stream's heads": (
        {"stream": "text", "sublayers": SELF},
        {"text_layer": {"heads": 3}},
        "width 16 of the text stream is not divisible by heads 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_blocks_that_cannot_be_are_refused_with_a_sentence(case: str) -> None:
    block, settings, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=sentence):
        of_blocks(block, **settings)


BLOCKS: dict[str, list[dict[str, Any]]] = {
    "one stream": [{"stream": "both", "repeat": 3, "sublayers": JOINT, "share": JOINT}],
    "two streams": [
        {"stream": "text", "sublayers": SELF},
        {"stream": "both", "repeat": 2, "sublayers": ["cross", "self", "ffn"], "share": ["cross"]},
        {"stream": "both", "sublayers": JOINT, "share": JOINT},
        {"stream": "both", "sublayers": JOINT},
    ],
}


def kept_and_gradients(blocks: list[dict[str, Any]], checkpointing: bool) -> tuple[int, list[torch.Tensor]]:
    """Bytes that the encoder keeps for backward, and the gradients, with dropout on."""
    config = of_blocks(*blocks, dropout=0.4, attention_dropout=0.2, checkpointing=checkpointing)
    model = shaken(Network(config)).train()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    batch = batch_of([(14, 13), (15, None), (12, 14)])
    text, image = (torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)) for rows in (41, 27))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.encoder(text.requires_grad_(), image.requires_grad_(), batch)[:2]
    total = sum(kept.values())
    sum(part.pow(3).sum() for part in states).backward()  # type: ignore[union-attr]
    parameters = [parameter.grad for parameter in model.encoder.parameters()]
    return total, [gradient for gradient in (text.grad, image.grad, *parameters) if gradient is not None]


@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_checkpointing_keeps_less_and_changes_no_gradient(blocks: list[dict[str, Any]]) -> None:
    much, wanted = kept_and_gradients(blocks, False)
    little, found = kept_and_gradients(blocks, True)
    assert little < much / 3
    assert len(found) == len(wanted)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_checkpointing_keeps_nothing_where_nothing_is_learned() -> None:
    model = Network(of_blocks(*BLOCKS["two streams"], checkpointing=True)).eval()
    batch = batch_of([(4, 3)])
    with torch.no_grad():
        text, _, _ = model.encoder(torch.randn(4, 16), torch.randn(3, 16), batch)
    assert not text.requires_grad
