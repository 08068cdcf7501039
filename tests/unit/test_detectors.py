"""Regions from torchvision's detectors: tiny inputs and random weights, against torchvision's own forward."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from data_tools.regions.detectors import DetectorRegions, Selection, detector_names, select
from data_tools.regions.maker import Photo
from tests.unit.shard_making import photo
from vlp.data.samples import Fault
from vlp.errors import ConfigError
from vlp.types import Regions

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
SIZES = [(60, 40), (40, 60), (61, 40), (120, 80), (64, 64), (40, 60)]
"""Of the photos; the first, third and fourth are padded alike."""


def _lively(maker: DetectorRegions) -> DetectorRegions:
    """A network whose features and scores differ from place to place: those of a new one are all but equal."""
    body, heads = maker._network.backbone.body, maker._network.roi_heads
    for module in body.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        body.train()
        body(torch.randn(8, 3, 96, 96, generator=generator))  # statistics of what there is
        body.eval()
        heads.box_predictor.cls_score.weight.mul_(60)
        maker._network.rpn.head.cls_logits.weight.mul_(60)
    return maker


@pytest.fixture(scope="module")
def maker() -> DetectorRegions:
    return _lively(DetectorRegions(NAME, untrained=True, size=64, batch=4, selection=Selection(max_boxes=30)))


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return [Photo(str(number), photo(number, size, "PNG")) for number, size in enumerate(SIZES)]


def _regions(found: object) -> Regions:
    assert isinstance(found, Regions)
    return found


def _directly(maker: DetectorRegions, data: bytes) -> tuple[Tensor, Tensor, Tensor]:
    """What torchvision's own forward makes of one photo: features, probabilities, boxes (0..1) of its proposals."""
    network, seen = maker._network, {}
    heads = network.roi_heads
    hooks = [
        heads.box_head.register_forward_hook(lambda _, given, out: seen.update(features=out)),
        heads.box_predictor.register_forward_hook(lambda _, given, out: seen.update(scores=out)),
        heads.box_roi_pool.register_forward_hook(lambda _, given, out: seen.update(proposals=given[1], sizes=given[2])),
    ]
    with torch.inference_mode():
        network([pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255])
    for hook in hooks:
        hook.remove()
    logits, deltas = seen["scores"]
    height, width = seen["sizes"][0]
    boxes = heads.box_coder.decode(deltas, seen["proposals"]) / torch.tensor([width, height, width, height])
    return seen["features"], logits.softmax(-1), boxes.clamp(0, 1)


def test_features_and_classes_are_those_of_torchvision(maker: DetectorRegions, photos: Sequence[Photo]) -> None:
    for given, found in zip(photos, maker.make(photos), strict=True):
        regions = _regions(found)
        features_PD, probs_PC, boxes_PC4 = _directly(maker, given.image or b"")
        assert 10 <= len(regions) <= 30
        confidence_P, class_P = probs_PC[:, 1:].max(1)
        boxes_P4 = boxes_PC4[torch.arange(len(class_P)), class_P + 1]
        # By both, since two proposals may look the same to so small a network.
        ours = torch.from_numpy(np.hstack([regions.features_RD, regions.boxes_R4]))
        theirs = torch.cat([features_PD, boxes_P4], 1)
        place = torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert len(set(place.tolist())) == len(regions)  # each proposal once
        np.testing.assert_allclose(regions.features_RD, features_PD[place], atol=1e-5)
        np.testing.assert_allclose(regions.boxes_R4, boxes_P4[place], atol=1e-5)
        np.testing.assert_allclose(regions.class_probs_RC, probs_PC[place], atol=1e-5)
        np.testing.assert_allclose(regions.confidence_R, confidence_P[place], atol=1e-5)
        assert (np.diff(regions.confidence_R) <= 0).all()  # type: ignore[arg-type]


