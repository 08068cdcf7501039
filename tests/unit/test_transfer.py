"""What a fine-tuning changes: frozen parts, adapters, penalties, layers that begin later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.task_making import example, model_config
from vlp.data.batch import collate
from vlp.data.image import RegionImages
from vlp.errors import ConfigError
from vlp.models.adapters import AdapterConfig, merged
from vlp.models.heads import ClassHead
from vlp.models.heights import heights
from vlp.models.model import ModelConfig, Network
from vlp.models.transfer import TransferConfig, apply_transfer
from vlp.train.optimizer import OptimizerConfig, make_optimizer, parameter_groups, set_rate
from vlp.train.penalty import Penalty, PenaltyConfig


def config() -> ModelConfig:
    return model_config().model_copy(update={"heads": {"answer": ClassHead(reads="example", classes=3)}})


def model() -> Network:
    torch.manual_seed(0)
    return Network(config()).eval()


def pooled(network: Network) -> torch.Tensor:
    source = config().image.source
    form = RegionImages(source.width).form  # type: ignore[union-attr,arg-type]
    with torch.no_grad():
        return network(collate([example(), example(3, 2)], form, {})).pooled_BH  # type: ignore[no-any-return]


def transfer(**values: Any) -> TransferConfig:
    return TransferConfig.parse(values)


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


# --------------------------------------------------------------------------------------------------------- freezing


def test_everything_learns_by_default() -> None:
    network = model()
    assert apply_transfer(network, TransferConfig()) == ""
    assert trained(network) == {name for name, _ in network.named_parameters()}


def test_a_frozen_trunk_leaves_pooler_and_heads() -> None:
    network = model()
    said = apply_transfer(network, transfer(freeze="trunk"))
    assert {name.partition(".")[0] for name in trained(network)} == {"pooler", "heads"}
    learned = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert said == f"trains {learned:,} of {sum(p.numel() for p in network.parameters()):,} parameters"


def test_parts_are_frozen_by_name() -> None:
    network = model()
    apply_transfer(network, transfer(freeze=["^text\\.", "ffn"]))
    assert not any(name.startswith("text.") or "ffn" in name for name in trained(network))
    assert any(name.startswith("encoder.") for name in trained(network))


def test_freezing_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"transfer\.freeze: 'tetx' fits no parameter"):
        apply_transfer(model(), transfer(freeze=["tetx"]))
    with pytest.raises(ConfigError, match=r"transfer\.freeze: leaves nothing to learn"):
        apply_transfer(model(), transfer(freeze=["."]))
    with pytest.raises(ConfigError, match=r"freeze\.1: '\(' is no regular expression"):
        transfer(freeze=["^text", "("])
    with pytest.raises(ConfigError, match="freeze and adapters are both given"):
        transfer(freeze="trunk", adapters={})


# --------------------------------------------------------------------------------------------------------- adapters

KINDS = ("lora", "loha", "lokr", "ia3")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_as_nothing_and_merge_into_what_they_learned(kind: str) -> None:
    own = AdapterConfig.parse({"kind": kind, "rank": 2})
    network = model()
    before = pooled(network)
    apply_transfer(network, TransferConfig(adapters=own))
    torch.testing.assert_close(pooled(network), before)
    learned = trained(network)
    assert any(name.startswith("encoder.") for name in learned)
    assert not any(name.startswith(("text.", "image.")) or "base_layer" in name for name in learned)
    assert {name for name in learned if name.startswith(("heads.", "pooler."))}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in learned:
                parameter.add_(0.3 * torch.randn_like(parameter))
    after = pooled(network)
    assert (after - before).abs().max() > 1e-2
    plain = Network(config()).eval()
    plain.load_state_dict(merged(network.state_dict(), own, config()))  # strict: names and shapes are the plain ones
    torch.testing.assert_close(pooled(plain), after, atol=1e-5, rtol=1e-4)


def test_targets_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"transfer\.adapters\.targets: 'nothing' fits no linear"):
        apply_transfer(model(), transfer(adapters={"targets": "nothing"}))
    for key, wrong in (("targets", "("), ("train", ["("])):
        with pytest.raises(ConfigError, match=rf"adapters\.{key}.*: '\(' is no regular expression"):
            transfer(adapters={key: wrong})


def test_targets_are_chosen_by_name() -> None:
    network = model()
    apply_transfer(network, transfer(adapters={"targets": "ffn", "train": ["^heads"]}))
    learned = trained(network)
    assert all("ffn" in name or name.startswith("heads.") for name in learned)


# -------------------------------------------------------------------------------------------------------- penalties


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 1)
        with torch.no_grad():
            self.model.weight.copy_(torch.tensor([[1.0, -2.0]]))
            self.model.bias.fill_(0.5)


def test_penalties_by_hand() -> None:
    module = Small()
    start = Penalty(PenaltyConfig(l1=2, l2=3), module)
    zero = Penalty(PenaltyConfig(l1=2, l2=3, toward="zero"), module)
    only = Penalty(PenaltyConfig(l2=1, toward="zero", pattern="^weight"), module)
    assert start(module) == 0
    with torch.no_grad():
        module.model.weight += torch.tensor([[1.0, 3.0]])
    assert start(module).item() == pytest.approx(2 * (1 + 3) + 3 / 2 * (1 + 9))
    assert zero(module).item() == pytest.approx(2 * (2 + 1 + 0.5) + 3 / 2 * (4 + 1 + 0.25))
    assert only(module).item() == pytest.approx((4 + 1) / 2)
    start(module).backward()
    assert module.model.weight.grad is not None
    assert module.model.weight.grad.tolist() == [[2 + 3 * 1, 2 + 3 * 3]]


def test_penalties_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="l1 and l2 are both 0"):
        PenaltyConfig.parse({})
    with pytest.raises(ConfigError, match="is no regular expression"):
        PenaltyConfig.parse({"l1": 1, "pattern": "("})
    with pytest.raises(ConfigError, match=r"penalty\.pattern: 'x' fits no trainable parameter"):
        Penalty(PenaltyConfig(l1=1, pattern="x"), Small())


# ----------------------------------------------------------------------------------------------- gradual unfreezing


def test_layers_begin_one_after_the_other() -> None:
    network = model()
    optimizer = OptimizerConfig(unfreeze_every=10, weight_decay=0.1)
    found = heights(network)
    groups = parameter_groups(network, optimizer, found)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["frozen_steps"] == 10 * found[names[id(parameter)]]
    for step, moving in ((1, {0}), (10, {0}), (11, {0, 1}), (21, {0, 1, 2})):
        set_rate(groups, optimizer, 0.5, step)
        assert {group["frozen_steps"] // 10 for group in groups if group["lr"]} == moving
        assert all(group["lr"] in (0.0, 0.5) for group in groups)


def test_a_layer_that_has_not_begun_stays_as_it_is() -> None:
    network = model()
    optimizer = OptimizerConfig(unfreeze_every=1, weight_decay=0.1)
    found = heights(network)
    made = make_optimizer(network, optimizer, found)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(made.param_groups, optimizer, 0.1, 1)
    made.step()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name]) is (found[name] > 0)


def test_layers_that_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.unfreeze_every: the layers of this model are not known"):
        parameter_groups(nn.Linear(2, 2), OptimizerConfig(unfreeze_every=1))
