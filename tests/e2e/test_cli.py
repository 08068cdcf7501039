"""The command line: help that is quick, exit codes, and one sentence for a user's mistake."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Shapes, done, vlp, vlp_data, vlp_process
from tests.unit.shard_making import texts, write_tar
from vlp import resources
from vlp.data.index import build_index

COMMANDS = ("pretrain", "finetune", "evaluate", "extract", "index", "search", "demo", "describe")
HEAVY = ("deepspeed", "numpy", "pandas", "pyarrow", "tensorboard", "timm", "torch", "torchvision", "transformers")


# ------------------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands_with_a_line_each() -> None:
    said = done(vlp("--help"))
    for command in COMMANDS:
        assert re.search(rf"^ +{command} +[A-Z].+\.$", said.out, re.M), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_is_readable(command: str) -> None:
    said = done(vlp(command, "--help"))
    assert said.out.startswith(f"Usage: vlp {command} [OPTIONS]")
    options = re.findall(r"^ +(--[a-z-]+)(.*(?:\n {20,}.+)*)", said.out, re.M)
    assert options
    for option, rest in options:
        assert re.search(r"[A-Za-z]{3,}.*\.", rest.split("  ", 1)[-1]), f"{option} does not say what it does: {rest}"
    assert max(map(len, said.out.splitlines())) <= 100
    if command in ("pretrain", "finetune"):
        assert "KEY=VALUE" in said.out
        assert {"--nproc", "--resume"} <= {option for option, _ in options}


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = f"""
import sys
from vlp.cli import main
for command in {COMMANDS!r}:
    sys.argv = ["vlp", command, "--help"]
    try:
        main()
    except SystemExit:
        pass
print("LOADED", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-1].split() == ["LOADED"]


def test_no_command_shows_the_help() -> None:
    said = vlp()
    assert said.code == 2
    assert "pretrain" in said.out + said.err


@pytest.mark.parametrize("name", resources.names("model"))
def test_describe_shows_a_shipped_model(name: str) -> None:
    said = done(vlp("describe", name))
    assert re.search(r"[\d,]{6,} parameters", said.out)
    assert re.search(r"[\d,.]+ GFLOP forward for one example", said.out)
    assert re.search(r"→ (text \+ )?image", said.out)
    assert max(map(len, said.out.splitlines())) <= 80


# --------------------------------------------------------------------------------------------------------- mistakes


def refused(code: int, *arguments: object, sentence: str) -> None:
    """The command ends with the code and one sentence that holds these words."""
    said = vlp(*arguments)
    assert "Traceback" not in said.out + said.err, said.err
    assert said.code == code, (said.code, said.out + said.err)
    assert sentence in said.err
    assert said.err.startswith("vlp: ")
    assert said.err.count("\n") == 1, said.err


@pytest.fixture
def run(shapes: Shapes, tmp_path: Path) -> tuple[str, ...]:
    """The arguments of a run that would work."""
    given = (f"data.train={shapes.train}", f"tokenizer={shapes.tokenizer}", f"run.dir={tmp_path / 'run'}")
    return ("pretrain", "uniter_tiny", *given, "run.steps=1", "batch.size=4", "log.tensorboard=false")