def test_what_regions_look_like(maker: DetectorRegions, photos: Sequence[Photo]) -> None:
    for found in maker.make(photos):
        regions = _regions(found)
        assert regions.class_probs_RC is not None
        np.testing.assert_allclose(regions.class_probs_RC.sum(axis=1), 1, atol=1e-5)
        assert regions.class_probs_RC.shape[1] == maker.provenance["classes"] == 91
        assert regions.features_RD.shape[1] == maker.provenance["width"] == 1024
        assert regions.boxes_R4.min() >= 0
        assert regions.boxes_R4.max() <= 1
        assert (regions.boxes_R4[:, 2:] > regions.boxes_R4[:, :2]).all()
        assert {array.dtype for array in (regions.features_RD, regions.boxes_R4, regions.class_probs_RC)} == {
            np.dtype(np.float32)
        }


def test_a_photo_has_the_same_regions_in_any_company(maker: DetectorRegions, photos: Sequence[Photo]) -> None:
    together = maker.make(photos)
    shapes = [tuple(photos[row].id for row in rows) for rows in maker._batches(photos)]
    assert max(len(rows) for rows in shapes) > 1
    alone = [maker.make([given])[0] for given in photos]
    backwards = maker.make(photos[::-1])[::-1]
    for others in (alone, backwards):
        for one, other in zip(together, others, strict=True):
            for name in ("features_RD", "boxes_R4", "confidence_R", "class_probs_RC"):
                a, b = getattr(_regions(one), name), getattr(_regions(other), name)
                np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_a_wrong_forecast_of_shapes_changes_nothing(
    maker: DetectorRegions, photos: Sequence[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = maker.make(photos)
    monkeypatch.setattr(DetectorRegions, "_shape", lambda self, data: (64, 64))
    assert len(maker._batches(photos)[0]) == 4
    for one, other in zip(wanted, maker.make(photos), strict=True):
        np.testing.assert_allclose(_regions(one).features_RD, _regions(other).features_RD, atol=1e-5)
        np.testing.assert_allclose(_regions(one).boxes_R4, _regions(other).boxes_R4, atol=1e-5)


def test_photos_that_cannot_be_read_are_told_apart(maker: DetectorRegions, photos: Sequence[Photo]) -> None:
    cut = (photos[0].image or b"")[:-60]
    found = maker.make([photos[0], Photo("cut", cut), Photo("none"), Photo("text", b"no image"), photos[1]])
    assert [type(one) for one in found] == [Regions, Fault, type(None), Fault, Regions]
    assert str(found[1]) == "image does not decode"
    np.testing.assert_allclose(_regions(found[4]).boxes_R4, _regions(maker.make(photos[1:2])[0]).boxes_R4, atol=1e-5)


def test_a_photo_is_seen_upright(maker: DetectorRegions) -> None:
    upright = Image.open(io.BytesIO(photo(1, (60, 40), "PNG")))
    lying, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    lying.save(stored, "PNG", exif=exif)
    found = maker.make([Photo("a", photo(1, (60, 40), "PNG")), Photo("b", stored.getvalue())])
    np.testing.assert_allclose(_regions(found[0]).boxes_R4, _regions(found[1]).boxes_R4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- selection


def _select(confidences: Sequence[float], boxes: Sequence[Sequence[float]], **selection: Any) -> list[int]:
    """The numbers of the proposals that are selected; all are of class 2 of 3, the others' boxes lie elsewhere."""
    probs = torch.tensor([[1 - c, 0.0, c] for c in confidences])
    boxes_PC4 = torch.zeros(len(boxes), 3, 4)
    boxes_PC4[:, 2] = torch.tensor(boxes)
    features = torch.arange(len(boxes), dtype=torch.float32)[:, None]
    regions = select(features, probs, boxes_PC4, (100, 200), replace(Selection(), **selection))
    return [] if regions is None else [int(row) for row in regions.features_RD[:, 0]]


ROW = [[10.0 * number, 0.0, 10.0 * number + 9, 9.0] for number in range(6)]


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"min_boxes": 1, "max_boxes": 9, "threshold": 0.45}, [3, 0, 5]),
        ({"min_boxes": 1, "max_boxes": 2, "threshold": 0.45}, [3, 0]),
        ({"min_boxes": 5, "max_boxes": 9, "threshold": 0.45}, [3, 0, 5, 1, 4]),
        ({"min_boxes": 2, "max_boxes": 9, "threshold": 0.99}, [3, 0]),
    ],
)
def test_so_many_by_confidence(selection: dict[str, Any], wanted: list[int]) -> None:
    assert _select([0.7, 0.3, 0.1, 0.9, 0.2, 0.5], ROW, **selection) == wanted


