"""The door for Python: images and texts in, named arrays out; to disk, to the hub and back."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vlp
from tests.examples import shaken
from tests.unit.pictures import encoded, ramps
from tests.unit.shard_making import CLASSES, WIDTH, some_regions
from tests.unit.task_making import PIXELS, model_config, text_encoder
from vlp import Regions, VisionLanguageModel
from vlp.errors import CheckpointError, ConfigError, DataError, VlpError
from vlp.models.model import ModelConfig, Network
from vlp.tasks.card import DataFacts, Training
from vlp.tasks.pretrain import PretrainConfig
from vlp.tasks.saved import SavedTask, save_trained

REGIONS = {"kind": "regions", "width": WIDTH, "classes": CLASSES, "max_regions": 4}
TASK = SavedTask(task=PretrainConfig.parse({"objectives": {"mlm": {"kind": "masked_language"}}}))
TRAINING = Training(
    steps=1200,
    recipe={"optimizer": {"learning_rate": 0.001}},
    data=(DataFacts(name="coco", examples=5000, fingerprint="abc", made_by={"command": "coco"}),),
    judged_on=DataFacts(name="dev", examples=70, fingerprint="def"),
    metrics={"mlm_accuracy": 0.5},
    versions={"torch": "2.15"},
)


def door(kind: str) -> VisionLanguageModel:
    """A model of regions, of pixels or of both, with every weight random."""
    config = model_config(PIXELS if kind == "pixels" else REGIONS)
    if kind == "both":
        values = config.plain()
        values["image"]["grid"] = {"source": {**PIXELS, "fit": "crop"}, "parts": [{"kind": "feature"}]}
        config = ModelConfig.parse(values)
    network = Network(config)
    for part in (network.text, *network.image.own_modules(), network.encoder, network.pooler):
        shaken(part)
    return VisionLanguageModel(network, text_encoder(), task=TASK, history=TRAINING).eval()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    ramps(60, 40).save(path)
    return path


def regions(number: int) -> Regions:
    """More than the model keeps, so that confidence decides."""
    return some_regions(6, number)


def arrays(number: int) -> dict[str, Any]:
    found = regions(number)
    return {"features": found.features_RD, "boxes": found.boxes_R4, "confidence": found.confidence_R}


# --------------------------------------------------------------------------------------------------------- encode


def test_arrays_are_named_and_of_each_pair(photo: Path) -> None:
    model = door("pixels")
    features = model.encode(images=[photo, None, ramps(20, 30)], texts=["red circle", "blue", "the red square"])
    assert features.pooled.shape == (3, 8)
    assert [len(text) for text in features.text] == [4, 3, 5]
    assert [len(image) for image in features.image] == [1, 0, 1]
    assert features.tokens[0] == ["[CLS]", "red", "circle", "[SEP]"]
    assert set(features.taps) == {"text.unimodal", "image.unimodal"}
    assert len(features) == 3
    every = [features.pooled, *features.text, *features.image, *(a for each in features.taps.values() for a in each)]
    assert {array.dtype for array in every} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in every)


def test_a_pair_s_arrays_are_what_the_network_makes_of_it_alone() -> None:
    model = door("regions")
    texts, given = ["red circle", "", "left of the blue square"], [regions(0), regions(1), None]
    features = model.encode(texts=texts, regions=given, batch_size=2)
    for number, (text, image) in enumerate(zip(texts, given, strict=True)):
        encoded = model(model.batch(texts=[text], regions=[image]))
        np.testing.assert_allclose(features.pooled[number], encoded.pooled_BH[0].detach(), atol=1e-5)
        np.testing.assert_allclose(features.text[number], encoded.text_NH.detach(), atol=1e-5)
        np.testing.assert_allclose(features.image[number], encoded.image_MH.detach(), atol=1e-5)


def test_paths_and_pictures_and_both_kinds_of_regions_are_the_same(photo: Path, tmp_path: Path) -> None:
    for kind in ("regions", "pixels", "both"):
        model = door(kind)
        np.savez(tmp_path / "0.npz", **arrays(0))
        one: dict[str, Any] = {"regions": [regions(0)], "images": [photo]}
        two: dict[str, Any] = {"regions": [arrays(0)], "images": [Image.open(photo)]}
        three: dict[str, Any] = {"regions": [tmp_path / "0.npz"], "images": [str(photo)]}
        wanted = {"regions": ["regions"], "pixels": ["images"], "both": ["images", "regions"]}[kind]
        found = [model.encode(**{name: given[name] for name in wanted}, texts=["red"]) for given in (one, two, three)]
        for other in found[1:]:
            np.testing.assert_allclose(other.pooled, found[0].pooled, atol=1e-5)
            np.testing.assert_allclose(other.image[0], found[0].image[0], atol=1e-5)
        assert len(found[0].image[0]) == {"regions": 4, "pixels": 1, "both": 5}[kind]


def test_arrays_of_bytes_are_pictures() -> None:
    model, picture = door("pixels"), ramps(60, 40)
    pixels_HW3 = np.asarray(picture)
    wanted = model.encode(images=[picture, picture.convert("L")])
    found = model.encode(images=[pixels_HW3, np.asarray(picture.convert("L"))])
    np.testing.assert_array_equal(found.pooled, wanted.pooled)
    both_PHW3, texts = np.stack([pixels_HW3, pixels_HW3[:, ::-1]]), np.array(["red", "blue"])
    several = model.encode(images=both_PHW3, texts=texts)  # type: ignore[arg-type]
    np.testing.assert_array_equal(several.pooled, model.encode(list(both_PHW3), ["red", "blue"]).pooled)
    both = door("both")
    one, other = (both.encode(images=[each], regions=[regions(0)]).pooled for each in (pixels_HW3, picture))
    np.testing.assert_array_equal(one, other)


def test_a_long_text_is_cut_and_costs_little() -> None:
    model = door("pixels")
    words = "red circle left of the blue square " * 9
    one, other = model.encode(texts=[words]), model.encode(texts=[words * 10_000])
    assert one.tokens == other.tokens
    np.testing.assert_array_equal(one.pooled, other.pooled)


def test_images_alone_and_texts_alone_are_encoded(photo: Path) -> None:
    model = door("pixels")
    assert model.encode(images=[photo, photo]).tokens == [["[CLS]", "[SEP]"]] * 2
    assert [len(image) for image in model.encode(texts=["red", "blue"]).image] == [0, 0]
    assert model.encode(texts=[]).pooled.shape == (0, 8)


def test_a_part_of_the_picture_takes_the_regions_in_it(photo: Path) -> None:
    """The picture is 60 x 40, of which the middle 40 x 40 is seen: regions outside it are left out."""
    boxes = np.array([[0, 0, 0.1, 1], [0.5, 0, 1, 1]], np.float32)
    given = {"features": np.ones((2, WIDTH), np.float32), "boxes": boxes}
    assert len(door("both").encode(images=[photo], regions=[given]).image[0]) == 1 + 1
    assert len(door("both").encode(images=[Image.open(photo)], regions=[given]).image[0]) == 1 + 1


def test_encoding_drops_nothing_and_leaves_the_mode_as_it_was() -> None:
    model = door("regions").train()
    assert model.config.dropout > 0
    first, second = (model.encode(texts=["red"], regions=[regions(0)]).pooled for _ in range(2))
    assert np.array_equal(first, second)
    assert model.training


def test_the_weights_type_is_the_batch_s(photo: Path) -> None:
    model = door("pixels").to(torch.bfloat16)
    assert model.encode(images=[photo], texts=["red"]).pooled.dtype == np.float32
    assert model(model.batch(texts=["red"])).pooled_BH.dtype == torch.bfloat16


def cut_off() -> Image.Image:
    """Opened, and half of it is missing when it is decoded."""
    return Image.open(io.BytesIO(encoded(ramps(300, 200))[:-900]))


PIXELS_3HW = np.zeros((3, 8, 9), np.uint8)
MISUSE: list[tuple[str, dict[str, Any], str]] = [
    ("regions", {"images": ["x.jpg"]}, r"pair 1: the model reads regions of a detector, not photos; give regions="),
    ("pixels", {"regions": [arrays(0)]}, r"pair 1: the model reads photos, not regions; give images="),
    ("both", {"regions": [arrays(0)]}, r"pair 1: the model reads photos and their regions; give images="),
    ("regions", {"texts": "red"}, r"encode: texts should be a list"),
    ("pixels", {"images": "x.jpg"}, r"encode: images should be a list"),
    ("regions", {}, r"encode: give images, texts or regions"),
    (
        "regions",
        {"texts": ["a", "b"], "regions": [None]},
        r"encode: .* unequal lengths \(texts 2, regions 1\); give one",
    ),
    ("pixels", {"images": ["nowhere.jpg"]}, r"nowhere.jpg: No such file"),
    ("pixels", {"images": [__file__]}, r"test_vision_language_model.py: image is not a JPEG, PNG or WebP image"),
    ("pixels", {"images": [ramps()], "texts": [None]}, r"encode: the text of pair 1 is of type NoneType; give a str"),
    ("pixels", {"texts": ["red", 7]}, r"encode: the text of pair 2 is of type int; give a str"),
    ("pixels", {"texts": ["red \ud800"]}, r"encode: the text of pair 1, 'red \\ud800': half a surrogate pair is no"),
    ("pixels", {"texts": {"red", "blue"}}, r"encode: texts should be a list"),
    ("pixels", {"images": 7}, r"encode: images should be a list"),
    ("pixels", {"images": np.zeros((8, 9, 3), np.uint8)}, r"encode: images should be a list"),
    ("pixels", {"images": [PIXELS_3HW]}, r"pair 1: image is an array \[3, 8, 9\] of uint8; give \[height, width, 3\]"),
    ("pixels", {"images": [np.zeros((8, 9, 3))]}, r"pair 1: image is an array \[8, 9, 3\] of float64; give"),
    ("pixels", {"images": [np.zeros((0, 9, 3), np.uint8)]}, r"pair 1: image is an array .*, which has no pixel"),
    ("pixels", {"images": [Image.new("RGB", (0, 4))]}, r"pair 1: image has no pixel"),
    ("pixels", {"images": [cut_off()]}, r"pair 1: image does not decode"),
    (
        "pixels",
        {"images": [torch.zeros(3, 8, 9)]},
        r"pair 1: the image is of type Tensor; give a picture",
    ),
    ("pixels", {"images": [b"bytes"]}, r"pair 1: the image is of type bytes"),
    ("pixels", {"images": ["a\0b.jpg"]}, r"embedded null"),
    ("pixels", {"images": ["/dev/zero"]}, r"/dev/zero: it is not a file"),
    ("pixels", {"images": [ramps()], "batch_size": 0}, r"batch_size is 0; it should be a whole number from 1 on"),
    ("regions", {"regions": [np.zeros((2, WIDTH))]}, r"pair 1: the regions are of type ndarray; give arrays by name"),
    ("regions", {"regions": ["/dev/zero"]}, r"/dev/zero: it is not a file"),
    (
        "regions",
        {"regions": [{"features": [[1.0], [1.0, 2.0]], "boxes": []}]},
        r"pair 1: features is no array",
    ),
    ("both", {"images": [ramps()]}, r"pair 1: the model reads photos and their regions; give regions="),
    ("regions", {"regions": [{"features": np.ones((2, 3))}]}, r"pair 1: boxes is missing"),
    ("regions", {"regions": [{**arrays(0), "box": 1}]}, r"regions have no array 'box' \(did you mean 'boxes'\?\)"),
    (
        "regions",
        {"regions": [{"features": np.ones((1, 3)), "boxes": np.ones((1, 4))}]},
        rf"pair 1: features has 3 numbers per region, not {WIDTH}",
    ),
]


@pytest.mark.parametrize(("kind", "given", "sentence"), MISUSE)
def test_misuse_is_a_sentence(kind: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(VlpError, match=sentence) as raised:
        door(kind).encode(**given)
    assert isinstance(raised.value, (ConfigError, DataError))
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------------------ disk and hub


@pytest.mark.parametrize("kind", ["regions", "pixels", "both"])
def test_a_saved_model_encodes_the_same(kind: str, photo: Path, tmp_path: Path) -> None:
    model = door(kind)
    model.save_pretrained(tmp_path / "model")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "model")
    assert (loaded.config, loaded.task, loaded.history) == (model.config, model.task, model.history)
    given: dict[str, Any] = {"texts": ["red circle"]}
    given |= {"images": [photo]} if kind != "regions" else {}
    given |= {"regions": [regions(0)]} if kind != "pixels" else {}
    assert np.array_equal(model.encode(**given).pooled, loaded.encode(**given).pooled)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "task.json", "tokenizer.json", "training.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_what_a_run_writes_is_what_is_loaded(tmp_path: Path) -> None:
    model = door("regions")
    save_trained(tmp_path, model.config, model.network.state_dict(), TASK, text_encoder(), TRAINING, "run")
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert np.array_equal(loaded.encode(texts=["red"]).pooled, model.encode(texts=["red"]).pooled)


def test_a_model_without_a_tokenizer_takes_one(tmp_path: Path) -> None:
    model = door("regions")
    model.network.save_pretrained(tmp_path / "bare")
    bare = VisionLanguageModel.from_pretrained(tmp_path / "bare")
    assert (bare.text, bare.task, bare.history) == (None, None, None)
    with pytest.raises(ConfigError, match=r"saved without a tokenizer"):
        bare.encode(texts=["red"])
    text_encoder().save(tmp_path / "words")
    with_words = VisionLanguageModel.from_pretrained(tmp_path / "bare", tokenizer=tmp_path / "words")
    assert np.array_equal(with_words.encode(texts=["red"]).pooled, model.encode(texts=["red"]).pooled)


def spoil(directory: Path, how: str) -> None:
    weights = directory / "model.safetensors"
    tensors = load_file(weights)
    if how == "another size":
        save_file({name: t.repeat(2) if t.ndim == 1 else t for name, t in tensors.items()}, weights)
    elif how == "no weights":
        weights.unlink()
    elif how == "pickle":
        weights.unlink()
        torch.save(tensors, directory / "pytorch_model.bin")
    elif how == "training":
        (directory / "training.json").write_text("{}")
    elif how == "words":
        config = json.loads((directory / "config.json").read_text())
        config["text"]["vocab_size"] += 1
        (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("another size", r"does not fit config.json: .*norm.weight is \[16\] and should be \[8\]; .*and \d+ more$"),
        ("no weights", r"model.safetensors: cannot be read"),
        ("pickle", r"model.safetensors: cannot be read"),
        ("training", r"training.json: not the record of a training"),
        ("words", r"the model has \d+ words, and its tokenizer \d+"),
    ],
)
def test_damaged_directories_are_refused(how: str, sentence: str, tmp_path: Path) -> None:
    door("regions").save_pretrained(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(CheckpointError, match=sentence):
        VisionLanguageModel.from_pretrained(tmp_path)


def test_a_directory_or_hub_id_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such directory; give one that holds a model, or a hub id"):
        VisionLanguageModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"someone/model: no such directory, and not to be had from the hub"):
        VisionLanguageModel.from_pretrained("someone/model")


def test_the_hub_s_copy_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door("regions").save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def download(repo_id: str, **arguments: Any) -> str:
        asked.update(arguments, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = VisionLanguageModel.from_pretrained("someone/model", revision="v2")
    assert loaded.history == TRAINING
    assert (asked["repo_id"], asked["revision"]) == ("someone/model", "v2")
    assert {"model.safetensors", "*.json"} <= set(asked["allow_patterns"])


def test_a_run_is_not_its_model(tmp_path: Path) -> None:
    door("regions").save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(CheckpointError, match=r"run: is the directory of a run; give .*run/model"):
        VisionLanguageModel.from_pretrained(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"None is no directory and no hub id"):
        VisionLanguageModel.from_pretrained(None)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"file: is a file; give a directory"):
        door("regions").save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`; keeps what was uploaded."""

    calls: list[tuple[str, dict[str, Any]]] = []
    files: dict[str, bytes] = {}

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repo_id: str, **arguments: Any) -> SimpleNamespace:
        self.calls.append(("create_repo", {"repo_id": repo_id, **arguments}))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, *, folder_path: str, **arguments: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", arguments))
        self.files.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_model_is_pushed_with_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    model = door("regions")
    assert model.push_to_hub("mine", private=True, token="t", revision="dev") == "https://hub/commit/1"
    calls = dict(FakeHub.calls)
    assert calls["create_repo"] == {"repo_id": "mine", "private": True, "exist_ok": True}
    assert (calls["upload_folder"]["repo_id"], calls["upload_folder"]["revision"]) == ("me/mine", "dev")
    for name, data in FakeHub.files.items():
        (tmp_path / name).write_bytes(data)
    assert VisionLanguageModel.from_pretrained(tmp_path).history == TRAINING
    assert 'from_pretrained("me/mine")' in (tmp_path / "README.md").read_text()


def test_the_package_is_light_until_the_model_is_asked_for() -> None:
    code = "import sys, vlp; assert 'torch' not in sys.modules; vlp.VisionLanguageModel; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vlp.nothing
