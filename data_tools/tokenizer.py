"""`vlp-data tokenizer`: train a WordPiece tokenizer on the texts of data directories."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from vlp.data.index import Texts, open_index
from vlp.errors import ConfigError, DataError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The first five ids, in BERT's roles."""

_CONTINUED = "##"


def tokenizer(
    shards: Annotated[list[Path], typer.Argument(help="Data directories (with an index), or tar shards in one.")],
    vocab_size: Annotated[int, typer.Option(min=len(SPECIAL) + 1, help="Most tokens, the 5 special ones included.")],
    out: Annotated[Path, typer.Option(help="Directory for the tokenizer's files.")],
    texts: Annotated[Texts, typer.Option(help="Which texts to learn from.")] = "both",
    lowercase: Annotated[bool, typer.Option("--lowercase/--cased", help="Fold upper case; accents are kept.")] = True,
) -> None:
    """Train a WordPiece tokenizer on the texts of data directories."""
    lines, bad = read_texts(shards, texts)
    made = train(lines, vocab_size, lowercase=lowercase)
    save(made, out)
    skipped = f"; {bad} unreadable samples were skipped" if bad else ""
    typer.echo(f"{out}: {made.get_vocab_size()} tokens from {len(lines)} texts{skipped}")


def read_texts(paths: Iterable[Path], texts: Texts) -> tuple[list[str], int]:
    """The captions and/or questions of data directories or single shards, stripped and in NFC.

    Returns:
        the texts, and the number of samples that could not be read.
    Raises:
        DataError: a path is not there or has no index; or there is not one text.
    """
    from vlp.data.shards import BadSample, ShardReader

    lines: list[str] = []
    bad = 0
    for path in paths:
        for reader, shard in _readers(path, ShardReader):
            for row in range(len(reader.index.table(shard).keys)):
                try:
                    sample = reader.read(shard, row, image=False, regions=False, texts=True)
                except BadSample:
                    bad += 1
                    continue
                lines += sample.captions if texts != "questions" else ()
                lines += [question.text for question in sample.questions] if texts != "captions" else ()
    if not lines:
        raise DataError(f"{', '.join(map(str, paths))}: no text to learn from; give shards that hold {_wanted(texts)}")
    return lines, bad


def _wanted(texts: Texts) -> str:
    return "captions or questions" if texts == "both" else texts


def _readers(path: Path, reader: Any) -> Iterator[tuple[Any, int]]:
    """A reader of the path's data directory, with the number of each shard that is meant."""
    single = path.suffix == ".tar" and path.is_file()
    index = open_index(path.parent if single else path)
    opened = reader(index)
    for number, entry in enumerate(index.manifest.shards):
        if not single or entry.name == path.name:
            yield opened, number


def train(lines: list[str], vocab_size: int, *, lowercase: bool) -> Any:
    """A `tokenizers.Tokenizer`: NFC, BERT's words, WordPiece, `[CLS] text [SEP]`. The same texts give the same bytes.

    Raises:
        ConfigError: `vocab_size` has no room for the characters of the texts.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    steps = [normalizers.NFC(), normalizers.Lowercase()] if lowercase else [normalizers.NFC()]
    normalizer = normalizers.Sequence([*steps, normalizers.NFC()])  # lower case of some letters is not composed
    words = pre_tokenizers.BertPreTokenizer()

    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer
    learner.pre_tokenizer = words
    # The trainer numbers the inner characters as it meets them in a hash map of random order, and those numbers break
    # ties between equally frequent merges: two trainings would differ. Named as special tokens they have fixed numbers.
    inner = sorted({letter for line in lines for word in _words(normalizer, words, line) for letter in word[1:]})
    fixed = [*SPECIAL, *(_CONTINUED + letter for letter in inner)]
    learner.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    )
    vocabulary = learner.get_vocab()
    if len(vocabulary) > vocab_size:
        raise ConfigError(
            f"--vocab-size {vocab_size} has no room for the texts' characters; give at least {len(vocabulary)}"
        )

    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizer
    made.pre_tokenizer = words
    made.decoder = decoders.WordPiece(prefix=_CONTINUED)
    made.add_special_tokens(list(SPECIAL))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made


def _words(normalizer: Any, words: Any, line: str) -> list[str]:
    return [word for word, _ in words.pre_tokenize_str(normalizer.normalize_str(line))]


def save(made: Any, out: Path) -> None:
    """Write the files from which transformers' `AutoTokenizer` loads it, without a hub.

    Raises:
        ConfigError: `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a directory")
    out.mkdir(parents=True, exist_ok=True)
    made.save(str(out / "tokenizer.json"))
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **roles, "clean_up_tokenization_spaces": False}
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
