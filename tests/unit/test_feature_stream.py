"""`vlp.extract`: pairs stream through, and what is wrong with one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlp
from tests.unit.feature_making import RETRIEVAL, pixel_model, samples, trained
from tests.unit.pictures import ramps
from vlp.errors import ConfigError, DataError
from vlp.tasks.saved import SavedTask


def test_pairs_stream_in_order(tmp_path: Path) -> None:
    model = pixel_model()
    taken = []

    def pairs() -> Any:
        for number in range(7):
            taken.append(number)
            ramps(20 + number, 30).save(tmp_path / f"{number}.png")
            yield {"id": f"p{number}", "image": tmp_path / f"{number}.png", "text": "red " * (number + 1)}

    rows = vlp.extract(model, pairs(), "pooled,text,itm", window=3)
    assert not taken, "nothing is read before it is asked for"
    first = next(rows)
    assert taken == [0, 1, 2]
    found = [first, *rows]
    assert [row.id for row in found] == [f"p{number}" for number in range(7)]
    images = [tmp_path / f"{number}.png" for number in range(7)]
    encoded = model.encode(images, [row.words for row in found])
    for number, row in enumerate(found):
        np.testing.assert_allclose(row.arrays["pooled"], encoded.pooled[number], atol=1e-5)
        np.testing.assert_allclose(row.arrays["text"], encoded.text[number], atol=1e-5)


def test_a_pair_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    model = pixel_model()
    pairs: list[Any] = [(ramps(), "red"), (tmp_path / "none.jpg", "blue"), (None, "green")]
    said: list[dict[str, str]] = []
    assert [row.words for row in vlp.extract(model, pairs, bad=said.append)] == ["red", "green"]
    assert [record["id"] for record in said] == ["1"]
    with pytest.raises(DataError, match=r"pair 1: image .*No such file"):
        list(vlp.extract(model, pairs))
    with pytest.raises(ConfigError, match="pair 0 has an unknown 'txt'"):
        list(vlp.extract(model, [{"txt": "red"}]))


WRONG_PAIRS: list[tuple[str, Any, str]] = [
    ("pixels", "photo.jpg", r"it is a str; give \(image, text\), or a mapping of id, image, text, regions"),
    ("pixels", None, r"it is a NoneType; give"),
    ("pixels", ("a", "b", "c"), r"it is a tuple of 3; give"),
    ("pixels", (None, 7), r"text is of type int; give a str"),
    ("pixels", {"text": ["red"]}, r"text is of type list; give a str"),
    ("pixels", {"text": "red \ud800"}, r"text has a text with half a surrogate pair"),
    ("pixels", (7, "red"), r"the image is of type int; give a picture"),
    ("pixels", {"image": np.zeros((3, 8, 9), np.uint8)}, r"image is an array \[3, 8, 9\] of uint8; give"),
    ("pixels", {"regions": {}, "text": "red"}, r"regions are given, and the model reads photos; give the image"),
    ("regions", (ramps(), "red"), r"image is a photo, and the model reads regions of a detector; give regions"),
    ("regions", {"regions": 7}, r"the regions are of type int; give arrays by name"),
    ("regions", {"regions": {"box": 1}}, r"regions have no array 'box' \(did you mean 'boxes'"),
    ("regions", {"text": "red"}, r"image is missing, and itm is of it; leave the pair or itm out"),
]


@pytest.mark.parametrize(("kind", "pair", "sentence"), WRONG_PAIRS, ids=[each[2][:25] for each in WRONG_PAIRS])
def test_pairs_of_wrong_types_are_told_of(kind: str, pair: Any, sentence: str) -> None:
    model = trained() if kind == "regions" else pixel_model()
    good = {"regions": samples(1)[0].regions, "text": "red"} if kind == "regions" else (ramps(), "red")
    said: list[dict[str, str]] = []
    assert len(list(vlp.extract(model, [pair, good], "itm", bad=said.append))) == 1
    assert [record["id"] for record in said] == ["0"]
    with pytest.raises(DataError, match=f"pair 0: .*{sentence}"):
        list(vlp.extract(model, [pair, good], "itm"))


def test_what_extract_takes_is_checked_before_anything_is_read() -> None:
    model: Any = pixel_model()
    for given, sentence in (
        ({"pairs": "photo.jpg"}, "pairs is a str"),
        ({"pairs": {"image": "photo.jpg"}}, "pairs is a dict"),
        ({"pairs": None}, "pairs is a NoneType"),
        ({"model": "runs/mine/model"}, "model is a str; give VisionLanguageModel.from_pretrained"),
        ({"window": 0}, "window is 0; it should be a whole number from 1 on"),
        ({"micro_tokens": "many"}, "micro_tokens is 'many'"),
        ({"bad": []}, "bad is a list; give something that can be called"),
    ):
        with pytest.raises(ConfigError, match=f"extract: {sentence}"):
            vlp.extract(**{"model": model, "pairs": [], **given})  # type: ignore[arg-type]


def test_what_is_of_an_image_needs_one() -> None:
    """Of a text alone there are states and a pooled vector, and no image's vector or odds of a match."""
    model = pixel_model()
    pairs = [{"text": "red"}, {"image": ramps(), "text": "blue"}]
    assert len(list(vlp.extract(model, pairs, "pooled,text,image,text.vector"))) == 2
    for what in ("image.vector", "itm", "pooled,image.vector"):
        said: list[dict[str, str]] = []
        assert [row.words for row in vlp.extract(model, pairs, what, bad=said.append)] == ["blue"]
        assert said[0]["member"] == "image"
    blind = pixel_model()
    blind.task = SavedTask(task=RETRIEVAL, without="image")
    assert len(list(vlp.extract(blind, pairs, "itm"))) == 2, "as it was trained"
