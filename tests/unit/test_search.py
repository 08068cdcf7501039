"""Search: kinds of index against the exact one, names and texts of what is found, the second look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vlp
from tests.unit.feature_making import extract, other_model, pixel_model, samples, shards, trained
from tests.unit.pictures import ramps
from vlp import Features, SearchIndex, VisionLanguageModel
from vlp.errors import ConfigError, DataError, VlpError
from vlp.extraction import Inputs, open_source
from vlp.features.preparing import Files, Preparing
from vlp.features.sources import ShardSource, Source
from vlp.search.building import build_index
from vlp.search.searcher import Searcher
from vlp.search.strings import Strings, StringsWriter
from vlp.search.vectors import KINDS, Kind, build, exact_nearest, load, nearest, recall, save, widen

pytest.importorskip("faiss", reason="the extra `search` is not installed")


def clustered(number: int, width: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((40, width))
    vectors = centres[rng.integers(40, size=number)] + 0.7 * rng.standard_normal((number, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_finds_what_is_near(kind: Kind, tmp_path: Path) -> None:
    vectors, queries = clustered(4000), clustered(50, seed=9)

    def chunks() -> Iterator[NDArray[np.float32]]:
        return iter(np.array_split(vectors, 7))

    _, true_QK = exact_nearest(chunks, queries, 10)
    np.testing.assert_array_equal(true_QK, np.argsort(-(queries @ vectors.T), axis=1)[:, :10])
    index = build(kind, 16, len(vectors), chunks)
    by_itself = recall(index, chunks, queries)
    assert by_itself == 1 if kind == "exact" else 0.6 < by_itself <= 1
    save(index, tmp_path / "x.faiss")
    mapped = load(tmp_path / "x.faiss")
    for one, other in zip(nearest(index, queries, 5), nearest(mapped, queries, 5), strict=True):
        np.testing.assert_array_equal(one, other)
    if kind == "ivf":
        widen(index, 0.1)
        narrow = recall(index, chunks, queries)
        widen(index, 1000)
        assert narrow < by_itself
        assert recall(index, chunks, queries) == 1, "all lists are looked into"


def test_a_file_that_is_no_index_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is no index of vectors"):
        load(tmp_path / "x.faiss")
    with pytest.raises(DataError, match=r"search.json: is missing; build an index with `vlp index"):
        SearchIndex(tmp_path)


def test_texts_on_the_disk(tmp_path: Path) -> None:
    texts = ["red", "", "grün", "two\nlines", "x" * 5000]
    writer = StringsWriter(tmp_path / "words")
    for text in texts:
        writer.add(text)
    writer.close()
    found = Strings(tmp_path / "words", 5)
    assert list(found) == texts
    assert found[2] == "grün"
    with pytest.raises(IndexError):
        found[5]


def extracted(
    model: VisionLanguageModel, source: Source, out: Path, what: str = "text.vector,image.vector"
) -> Features:
    extract(out, model, source, what=what, model_name="the model")
    return Features(out)


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return trained()


@pytest.fixture(scope="module")
def source(model: VisionLanguageModel, tmp_path_factory: pytest.TempPathFactory) -> ShardSource:
    return ShardSource(shards(tmp_path_factory.mktemp("data")), Preparing(model))


@pytest.fixture(scope="module")
def searcher(model: VisionLanguageModel, source: ShardSource, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder = tmp_path_factory.mktemp("search")
    facts = build_index(extracted(model, source, folder / "features"), folder / "index")
    assert facts.sides["image"].count == 12, "an image with three texts is one image"
    assert facts.sides["text"].count == len({caption for sample in samples(12) for caption in sample.captions})
    assert facts.sides["text"].recall == 1
    return Searcher(SearchIndex(folder / "index"), model, source)


def test_words_find_images_and_images_find_words(searcher: Searcher, model: VisionLanguageModel) -> None:
    made, regions = samples(12), [sample.regions for sample in samples(12)]
    texts = [caption for sample in made for caption in sample.captions]
    rows = list(vlp.extract(model, [{"text": text} for text in texts], "text.vector"))
    shown = list(vlp.extract(model, [{"regions": each} for each in regions], "image.vector"))
    image_ID = np.stack([row.arrays["image.vector"] for row in shown])
    cosine_IT = image_ID @ np.stack([row.arrays["text.vector"] for row in rows]).T
    hits = searcher.by_words(texts[3], k=4)
    best = np.argsort(-cosine_IT[:, 3])[:4]
    assert [hit.image.rpartition("/")[2] for hit in hits] == [made[number].key for number in best]
    np.testing.assert_allclose([hit.score for hit in hits], cosine_IT[best, 3], atol=1e-5)
    hits = searcher.by_picture(Files(regions=regions[5]), k=3)
    best = np.argsort(-cosine_IT[5])[:3]
    np.testing.assert_allclose([hit.score for hit in hits], cosine_IT[5, best], atol=1e-5)
    best_texts = np.flatnonzero(cosine_IT[5] > cosine_IT[5].max() - 1e-5)
    assert hits[0].words in {texts[number] for number in best_texts}
    alike = searcher.by_picture(Files(regions=regions[5]), "image", k=2)
    assert alike[0].image.endswith(made[5].key)
    assert alike[0].score == pytest.approx(1, abs=1e-5)


def test_the_second_look_ranks_by_the_matching_head(searcher: Searcher, model: VisionLanguageModel) -> None:
    made = {sample.key: sample for sample in samples(12)}
    hits = searcher.by_words("red circle", k=4, rerank=12)
    keys = [hit.image.rpartition("/")[2] for hit in hits]
    odds_I1 = model.match(texts=["red circle"], regions=[made[key].regions for key in made])  # type: ignore[misc]
    best = np.argsort(-odds_I1[:, 0])[:4]
    assert keys == [list(made)[number] for number in best]
    np.testing.assert_allclose([hit.score for hit in hits], odds_I1[best, 0], atol=1e-5)
    hits = searcher.by_picture(Files(regions=made["s002"].regions), k=3, rerank=8)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    regions = made["s002"].regions
    assert regions is not None
    np.testing.assert_allclose(model.match(texts=[hits[0].words], regions=[regions])[0, 0], hits[0].score, atol=1e-5)
    with pytest.raises(ConfigError, match="compares a text with an image, not two images"):
        searcher.by_picture(Files(regions=regions), "image", rerank=5)


def test_what_does_not_fit_is_refused(searcher: Searcher, model: VisionLanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="those of another model"):
        Searcher(searcher.index, other_model())
    with pytest.raises(ConfigError, match="--text: is empty"):
        searcher.by_words(" ")
    with pytest.raises(DataError, match="No such file"):
        searcher.by_picture(Files(regions=tmp_path / "none.npz"))
    other = ShardSource(shards(tmp_path / "other", given=samples(3)), Preparing(model))
    with pytest.raises(ConfigError, match=r"is not what .* was made of, or has changed since"):
        Searcher(searcher.index, model, other)
    with pytest.raises(ConfigError, match="needs the images that the index was made of; give --data"):
        Searcher(searcher.index, model).by_words("red", rerank=3)
    with pytest.raises(ConfigError, match="has vectors of 6 numbers, and the query 7"):
        searcher.index.search(np.zeros((1, 7), np.float32), "image")
    with pytest.raises(ConfigError, match="--kind: 'tree' is not known"):
        build_index(Features(extracted(model, other, tmp_path / "f").folder), tmp_path / "i", "tree")  # type: ignore[arg-type]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and holds no index"):
        build_index(Features(tmp_path / "f"), tmp_path / "mine")
    with pytest.raises(ConfigError, match="has no vectors to search in"):
        build_index(extracted(model, other, tmp_path / "pooled", "pooled"), tmp_path / "i")


def test_vectors_that_are_one_for_all_texts_are_refused(
    model: VisionLanguageModel, source: ShardSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = extracted(model, source, tmp_path / "f")
    one = np.full(6, 6**-0.5, np.float32)
    rows = [replace(row, arrays={**row.arrays, "text.vector": one}) for row in features]
    monkeypatch.setattr(Features, "__iter__", lambda _: iter(rows))
    with pytest.raises(DataError, match=r"text.vector is the same for every text, so the model tells none"):
        build_index(features, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_one_side_alone(model: VisionLanguageModel, source: ShardSource, tmp_path: Path) -> None:
    build_index(extracted(model, source, tmp_path / "f", "image.vector"), tmp_path / "index", "hnsw")
    searcher = Searcher(SearchIndex(tmp_path / "index"), model, source)
    assert len(searcher.by_words("red", k=5)) == 5
    with pytest.raises(ConfigError, match=r"has no texts to be found; extract text.vector too"):
        searcher.by_words("red", "text")


def test_photos_of_a_folder_and_of_a_table_are_found_again(tmp_path: Path) -> None:
    model = pixel_model()
    (tmp_path / "photos").mkdir()
    for number in range(4):
        ramps(20 + 10 * number, 30).save(tmp_path / "photos" / f"{number}.png")
    lines = [f"k{number},photos/{number}.png,red" for number in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["key,image,text", *lines]))
    for given, name in (("photos", "2.png"), ("pairs.csv", "photos/2.png")):
        source = open_source(Inputs(str(tmp_path / given)), model)
        build_index(extracted(model, source, tmp_path / f"features {given}"), tmp_path / "index")
        searcher = Searcher(SearchIndex(tmp_path / "index"), model, source)
        hits = searcher.by_picture(Files(tmp_path / "photos" / "2.png"), "image", k=1)
        path = tmp_path / "photos" / "2.png"
        for given_as in (path, str(path), Image.open(path)):
            assert searcher.by_picture(given_as, "image", k=1)[0].score == pytest.approx(hits[0].score, abs=1e-5)
        assert hits[0].image == name
        assert source.photo(name) == tmp_path / "photos" / "2.png"
        assert searcher.by_words("red", k=2, rerank=4)
    with pytest.raises(DataError, match="has no row with the image 'k9'"):
        source.photo("k9")


def test_what_a_searcher_is_asked_is_checked(searcher: Searcher, tmp_path: Path) -> None:
    ramps().save(tmp_path / "photo.png")
    for call, sentence in (
        (lambda: searcher.by_words("red", k=0), "--k is 0; it should be a whole number from 1 on"),
        (lambda: searcher.by_words("red", k="ten"), "--k is 'ten'; it should"),
        (lambda: searcher.by_words("red", rerank=-1), "--rerank is -1; it should be a whole number from 0 on"),
        (lambda: searcher.by_words("red", "photos"), "--for: 'photos' is not right, it should be image or text"),
        (lambda: searcher.by_words(None), "--text: is empty; give some words"),
        (lambda: searcher.by_words("red \ud800"), "^text: has a text with half a surrogate pair"),
        (lambda: searcher.by_picture(None), "--image: is not given"),
        (lambda: searcher.by_picture(Files()), "--image: is not given"),
        (lambda: searcher.by_picture(str(tmp_path / "photo.png")), "image is a photo, and the model reads regions"),
        (lambda: searcher.by_picture(Files(regions=7)), "the regions are of type int"),
    ):
        with pytest.raises(VlpError, match=sentence):
            call()  # type: ignore[no-untyped-call]
