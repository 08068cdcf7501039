"""`vlp-data tokenizer`: reads texts from shards, trains the same WordPiece every time, and transformers loads it."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from data_tools.tokenizer import SPECIAL, read_texts, save, tokenizer, train
from data_tools.writer import ShardWriter
from vlp.data.index import build_index
from vlp.data.text import TextEncoder
from vlp.errors import ConfigError, DataError
from vlp.types import Question

LINES = [
    "A red circle, a Blue square.",
    "Một con mèo đang ngồi trên ghế",
    "red squares and circled squares",
    "İstanbul",
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    with ShardWriter(directory, samples_per_shard=1) as writer:
        writer.write("a", None, "jpg", None, ["one caption"], [Question("one question ?", ("yes",), "1")])
        writer.write("b", None, "jpg", None, [" two\u0301 captions "])
    build_index(directory, text_only=True)
    return directory


def command(*arguments: object) -> object:
    app = Typer()
    app.command()(tokenizer)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_texts_of_directories_and_of_single_shards(data: Path) -> None:
    assert read_texts([data], "captions") == (["one caption", "twó captions"], 0)
    assert read_texts([data], "questions") == (["one question ?"], 0)
    assert read_texts([data], "both") == (["one caption", "one question ?", "twó captions"], 0)
    assert read_texts([data / "shard-000001.tar"], "both") == (["twó captions"], 0)
    with pytest.raises(DataError, match="no text to learn from; give shards that hold questions"):
        read_texts([data / "shard-000001.tar"], "questions")
    with pytest.raises(ConfigError, match="no such directory"):
        read_texts([data / "absent.tar"], "both")


def test_transformers_loads_what_was_trained(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(train(LINES, 100, lowercase=True), tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.is_fast
    assert loaded.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4]
    roles = (loaded.pad_token, loaded.unk_token, loaded.cls_token, loaded.sep_token, loaded.mask_token)
    assert roles == SPECIAL
    ids = loaded("a [MASK] circle")["input_ids"]
    assert (ids[0], ids[-1], 4 in ids) == (2, 3, True)
    for line in LINES[:3]:
        ids = loaded(line)["input_ids"]
        assert 1 not in ids
        text = str(loaded.decode(ids, skip_special_tokens=True))
        assert text.replace(" ", "") == line.lower().replace(" ", "")


def test_case_is_folded_or_kept_and_accents_always_kept() -> None:
    folded, cased = (train(LINES, 100, lowercase=lowercase) for lowercase in (True, False))
    assert folded.encode("BLUE").tokens == folded.encode("blue").tokens
    assert cased.encode("BLUE").tokens != cased.encode("blue").tokens
    assert folded.encode("mèo").tokens != folded.encode("meo").tokens
    assert folded.encode("me\u0300o").tokens == folded.encode("mèo").tokens


def test_pairs_are_joined_as_bert_does() -> None:
    made = train(LINES, 100, lowercase=True)
    pair = made.encode("red", "blue")
    assert [token for token in pair.tokens if token in SPECIAL] == ["[CLS]", "[SEP]", "[SEP]"]
    assert sorted(set(pair.type_ids)) == [0, 1]


def test_training_is_the_same_in_every_process() -> None:
    script = f"from data_tools.tokenizer import train; print(train({LINES!r}, 60, lowercase=True).to_str())"
    runs = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(4)}
    assert len(runs) == 1


def test_a_vocabulary_without_room_for_the_letters_is_refused() -> None:
    with pytest.raises(ConfigError, match="give at least"):
        train(LINES, 10, lowercase=True)


def test_command_writes_what_the_encoder_reads(data: Path, tmp_path: Path) -> None:
    result = command(data, "--vocab-size", 80, "--out", tmp_path / "tokenizer", "--texts", "captions")
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    encoder = TextEncoder(tmp_path / "tokenizer", max_length=16)
    token_ids, special, _ = encoder.encode("one caption")
    assert special.tolist() == [True, *[False] * (len(token_ids) - 2), True]
    assert " ".join(encoder.tokens(token_ids[1:-1].tolist())).replace(" ##", "") == "one caption"