@pytest.mark.parametrize(
    "arguments",
    [
        ["pretrian", "uniter_tiny"],
        ["pretrain"],
        ["pretrain", "uniter_tiny", "--nprocs", "2"],
        ["pretrain", "uniter_tiny", "--nproc", "0"],
        ["evaluate", "--model", "m"],
        ["evaluate", "--model", "m", "--data", "d", "--limit", "0"],
    ],
)
def test_a_wrong_use_is_told_apart(arguments: list[str]) -> None:
    said = vlp(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err
    assert "Usage: " in said.err


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_config_that_is_not_there(command: str, tmp_path: Path) -> None:
    refused(2, command, "nonsense", sentence=f"no config file or shipped {command} config is called 'nonsense'")
    refused(2, command, tmp_path / "none.yaml", sentence="none.yaml: no such file")


def test_a_typo_in_a_key(run: tuple[str, ...]) -> None:
    refused(2, *run, "batch.siez=3", sentence="unknown key 'batch.siez' (did you mean 'size'?)")
    refused(2, *run, "--", "batch.size", sentence="override 'batch.size' is not of the form section.key=value")
    refused(2, *run, "precision=fp16", sentence="precision: fp16 needs a GPU")


def test_data_that_is_not_there(run: tuple[str, ...], shapes: Shapes, tmp_path: Path) -> None:
    refused(2, *run, "data.train=nowhere", sentence="nowhere: no such directory; give the directory that holds")
    refused(2, *run, "data.val=nowhere", sentence="nowhere: no such directory")
    refused(1, *run, f"data.train={tmp_path}", sentence="holds no *.tar shard; make some with `vlp-data")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(next(shapes.train.glob("*.tar")), bare)
    refused(1, *run, f"data.train={bare}", sentence=f"has shards but no index; make it with `vlp-data index {bare}`")
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_data_that_does_not_fit(run: tuple[str, ...], shapes: Shapes, tmp_path: Path) -> None:
    refused(2, *run, "data.groups=50", "batch.size=50", sentence="data.groups")
    refused(2, *run, "data.groups=2", "batch.size=5", sentence="batch.size")
    refused(2, *run, "model.image.source.width=7", sentence="model.image.source.width is 7, but the shards ")
    refused(2, *run, "model.text.vocab_size=7", sentence="model.text.vocab_size is 7, but the tokenizer has")
    write_tar(tmp_path / "texts" / "x.tar", [("a.json", texts("red circle")), ("b.json", texts("blue"))])
    build_index(tmp_path / "texts", text_only=True)
    refused(2, *run, f"data.train={tmp_path / 'texts'}", sentence="the shards of data.train hold none")
    refused(1, *run, f"data.train={tmp_path / 'texts'}", "task.texts=questions", sentence="no sample has questions")


def test_a_tokenizer_that_is_not_there(run: tuple[str, ...], tmp_path: Path) -> None:
    refused(2, *run, f"tokenizer={tmp_path / 'none'}", sentence="tokenizer: no directory")
    refused(2, *run, f"tokenizer={tmp_path}", sentence="cannot be loaded as a directory or hub id")


def test_an_objective_without_its_targets(run: tuple[str, ...]) -> None:
    pixels = "model.image.source={kind: pixels, backbone: test_convnext, size: 32}"
    refused(2, *run, pixels, sentence="task.objectives.mrfr: guesses regions, but model.image.source reads pixels")
    refused(2, *run, "model.image.source.classes=", sentence="task.objectives.mrc_kl: needs class probabilities")
    unknown = "model.image.source={kind: pixels, backbone: resnet_18, size: 32}"
    refused(2, *run, unknown, sentence="timm has no 'resnet_18'")


def test_a_zero_config_that_contradicts_the_run(run: tuple[str, ...], tmp_path: Path) -> None:
    refused(2, *run, f"deepspeed={tmp_path / 'none.json'}", sentence="none.json: no such file")
    (tmp_path / "own.json").write_text('{"train_batch_size": 4}')
    refused(2, *run, f"deepspeed={tmp_path / 'own.json'}", sentence="key 'train_batch_size' is decided by the run's")


def test_a_used_run_directory(single: Path, run: tuple[str, ...]) -> None:
    before = sorted(path.name for path in single.rglob("*"))
    refused(2, *run, f"run.dir={single}", sentence=f"{single} holds a run already; add --resume to continue it")
    assert sorted(path.name for path in single.rglob("*")) == before


def test_a_run_directory_that_is_a_file(run: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(2, *run, f"run.dir={tmp_path / 'file'}", sentence="file is a file")
    assert vlp(*run, f"run.dir={tmp_path / 'file' / 'below'}").code in (1, 2)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_that_is_none(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    given = ("--data", shapes.dev)
    refused(2, "evaluate", "--model", tmp_path / "none", *given, sentence="none: no such directory; give the model/")
    refused(1, "evaluate", "--model", single, *given, sentence="not the task of a trained model")
    out = ("--out", tmp_path / "out")
    refused(1, "extract", "--model", tmp_path / "none", *given, *out, sentence="none: no such directory; give one that")
    refused(1, "extract", "--model", single, *given, *out, sentence="is the directory of a run; give")
    broken = tmp_path / "broken"
    shutil.copytree(single / "model", broken)
    (broken / "model.safetensors").write_bytes(b"123")
    refused(1, "evaluate", "--model", broken, "--data", shapes.dev, sentence="model.safetensors: cannot be read")
    refused(2, "finetune", "vqa", f"model={tmp_path / 'none'}", sentence="is no shipped model, file or directory of a")
    train = (f"data.train={shapes.train}", f"run.dir={tmp_path / 'run'}")
    refused(1, "finetune", "vqa", f"model={single}", *train, sentence="config.json: not the config of a model")


def test_evaluation_asked_for_wrongly(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    given = ("evaluate", "--model", single / "model")
    refused(1, *given, "--data", tmp_path, sentence="holds no *.tar shard")
    given = (*given, "--data", shapes.dev)
    refused(2, *given, "--task", "banana", sentence="--task: 'banana' is not known")
    refused(2, *given, "--task", "vqa", sentence="was trained for 'pretrain' and has no heads for vqa")
    refused(2, *given, "--precision", "fp8", sentence="--precision: 'fp8' is not right")
    (tmp_path / "file").write_text("mine")
    refused(1, *given, "--limit", 1, "--out", tmp_path / "file" / "report.json", sentence="file")


def test_extraction_asked_for_wrongly(shapes: Shapes, single: Path, tmp_path: Path) -> None:
    given = ("extract", "--model", single / "model", "--data", shapes.dev, "--out", tmp_path)
    refused(2, *given, "--what", "poled", sentence="--what: 'poled' cannot be extracted (did you mean 'pooled'?)")
    refused(2, *given, "--what", ",", sentence="--what: give at least one of pooled")
    refused(2, *given, "--format", "csv", sentence="--format: 'csv' is not known")
    refused(2, *given, "--dtype", "bf16", sentence="--dtype: parquet has no bf16; take --format safetensors")
    refused(2, *given, "--texts", "titles", sentence="--texts: 'titles' is not right")
    refused(2, *given, "--precision", "fp8", sentence="--precision: 'fp8' is not right")
    refused(2, *given, "--columns", "text=title", sentence="is shards, which does not take it")
    (tmp_path / "features-000.parquet").write_bytes(b"mine")
    refused(2, *given, sentence="is not empty and holds no extraction; take another folder")


def test_search_asked_for_wrongly(tmp_path: Path) -> None:
    refused(2, "search", "--index", tmp_path, sentence="give either --text or --image")
    refused(2, "search", "--index", tmp_path, "--text", "red", "--for", "sounds", sentence="--for: 'sounds' is not")
    refused(1, "search", "--index", tmp_path, "--text", "red", sentence="search.json: is missing; build an index with")
    refused(1, "index", "--features", tmp_path, "--out", tmp_path / "x", sentence="holds no features")


def test_data_of_another_kind(single: Path, tmp_path: Path) -> None:
    from tests.unit.shard_making import region_members

    write_tar(tmp_path / "x.tar", [("a.json", texts("red")), *region_members("a")])
    build_index(tmp_path)
    refused(2, "evaluate", "--model", single / "model", "--data", tmp_path, sentence="the model reads regions of ")


def test_a_config_to_describe_that_is_not_there() -> None:
    refused(2, "describe", "uniter_tinny", sentence="is called 'uniter_tinny' (did you mean 'uniter_tiny'?)")


def test_the_module_is_the_command(root: Path) -> None:
    said = vlp_process("pretrain", "uniter_tiny", "batch.siez=3")
    assert said.code == 2
    assert said.err.startswith("vlp: ")
    assert said.err.count("\n") == 1


def test_a_mistake_on_several_ranks_is_said_once(run: tuple[str, ...]) -> None:
    said = vlp_process(*run, "data.train=nowhere", "--nproc", 2)
    assert said.code == 2
    assert said.err.count("nowhere: no such directory") == 1
    assert "Traceback" not in said.err


def test_the_data_command_knows_mistakes_too(tmp_path: Path) -> None:
    said = vlp_data("index", tmp_path)
    assert said.code == 1
    assert said.err.startswith("vlp-data: ")
    assert "Traceback" not in said.err
