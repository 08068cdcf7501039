import os
import resource
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vlp.data.text import TextEncoder
from vlp.errors import ConfigError, DataError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "red", "circle", "##s", "left", "of", "the", "blue", "square", "café"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return folder


def pieces(encoder: TextEncoder, text: str) -> list[str]:
    return [WORDS[number] for number in encoder.encode(text)[0]]


def test_a_text_stands_between_its_special_tokens(vocabulary: Path) -> None:
    encoder = TextEncoder(vocabulary, 20)
    ids_T, special_T, word_T = encoder.encode("A red circles")
    assert [WORDS[number] for number in ids_T] == ["[CLS]", "a", "red", "circle", "##s", "[SEP]"]
    assert special_T.tolist() == [True, False, False, False, False, True]
    assert word_T.tolist() == [-1, 0, 1, 2, 2, -1]
    assert (ids_T.dtype, special_T.dtype, word_T.dtype) == (np.int64, np.bool_, np.int64)
    assert encoder.count(["A red circles", ""]) == [6, 2]


def test_a_long_text_is_cut_and_keeps_its_end(vocabulary: Path) -> None:
    encoder = TextEncoder(vocabulary, 4)
    ids_T, special_T, word_T = encoder.encode("a red circle left of the blue square")
    assert [WORDS[number] for number in ids_T] == ["[CLS]", "a", "red", "[SEP]"]
    assert len(special_T) == len(word_T) == 4
    assert encoder.count(["a red circle left of the blue square"]) == [10], "counts are of the uncut text"


