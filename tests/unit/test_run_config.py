"""Runs from YAML: every shipped config, what `model` may be, where paths point, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlp import resources
from vlp.config import read_yaml, write_yaml
from vlp.errors import CheckpointError, ConfigError
from vlp.models.image import RegionSource
from vlp.models.model import ModelConfig, Sizes, fill_sizes
from vlp.run import Command, RunConfig, load_run
from vlp.tasks.pretrain import PretrainConfig
from vlp.train.zero import read_zero

MODEL: dict[str, Any] = {
    "text": {"max_length": 16, "layer": {"width": 8, "heads": 2, "ffn": 16}},
    "image": {"source": {"kind": "regions"}, "parts": [{"kind": "feature"}]},
    "encoder": [{"stream": "both", "sublayers": ["joint", "ffn"], "share": ["joint", "ffn"]}],
}
RUN: dict[str, Any] = {
    "model": MODEL,
    "tokenizer": "words",
    "task": {"name": "pretrain", "objectives": {"mlm": {"kind": "masked_language"}}},
    "data": {"train": "shards"},
    "run": {"dir": "out", "steps": 5},
}


def write(folder: Path, values: dict[str, Any], name: str = "run.yaml") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_yaml(path, values)
    return str(path)


def load(folder: Path, values: dict[str, Any], *overrides: str) -> RunConfig:
    return load_run(write(folder, values), overrides, "pretrain")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """What `vlp pretrain` leaves of a model, without its weights."""
    folder = tmp_path / "trained"
    folder.mkdir()
    heads = {"mlm": {"kind": "vocabulary", "reads": "text"}}
    (folder / "config.json").write_text(json.dumps({**MODEL, "dropout": 0.25, "heads": heads}))
    return folder


# ------------------------------------------------------------------------------------------------- shipped configs


@pytest.mark.parametrize("name", resources.names("model"))
def test_every_shipped_model_is_one(name: str) -> None:
    made = ModelConfig.parse(read_yaml(resources.shipped("model", name)), name)
    assert not made.heads
    if not isinstance(made.image.source, RegionSource):
        words = _or(made.text.vocab_size, 99)
        assert fill_sizes(made, Sizes(words, None, None)).text.vocab_size == words
        return
    sizes = fill_sizes(made, Sizes(_or(made.text.vocab_size, 99), _or(_source(made).width, 9), _or(_classes(made), 3)))
    assert sizes.text.vocab_size != "auto"
    assert "auto" not in (_source(sizes).width, _source(sizes).classes)
    if name.endswith("_tiny"):
        assert (made.text.vocab_size, _source(made).width, _classes(made)) == ("auto", "auto", "auto")


def _source(made: ModelConfig) -> RegionSource:
    assert isinstance(made.image.source, RegionSource)
    return made.image.source


def _classes(made: ModelConfig) -> int | str | None:
    return _source(made).classes


def _or(size: int | str | None, otherwise: int) -> int:
    return size if isinstance(size, int) else otherwise


@pytest.mark.parametrize("name", resources.names("pretrain"))
def test_every_shipped_pretraining_is_a_run(name: str) -> None:
    made = load_run(name, ["data.train=/d", "data.val=/v", "tokenizer=/t", "run.dir=/r"], "pretrain")
    assert made.task.name == "pretrain"
    assert (made.data.train[0].path, made.data.val, made.tokenizer, made.run.dir) == ("/d", "/v", "/t", "/r")
    assert made.init is None
    assert read_zero(resources.shipped("deepspeed", str(made.deepspeed)))


@pytest.mark.parametrize("name", resources.names("finetune"))
def test_every_shipped_finetuning_is_a_run(name: str, trained: Path) -> None:
    made = load_run(name, [f"model={trained}", "data.train=/d", "run.dir=/r"], "finetune")
    tasks = {"flickr8k": "retrieval", "gqa": "vqa", "daquar": "vqa", "easy": "vqa"}
    assert made.task.name == tasks.get(name.split("_")[0], name)
    assert made.init == str(trained)
    assert read_zero(resources.shipped("deepspeed", str(made.deepspeed)))


def test_every_yaml_is_of_a_kind_that_is_tested(root: Path) -> None:
    folders = {path.parent.name for path in (root / "configs").rglob("*.yaml")}
    assert folders == {"model", "pretrain", "finetune"}


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_says_how_it_is_started(kind: Command) -> None:
    for name in resources.names(kind):
        lines = resources.shipped(kind, name).read_text(encoding="utf-8").splitlines()
        assert any(line.startswith("#") and f"vlp {kind} {name} " in line for line in lines), name


def test_the_pretraining_configs_follow_their_papers() -> None:
    tasks = {name: load_run(name, [], "pretrain").task for name in ("uniter_tiny", "lxmert_tiny")}
    single, dual = tasks["uniter_tiny"], tasks["lxmert_tiny"]
    assert isinstance(single, PretrainConfig)
    assert isinstance(dual, PretrainConfig)
    assert (single.combine, dual.combine) == ("one", "all")
    for task in (single, dual):
        kinds = {config.kind for config in task.objectives.values()}
        assert kinds == {"masked_language", "matching", "region_feature", "region_class"}


def test_a_resolved_config_loads_again(tmp_path: Path) -> None:
    made = load_run("uniter_tiny", ["model.dropout=0.3", "data.train=[a, {path: b, weight: 2}]"], "pretrain")
    assert load(tmp_path, made.plain()) == made


# ------------------------------------------------------------------------------------------------------ the model


def test_a_model_by_name() -> None:
    made = load_run("uniter_tiny", [], "pretrain")
    assert made.model == ModelConfig.parse(read_yaml(resources.shipped("model", "uniter_tiny")))


def test_a_model_by_mapping_by_file_and_by_directory(tmp_path: Path, trained: Path) -> None:
    write(tmp_path, MODEL, "models/mine.yaml")
    wanted = ModelConfig.parse(MODEL)
    assert load(tmp_path, RUN).model == wanted
    assert load(tmp_path, {**RUN, "model": "models/mine.yaml"}).model == wanted
    made = load(tmp_path, {**RUN, "model": "trained"})
    assert made.init == str(trained)
    assert made.model.dropout == 0.25
    assert made.model.heads == {}  # heads are the task's to ask for
    assert load(tmp_path, RUN).init is None


def test_a_model_by_override(tmp_path: Path) -> None:
    assert load(tmp_path, RUN, "model=lxmert_tiny").model == load_run("lxmert_tiny", [], "pretrain").model


@pytest.mark.parametrize("model", ["uniter_tiny", "models/mine.yaml", "trained", MODEL])
def test_an_override_reaches_into_the_model(tmp_path: Path, trained: Path, model: Any) -> None:
    write(tmp_path, MODEL, "models/mine.yaml")
    before = load(tmp_path, {**RUN, "model": model})
    after = load(tmp_path, {**RUN, "model": model}, "model.dropout=0.3", "model.text.layer.heads=1")
    assert after.model.dropout == 0.3 != before.model.dropout
    assert after.model.text.layer.heads == 1
    assert after.model.encoder == before.model.encoder


def test_an_override_reaches_into_an_overridden_model(tmp_path: Path) -> None:
    for overrides in (("model=lxmert_tiny", "model.dropout=0.3"), ("model.dropout=0.3", "model=lxmert_tiny")):
        made = load(tmp_path, RUN, *overrides)
        assert made.model.dropout == 0.3
        assert len(made.model.encoder) == 3


def test_a_shipped_name_means_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uniter_tiny").mkdir()  # a run's directory may well be called like its config
    (tmp_path / "zero2").mkdir()
    made = load(tmp_path, {**RUN, "model": "uniter_tiny", "deepspeed": "zero2"})
    assert (made.init, made.deepspeed) == (None, "zero2")
    assert made.model == load_run("uniter_tiny", [], "pretrain").model


# -------------------------------------------------------------------------------------------------------- paths


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    for name in ("shards", "more", "val", "words"):
        (home / name).mkdir(parents=True)
    (home / "zero.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    values = {**RUN, "deepspeed": "zero.json", "data": {"train": ["shards", {"path": "more"}], "val": "val"}}
    made = load_run(write(home, values), [], "pretrain")
    assert [entry.path for entry in made.data.train] == [str(home / "shards"), str(home / "more")]
    assert (made.data.val, made.tokenizer) == (str(home / "val"), str(home / "words"))
    assert made.deepspeed == str(home / "zero.json")
    assert made.run.dir == "out"  # what a run makes belongs where it is started


def test_paths_that_are_not_there_stay(tmp_path: Path) -> None:
    made = load(tmp_path, {**RUN, "tokenizer": "bert-base-uncased", "data": {"train": "elsewhere"}})
    assert made.tokenizer == "bert-base-uncased"
    assert made.data.train[0].path == "elsewhere"


def test_paths_in_overrides_are_relative_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "shards").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    made = load_run(write(tmp_path / "home", RUN), ["data.train=shards"], "pretrain")
    assert made.data.train[0].path == "shards"


def test_one_dataset_or_a_weighted_list(tmp_path: Path) -> None:
    listed = [{"path": "a", "weight": 2.5}, "b"]
    made = load(tmp_path, {**RUN, "data": {"train": listed}})
    assert [(entry.path, entry.weight) for entry in made.data.train] == [("a", 2.5), ("b", None)]
    assert load(tmp_path, RUN).data.train[0].path == "shards"


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["batch.siez=3"], "unknown key 'batch.siez' (did you mean 'size'?)"),
        (["bach.size=3"], "unknown key 'bach' (did you mean 'batch'?)"),
        (["optimizer.learning_rat=1"], "unknown key 'optimizer.learning_rat' (did you mean 'learning_rate'?)"),
        (["model.dropuot=0.1"], "unknown key 'model.dropuot' (did you mean 'dropout'?)"),
        (["model.text.layer.hedas=2"], "unknown key 'model.text.layer.hedas' (did you mean 'heads'?)"),
        (["model.encoder.0.repaet=2"], "unknown key 'model.encoder.0.repaet' (did you mean 'repeat'?)"),
        (["task.objectives.mlm.probabilty=0.2"], "task.objectives.mlm.probabilty' (did you mean 'probability'?)"),
        (["task.region_hiding.zeor=1"], "unknown key 'task.region_hiding.zeor' (did you mean 'zero'?)"),
        (["run.sead=1"], "unknown key 'run.sead' (did you mean 'seed'?)"),
        (["data.train=[{path: a, weight: 2}]", "data.temperature=3"], "data: temperature and a weight are both given"),
        (["data.temperature=0.5"], "data.temperature: 0.5 is not right, it should be greater than or equal to 1"),
        (["data.augment.flip.probabilty=0.2"], "key 'data.augment.flip.probabilty' (did you mean 'probability'?)"),
        (["data.augment.crop.kind=resize"], "data.augment.crop.kind: 'resize' is not right"),
        (["batch.size=big"], "batch.size: 'big' is not right, it should be a whole number"),
        (["batch.size=0"], "batch.size: 0 is not right, it should be greater than or equal to 1"),
        (["batch.size=true"], "batch: key 'size' should not be true or false"),
        (["precision=fp8"], "precision: 'fp8' is not right, it should be 'fp32', 'bf16' or 'fp16'"),
        (["model.dropout=1.5"], "model.dropout: 1.5 is not right, it should be less than 1"),
        (
            ["task.name=pretian"],
            "task.name: 'pretian' is not right, it should be one of 'pretrain', 'vqa', 'retrieval'",
        ),
        (["task.objectives.mlm.kind=mlm"], "task.objectives.mlm.kind: 'mlm' is not right"),
        (["model.image.source.kind=region"], "model.image.source.kind: 'region' is not right"),
        (["data.train=[]"], "data.train: [] is not right"),
        (["data.train=[{weight: 2}]"], "key 'data.train.0.path' is missing"),
        (["run.epochs=2"], "run: steps and epochs are both given"),
        (["run.steps="], "run: give either steps or epochs"),
        (["tokenizer="], "tokenizer is missing"),
        (
            ["model=uniter_tinny"],
            "model: 'uniter_tinny' is no shipped model, file or directory of a trained model (did",
        ),
        (["optimizer.betas=[0.9, 1.5]"], "optimizer.betas.1: 1.5 is not right, it should be less than 1"),
        (["model=7"], "model: 7 is not right, it should be a mapping"),
        (["batch.size"], "override 'batch.size' is not of the form section.key=value"),
    ],
)
def test_a_wrong_run_is_refused_in_one_sentence(tmp_path: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, RUN, *overrides)
    said = str(caught.value)
    assert sentence in said
    assert "\n" not in said
    assert "pydantic" not in said


def test_epochs_instead_of_steps(tmp_path: Path) -> None:
    made = load(tmp_path, RUN, "run.steps=", "run.epochs=1.5")
    assert (made.run.steps, made.run.epochs) == (None, 1.5)


def test_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, {**RUN, "batsch": {}})
    assert str(caught.value).startswith(f"{tmp_path / 'run.yaml'}: unknown key 'batsch'")


def test_a_wrong_model_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, {**MODEL, "dropuot": 1}, "mine.yaml")
    with pytest.raises(ConfigError, match=r"'model\.dropuot' \(did you mean 'dropout'\?\)"):
        load(tmp_path, {**RUN, "model": "mine.yaml"})
    (tmp_path / "mine.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match=r"model: \[1, 2\] is not right, it should be a mapping"):
        load(tmp_path, {**RUN, "model": "mine.yaml"})


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/config\.json: not the config of a model"):
        load(tmp_path, {**RUN, "model": "empty"})


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_config_that_is_not_there_is_refused(command: Command, tmp_path: Path) -> None:
    known = resources.names(command)[0]
    with pytest.raises(
        ConfigError, match=rf"no config file or shipped {command} config is called '{known}x' \(did you"
    ):
        load_run(known + "x", [], command)
    for name in ("none.yaml", str(tmp_path / "none"), f"folder{os.sep}none"):
        with pytest.raises(ConfigError, match="no such file"):
            load_run(name, [], command)


@pytest.mark.parametrize("text", ["", "[1]", "word", "3"])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="must hold a mapping of sections"):
        load_run(str(tmp_path / "run.yaml"), [], "pretrain")


def test_a_section_that_is_missing_is_named(tmp_path: Path) -> None:
    for section in ("model", "task", "data", "run"):
        values = {name: value for name, value in RUN.items() if name != section}
        with pytest.raises(ConfigError, match=rf"run\.yaml: key '{section}' is missing"):
            load(tmp_path, values)


# ------------------------------------------------------------------------------------------------- sizes from data


def test_sizes_that_contradict_the_data_are_refused() -> None:
    base = ModelConfig.parse(read_yaml(resources.shipped("model", "uniter_base")))
    fitting = Sizes(28996, 2048, 1601)
    assert fill_sizes(base, fitting) == base
    for sizes, key in (
        (Sizes(30522, 2048, 1601), r"model\.text\.vocab_size is 28996, but the tokenizer has 30522"),
        (Sizes(28996, 1024, 1601), r"model\.image\.source\.width is 2048, but the shards have 1024"),
        (Sizes(28996, 2048, 400), r"model\.image\.source\.classes is 1601, but the shards have 400"),
        (Sizes(28996, None, None), "needs region features, and the shards of data.train hold none"),
    ):
        with pytest.raises(ConfigError, match=key):
            fill_sizes(base, sizes)


def test_classes_that_the_shards_lack_are_not_there() -> None:
    # So that an objective that guesses them is refused at start, whether the config says auto or a number.
    for name in ("uniter_base", "uniter_tiny"):
        made = ModelConfig.parse(read_yaml(resources.shipped("model", name)))
        assert _classes(fill_sizes(made, Sizes(28996, 2048, None))) is None


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    assert load_run(str(tmp_path / "run.json"), [], "pretrain") == load_run(str(tmp_path / "run.yaml"), [], "pretrain")


def test_paths_to_weights_are_relative_to_the_file_that_holds_them(tmp_path: Path) -> None:
    for name in ("bert", "models/bert"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models" / "backbone.safetensors").touch()
    (tmp_path / "backbone.safetensors").touch()
    pixels = {"kind": "pixels", "backbone": "resnet10t", "weights": "backbone.safetensors"}
    model = {**MODEL, "text": {**MODEL["text"], "weights": {"source": "bert"}}}
    model["image"] = {**MODEL["image"], "grid": {"source": pixels, "parts": [{"kind": "feature"}]}}
    write(tmp_path / "models", model, "model.yaml")
    for given, folder in ((model, tmp_path), ("models/model.yaml", tmp_path / "models")):
        found = load(tmp_path, {**RUN, "model": given}).model
        assert found.text.weights is not None
        assert found.image.grid is not None
        assert found.text.weights.source == str(folder / "bert")
        assert found.image.grid.source.weights == str(folder / "backbone.safetensors")
    hub = load(tmp_path, {**RUN, "model": {**MODEL, "text": {"weights": {"source": "bert-base-uncased"}}}})
    assert hub.model.text.weights is not None
    assert hub.model.text.weights.source == "bert-base-uncased"


def test_a_text_model_s_tokenizer_needs_no_naming(tmp_path: Path) -> None:
    values = {**RUN, "tokenizer": None}
    with pytest.raises(ConfigError, match="tokenizer is missing"):
        load(tmp_path, values)
    load(tmp_path, values, "model.text.weights={source: bert-base-uncased}")
