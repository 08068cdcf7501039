"""The published recipes: the card is what the configs say, and the configs say what the papers do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from vlp import resources
from vlp.config import read_yaml
from vlp.errors import ConfigError
from vlp.models.model import Sizes, fill_sizes, meta_model
from vlp.recipes import FACTS, card
from vlp.run import load_run
from vlp.tasks.pretrain import PretrainConfig
from vlp.train.optimizer import parameter_groups

FAMILIES = ("lxmert", "unicoder_vl", "uniter", "vilbert", "visualbert", "vl_bert")
PLAIN = re.compile(r" *(model|name|kind|dir): ")
"""Keys that say themselves what they are."""
BASES = tuple(f"{family}_base" for family in FAMILIES)

# What the sources say, written down once more: a config that drifts fails here.
POLARITY = {family: "0" if family == "vilbert" else "1" for family in FAMILIES} | {"vl_bert": "no matching"}
REGIONS = {
    "lxmert": "15 %: 80 / 10 / 10",
    "unicoder_vl": "15 %: 90 / 0 / 10",
    "uniter": "15 %: 100 / 0 / 0; a learned vector added; at least one",
    "vilbert": "15 %: 90 / 0 / 10; overlaps above 0.4 too",
    "visualbert": "none",
    "vl_bert": "15 %: 90 / 0 / 10; a learned vector instead of zeros",
}
BOX = {
    "lxmert": "4",
    "unicoder_vl": "5",
    "uniter": "7",
    "vilbert": "5",
    "visualbert": "none",
    "vl_bert": "4 as 2048 sines and cosines",
}
REPLACED = {
    "lxmert": "text, 50 %",
    "unicoder_vl": "either, 50 %",
    "uniter": "image, 50 %",
    "vilbert": "text, 50 %",
    "visualbert": "second text, 50 %",
    "vl_bert": "-",
}


def test_the_card_is_what_the_configs_say(root: Path) -> None:
    assert (root / "docs" / "recipes.md").read_text(encoding="utf-8") == card(), "run `make recipes`"


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("label of a match", POLARITY),
        ("masked regions: zeros / random / kept", REGIONS),
        ("numbers of a box", BOX),
        ("replaced", REPLACED),
        ("text only", {family: "50 % of a batch" if family == "vl_bert" else "no" for family in FAMILIES}),
        ("words and regions of mismatched pairs", {"uniter": "not guessed", "lxmert": "guessed", "vl_bert": "-"}),
        ("starts from", {"lxmert": "scratch", "uniter": "bert-base-cased", "vilbert": "bert-base-uncased"}),
        ("contrast", {"albef": "256 numbers, temperature from 0.07; momentum 0.995, queue 65,536, distilled 0.4"}),
        ("replaced", {"albef": "image and text, each by a hard one"}),
        ("clipped norm", {"uniter": "5", "vl_bert": "10", "lxmert": "1"}),
    ],
)
def test_a_recipe_follows_its_source(title: str, wanted: dict[str, str]) -> None:
    found = {family: FACTS[title](load_run(f"{family}_base", ["tokenizer=words"], "pretrain")) for family in wanted}
    assert found == wanted


@pytest.mark.parametrize("name", BASES)
def test_every_key_says_where_it_comes_from(name: str) -> None:
    lines = resources.shipped("pretrain", name).read_text(encoding="utf-8").splitlines()
    silent = [line for line in lines if "#" not in line and not line.endswith(":") and not PLAIN.match(line)]
    assert not silent


def test_what_starts_as_the_text_model_learns_slower_in_the_two_stream_recipe() -> None:
    run = load_run("vilbert_base", [], "pretrain")
    model = fill_sizes(run.model, Sizes(30522, 2048, 1601))
    module = nn.Module()
    module.add_module("model", meta_model(model))
    groups = [group for group in parameter_groups(module, run.optimizer) if group["rate_factor"] == 0.1]
    slow = {id(parameter) for group in groups for parameter in group["params"]}
    names = {name for name, parameter in module.named_parameters() if id(parameter) in slow}
    # 12 layers of two linears and a norm for the words' own attention, two and a norm for the network behind it.
    assert len([name for name in names if "encoder" in name]) == 12 * 14
    assert {name for name in names if "encoder" not in name} == {
        name for name, _ in module.named_parameters() if name.startswith("model.text.")
    }
    assert not any(".cross." in name or ".image." in name for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_recipe_is_that_of_its_family(family: str) -> None:
    """The same structure; what a config's head names as departures may differ."""
    tiny, base = (load_run(f"{family}_{size}", ["tokenizer=words"], "pretrain").task for size in ("tiny", "base"))
    assert isinstance(tiny, PretrainConfig)
    assert isinstance(base, PretrainConfig)
    assert tiny.combine == base.combine
    assert tiny.hides_both == base.hides_both
    hiding = {"region_class", "region_feature"}
    if {own.kind for own in base.objectives.values()} & hiding:
        assert tiny.region_hiding == base.region_hiding
    matching = [[own for own in task.objectives.values() if own.kind == "matching"] for task in (tiny, base)]
    for one, other in zip(*matching, strict=True):
        assert one.model_copy(update={"ratio": 1.0}) == other.model_copy(update={"ratio": 1.0})


# ------------------------------------------------------------------------------------------- a model's key in a file


def test_a_key_beside_the_models_name_changes_the_model(tmp_path: Path) -> None:
    text = resources.shipped("pretrain", "uniter_tiny").read_text(encoding="utf-8")
    file = tmp_path / "mine.yaml"
    keys = "model: uniter_tiny\nmodel.dropout: 0.3\nmodel.text.max_length: 20"
    file.write_text(text.replace("model: uniter_tiny", keys))
    made = load_run(str(file), [], "pretrain")
    assert (made.model.dropout, made.model.text.max_length) == (0.3, 20)
    assert load_run(str(file), ["model.dropout=0.2"], "pretrain").model.dropout == 0.2  # the command line is above it
    file.write_text(text.replace("model: uniter_tiny", "model: uniter_tiny\nmodel.dropuot: 0.3"))
    with pytest.raises(ConfigError, match="dropuot"):
        load_run(str(file), [], "pretrain")
    assert "model.dropout" not in read_yaml(resources.shipped("pretrain", "uniter_tiny"))