def test_decomposed_letters_are_composed(vocabulary: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = vocabulary.parent / "levels"
    names = {name: f"[{name[:-6].upper()}]" for name in ("cls_token", "sep_token", "mask_token", "unk_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    decomposed = unicodedata.normalize("NFD", "café")
    assert len(decomposed) == 5
    assert pieces(TextEncoder(folder, 9), decomposed) == ["[CLS]", "café", "[SEP]"]
    assert TextEncoder(folder, 9).count([decomposed]) == [3]


def test_special_tokens_written_in_a_text_are_not_to_be_hidden(vocabulary: Path) -> None:
    _, special_T, word_T = TextEncoder(vocabulary, 9).encode("red [MASK] circle")
    assert special_T.tolist() == [True, False, True, False, True]
    assert word_T.tolist()[2] == -1


def test_random_ids_are_all_but_the_special_ones(vocabulary: Path) -> None:
    encoder = TextEncoder(vocabulary, 9)
    assert encoder.random_ids.tolist() == list(range(5, len(WORDS)))
    assert encoder.vocab_size == len(WORDS)
    assert encoder.mask_id == 4


def test_added_tokens_are_special_and_come_last(vocabulary: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(vocabulary, 9, ["[IMG]", "[ANS]"])
    assert encoder.vocab_size == len(WORDS) + 2
    ids_T, special_T, word_T = encoder.encode("red [IMG] circle")
    assert encoder.tokens(ids_T.tolist()) == ["[CLS]", "red", "[IMG]", "circle", "[SEP]"]
    assert (ids_T[2], special_T[2], word_T[2]) == (len(WORDS), True, -1)
    assert len(WORDS) not in encoder.random_ids
    assert encoder.fingerprint != TextEncoder(vocabulary, 9).fingerprint
    encoder.save(tmp_path / "saved")
    for added in ((), ("[IMG]", "[ANS]")):  # a saved one has them already
        again = TextEncoder(tmp_path / "saved", 9, added)
        assert (again.vocab_size, again.fingerprint) == (encoder.vocab_size, encoder.fingerprint)
        assert again.encode("red [IMG] circle")[1].tolist() == special_T.tolist()


def test_roberta_names_work(tmp_path: Path) -> None:
    words = ["<s>", "</s>", "<unk>", "<mask>", "red", "circle"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(tmp_path)
    encoder = TextEncoder(tmp_path, 9)
    assert encoder.encode("red circle")[0].tolist() == [0, 4, 5, 1]
    assert encoder.random_ids.tolist() == [4, 5]


def test_saved_and_loaded_it_is_the_same(vocabulary: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(vocabulary, 9)
    encoder.save(tmp_path / "saved")
    again = TextEncoder(tmp_path / "saved", 9)
    assert again.fingerprint == encoder.fingerprint
    assert again.encode("a red circle")[0].tolist() == encoder.encode("a red circle")[0].tolist()


def test_another_vocabulary_has_another_fingerprint(vocabulary: Path) -> None:
    before = TextEncoder(vocabulary, 9).fingerprint
    (vocabulary / "vocab.txt").write_text("\n".join([*WORDS, "green"]) + "\n", encoding="utf-8")
    assert TextEncoder(vocabulary, 9).fingerprint != before


@pytest.mark.parametrize("source", ["/no/such/folder", "./none", "runs/a/tokenizer"])
def test_a_missing_directory_is_a_sentence(source: str) -> None:
    with pytest.raises(ConfigError, match=f"^tokenizer: no directory '{source}'"):
        TextEncoder(source, 9)


def test_a_directory_without_a_tokenizer_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tokenizer: .* cannot be loaded") as caught:
        TextEncoder(tmp_path, 9)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "red": 2}, unk_token="red"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no mask_token"):
        TextEncoder(tmp_path, 9)


def test_the_vocabulary_of_bert(test_data: Path) -> None:
    encoder = TextEncoder(test_data / "bert_vocab", 30)
    assert encoder.vocab_size == 30_522
    assert (encoder.cls_id, encoder.sep_id, encoder.mask_id) == (101, 102, 103)
    ids_T, _, word_T = encoder.encode("Two unaffable dogs.")
    assert encoder.tokens(ids_T.tolist()) == ["[CLS]", "two", "una", "##ffa", "##ble", "dogs", ".", "[SEP]"]
    assert word_T.tolist() == [-1, 0, 1, 1, 1, 2, 3, -1]


# --------------------------------------------------------------------------------------------------- whole words

TEXTS = (
    "Một người đàn ông đang chơi ném dĩa ngoài sân .",
    "Cầu thủ bóng chày đang chuẩn bị đánh bóng",
    "Two  unaffable dogs, state-of-the-art!",
)


def trained(kind: str, folder: Path, max_length: int = 99) -> TextEncoder:
    """A small tokenizer of a kind: as RoBERTa's, as XLM-R's, and one that never splits a text."""
    names = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
    options = {"vocab_size": 400, "special_tokens": list(names.values()), "show_progress": False}
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=kind == "pieces")
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    tokenizer.train_from_iterator([*TEXTS, *TEXTS], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return TextEncoder(folder, max_length)


def long_texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    strange = [*words, "x" * 700, " " * 60, "...", "\n\n", "e\u0301", "\U0001f436" * 40, "<mask>", "[MASK]", "\0" * 500]
    texts = [" ".join(rng.choice(words, 2000)), "".join(rng.choice(words, 2000)), "ab" * 4000, " " * 8000]
    return [*texts, *(" ".join(rng.choice(strange, 200)) for _ in range(6))]


@pytest.mark.parametrize("kind", ["bert", "bytes", "pieces", "unsplit"])
def test_a_long_text_has_the_tokens_of_its_beginning(
    kind: str, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is behind the part that is read changes nothing: not its words, their numbers, nor those of a pair."""
    encoder = TextEncoder(vocabulary, 30) if kind == "bert" else trained(kind, tmp_path / "made", 30)

    def read(text: str) -> list[NDArray[Any]]:
        pairs = ((text, "red circle"), ("red circle", text), (text, text))
        return [
            array for made in (encoder.encode(text), *(encoder.encode_two(*two) for two in pairs)) for array in made
        ]

    texts = long_texts()
    found = [read(text) for text in texts]
    monkeypatch.setattr("vlp.data.text._FIRST", 1 << 30)
    for text, arrays in zip(texts, found, strict=True):
        for one, other in zip(arrays, read(text), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=text[:30])


def test_ten_megabytes_of_text_cost_little_memory(vocabulary: Path) -> None:
    """Read whole they would take 2 GB; the process may have 300 MB more than it has."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            encoder = TextEncoder(vocabulary, 20)
            text = "red circle " * 1_000_000
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), hard))
            code = 0 if len(encoder.encode(text)[0]) == len(encoder.encode_two(text, text)[0]) == 20 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_half_a_surrogate_pair_is_a_sentence(vocabulary: Path) -> None:
    encoder = TextEncoder(vocabulary, 20)
    for call in (encoder.encode, lambda text: encoder.encode_two("red", text), lambda text: encoder.count([text])):
        with pytest.raises(DataError, match="half a surrogate pair is no character; take it out"):
            call("red \ud800 circle")


@pytest.mark.parametrize("kind", ["bytes", "pieces", "unsplit"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_word_lies_between_two_blanks(kind: str, text: str, tmp_path: Path) -> None:
    encoder = trained(kind, tmp_path)
    ids_T, special_T, word_T = encoder.encode(text)
    assert (word_T[special_T] == -1).all()
    inner = word_T[1:-1]
    assert inner[0] == 0
    assert set(np.diff(inner).tolist()) <= {0, 1}, "words are numbered in order, and each is in one piece"
    decode = AutoTokenizer.from_pretrained(encoder.source).decode
    words = [decode(ids_T[word_T == number].tolist()).strip() for number in range(inner[-1] + 1)]
    if kind == "unsplit":  # its tokens hold blanks, so a word may hold the end of the one before
        assert len(words) > 1
    else:
        assert not any(" " in word for word in words)
        assert "".join(words) == "".join(text.split())
    if "," in text:
        assert ("," in words) == (kind == "bytes"), "what is split besides is the tokenizer's to say"


def test_the_words_of_bert_are_its_pieces_joined(test_data: Path) -> None:
    encoder = TextEncoder(test_data / "bert_vocab", 99)
    captions = (test_data / "uit_viic" / "captions.tsv").read_text(encoding="utf-8").splitlines()[::50]
    for line in captions:
        ids_T, special_T, word_T = encoder.encode(line.partition("\t")[2])
        tokens = encoder._tokenizer.convert_ids_to_tokens(ids_T.tolist())
        for place in range(1, len(tokens) - 1):
            goes_on = tokens[place].startswith("##")
            assert goes_on == (word_T[place] == word_T[place - 1]), (line, place)
        assert not special_T[1:-1].any()
