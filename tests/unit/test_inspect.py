from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_tools.inspect.counting import Counts, Source, count_shard
from data_tools.inspect.summary import Summary, spread
from data_tools.tokenizer import save, train
from data_tools.writer import ShardWriter
from tests.unit.import_running import vlp_data
from tests.unit.shard_making import CLASSES, photo, some_regions, texts, write_samples, write_tar
from vlp.data.index import build_index, open_index
from vlp.data.text import TextEncoder
from vlp.types import Question, Regions


def summary(directory: Path, encoder: TextEncoder | None = None) -> Summary:
    index, counts = open_index(directory), Counts()
    for shard in range(len(index.manifest.shards)):
        counts.add(count_shard(Source(index, encoder), shard, lambda: None))
    return Summary(index.manifest, counts, encoder)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three questions with regions, captions and answers that attack a page, and a picture that is none."""
    directory = tmp_path / "data"
    with ShardWriter(directory) as writer:
        for number, answers in enumerate([("yes",), ("yes", "no"), ()]):
            question = Question("is it <b>?", answers)
            captions = ["a <script>alert(1)</script> here"] * number
            writer.write(f"k{number}", photo(number), "jpg", some_regions(2 + number), captions, [question])
        writer.write("bad", b"not an image", "jpg", None, ["c"])
    build_index(directory, made_by={"command": "<i>test</i>", "regions": {"from": "npz", "classes": 3}})
    return directory


def test_what_the_terminal_shows(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vlp_data("inspect", data, "--workers", 2) == 0
    said = capsys.readouterr().out
    for told in (
        "4 (2 different)",
        "6 wide",
        "words per caption",
        "3 answers, 2 different",
        "66.7%",
        "1 questions without",
        "regions.from",
        "different words",
        "class 0",
    ):
        assert told in said


class Tags(HTMLParser):
    """Checks that every tag is closed where it should be."""

    VOID = {"meta", "img", "rect"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1
        if tag not in self.VOID or (tag == "rect" and ("class", "over") in attrs):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_escaped(data: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    assert vlp_data("inspect", data, "--html", page) == 0
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert "script" not in tags.seen
    assert "&lt;script&gt;" in text
    assert "&lt;i&gt;test" in text
    assert "is it &lt;b&gt;?" in text
    assert "http" not in text  # nothing is fetched
    assert 'name="viewport"' in text
    assert text.count('class="over"') == text.count('class="under"') == 2 + 3 + 4
    assert tags.seen["img"] == 3
    assert "does not decode" in text
    assert '<span class="answer">no, yes</span>' in text
    assert '<span class="answer">(no answer)</span>' in text


def test_few_boxes_and_texts_are_shown_of_a_sample_with_many(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "data") as writer:
        writer.write("k", photo(), "jpg", some_regions(30), [f"caption {n}" for n in range(40)])
    build_index(tmp_path / "data")
    vlp_data("inspect", tmp_path / "data", "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count('class="over"') == 8
    assert "and 22 more regions" in text
    assert "and 28 more" in text


def test_samples_that_cannot_be_read_are_counted_and_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(b'["c"]', b'["c",'))
    assert vlp_data("inspect", data) == 0
    assert "1: shard-000000.tar/bad (json is" in capsys.readouterr().out


def test_counts_do_not_depend_on_how_shards_are_cut(tmp_path: Path) -> None:
    found = []
    for name, per_shard in (("one", 20), ("many", 2)):
        write_samples(tmp_path / name, samples=11, per_shard=per_shard)
        build_index(tmp_path / name)
        found.append(summary(tmp_path / name))
    one, many = found
    assert one.spreads() == many.spreads()
    assert one.vocabulary() == many.vocabulary()
    assert one.classes() == many.classes()
    assert one.overview()[1:] == many.overview()[1:]


def test_a_histogram_spreads_as_its_values_do() -> None:
    values = np.random.default_rng(0).integers(0, 50, 1001)
    least, median, mean, most_of_them, most = (float(figure) for figure in spread(Counter(values.tolist())))
    assert (least, most) == (values.min(), values.max())
    assert median == np.median(values)
    assert mean == pytest.approx(values.mean(), abs=0.05)
    assert most_of_them == np.percentile(values, 95, method="inverted_cdf")
    assert spread(Counter({133: 1}), 100) == ("1.33",) * 5


def test_words_are_counted_as_people_see_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", [("a.txt", "The dog's dog — THE dog; một con chó!".encode())])
    build_index(tmp_path, text_only=True)
    found = summary(tmp_path)
    assert found.counts.words == {"the": 2, "dog's": 1, "dog": 2, "một": 1, "con": 1, "chó": 1}
    assert dict(found.vocabulary()) == {"words": "8", "different words": "6", "of these, once only": "4 (66.7%)"}


def test_a_tokenizer_tells_lengths_and_coverage(tmp_path: Path) -> None:
    save(train(["red circle blue square"] * 5, 60, lowercase=True), tmp_path / "tokenizer")
    write_tar(tmp_path / "data" / "x.tar", [("a.json", texts("red circle", "red Ж circle", "red red red red"))])
    build_index(tmp_path / "data", text_only=True)
    encoder = TextEncoder(tmp_path / "tokenizer", 1 << 30)
    found = summary(tmp_path / "data", encoder)
    assert found.counts.tokens == {4: 1, 5: 1, 6: 1}
    told = dict(found.vocabulary())
    ordinary = encoder.vocab_size - 5
    assert told["tokens"] == "9 (1.00 per word)"
    assert told["unknown tokens"] == "1 (11.11%)"
    assert told["vocabulary"] == f"{ordinary} tokens and 5 special ones"
    assert told["of these, never used"].startswith(f"{ordinary - 2} ")


def test_region_classes_are_ranked_by_probability(tmp_path: Path) -> None:
    probs = np.array([[0.6, 0.4, 0], [0.3, 0.7, 0], [0.5, 0.25, 0.25]], np.float16)
    regions = some_regions(3)
    made = Regions(regions.features_RD, regions.boxes_R4, regions.confidence_R, probs)
    with ShardWriter(tmp_path / "data") as writer:
        writer.write("k", None, "", made, ["c"])
    build_index(tmp_path / "data")
    ranked = summary(tmp_path / "data").classes()
    assert [(name, count) for name, count, _ in ranked] == [("class 0", 2), ("class 1", 1), ("class 2", 0)]
    assert [share for _, _, share in ranked] == pytest.approx([1.4 / 3, 1.35 / 3, 0.25 / 3], abs=1e-3)
    assert len(ranked) == CLASSES


def test_region_classes_have_the_names_that_are_given(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a <cat>\na dog\n\n" + "more\n" * (CLASSES - 3))
    assert vlp_data("inspect", data, "--class-names", names, "--html", tmp_path / "page.html") == 0
    said = capsys.readouterr().out
    assert "a <cat>" in said
    assert "class 2 " in said  # its line is blank
    assert re.search(r"<title>(a &lt;cat&gt;|a dog) ", (tmp_path / "page.html").read_text())
    names.write_text("a cat\n")
    assert vlp_data("inspect", data, "--class-names", names) == 2
    assert f"has 1 lines where regions have {CLASSES} classes" in capsys.readouterr().err


def test_packed_regions_are_counted_too(tmp_path: Path) -> None:
    regions = some_regions(2)
    packed = tmp_path / "r.npz"
    assert regions.class_probs_RC is not None
    np.savez(packed, features=regions.features_RD, norm_bb=regions.boxes_R4, soft_labels=regions.class_probs_RC)
    write_tar(tmp_path / "data" / "x.tar", [("a.regions.npz", packed.read_bytes()), ("a.txt", b"c")])
    build_index(tmp_path / "data")
    expected = Counter(regions.class_probs_RC.argmax(axis=1).tolist())
    assert summary(tmp_path / "data").counts.class_top == expected


def test_numbers_of_real_data(tmp_path: Path, test_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = test_data / "daquar"
    given = ("--qa", source / "qa.894.raw.train.format_triple", "--images", source / "images", "--out", tmp_path / "d")
    assert vlp_data("daquar", *given) == 0
    capsys.readouterr()
    more = ("--html", tmp_path / "page.html", "--tokenizer", test_data / "bert_vocab")
    assert vlp_data("inspect", tmp_path / "d", *more) == 0
    said = capsys.readouterr().out
    assert "6,795 answers, 968 different" in said
    assert "│ 2       │   272 │" in said  # the most frequent one, as the data's README tells
    assert "30,517 tokens and 5 special ones" in said
    assert (tmp_path / "page.html").read_text().count("<img") == 24