def test_of_boxes_that_overlap_the_surer_stays() -> None:
    boxes = [[0.0, 0.0, 50.0, 50.0], [0.0, 0.0, 50.0, 45.0], [0.0, 0.0, 50.0, 20.0]]  # overlaps with the first: .9, .4
    assert _select([0.5, 0.6, 0.4], boxes) == [1, 2]
    assert _select([0.5, 0.6, 0.4], boxes, nms=0.95) == [1, 0, 2]


def test_boxes_of_nothing_are_left_out() -> None:
    assert _select([0.5, 0.6], [[10.0, 10.0, 10.2, 50.0], [150.0, 50.0, 400.0, 60.0]]) == [1]
    assert _select([0.5], [[300.0, 10.0, 400.0, 50.0]]) == []  # outside, so nothing is left of it


# ---------------------------------------------------------------------------------------------------------- weights


def test_untrained_weights_are_always_the_same(maker: DetectorRegions) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    made = [DetectorRegions(NAME, untrained=True, size=64).provenance for _ in range(2)]
    assert made[0] == made[1]
    assert made[0]["untrained"] is True
    assert (torch.get_rng_state() == before).all()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested"])
def test_weights_come_from_a_file_and_say_how_many_classes(tmp_path: Path, photos: Sequence[Photo], kind: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(7)
    network = get_model(NAME, weights=None, weights_backbone=None, num_classes=5)
    state = network.state_dict()
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state, "epoch": 3} if kind == "nested" else state, path)
    made = DetectorRegions(NAME, weights=path, size=64)
    assert (made.provenance["classes"], made.provenance["untrained"]) == (5, False)
    assert torch.equal(made._network.backbone.body["0"][0].weight, state["backbone.body.0.0.weight"])
    assert _regions(made.make(photos[:1])[0]).class_probs_RC.shape[1] == 5  # type: ignore[union-attr]


def test_wrong_weights_are_refused_by_name(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"a": Code()}, tmp_path / "code.pth")
    torch.save({"roi_heads.box_predictor.cls_score.weight": torch.zeros(5, 1024)}, tmp_path / "few.pth")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    for name, said in [
        ("code.pth", "cannot be read"),
        ("few.pth", r"does not fit .*: .* is missing"),
        ("other.pth", "does not fit .*cls_score.weight is missing"),
        ("list.pth", "holds no state dict"),
        ("text.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("none.pth", "no such file"),
    ]:
        with pytest.raises(ConfigError, match=f"--weights .*{name}: {said}"):
            DetectorRegions(NAME, weights=tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_detector_is_one_with_a_box_head() -> None:
    assert {"fasterrcnn_resnet50_fpn_v2", NAME, "maskrcnn_resnet50_fpn"} <= set(detector_names())
    for name in ("retinanet_resnet50_fpn", "fasterrcnn_resnet50_fpn_v3"):
        with pytest.raises(ConfigError, match=f"torchvision has no '{name}' with a box head"):
            DetectorRegions(name, untrained=True)


def test_missing_weights_are_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(ConfigError, match=r"weights are not in .*checkpoints and cannot be fetched .*or --untrained"):
        DetectorRegions(NAME)
