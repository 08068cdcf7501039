"""What the members of a sample must look like: names, the JSON's schema, region arrays.

One place for the rules, so that the index, the reader and the importers cannot disagree about them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, read_npz
from vlp.data.imagefile import IMAGE_EXTENSIONS
from vlp.types import Question, Regions

REGION_ARRAYS = ("features", "boxes", "confidence", "class_probs")
REGION_EXTENSIONS = tuple(f"{name}.npy" for name in (*REGION_ARRAYS, "classes", "attributes"))
EXTENSIONS = (*IMAGE_EXTENSIONS, "json", "txt", *REGION_EXTENSIONS, "regions.npz")
"""Members that vlp knows; others are left alone."""

NPZ_NAMES = {"norm_bb": "boxes", "conf": "confidence", "soft_labels": "class_probs"}
"""UNITER's names of the arrays of an npz; ours are taken too."""

MAX_TEXT_BYTES = 16 << 20
"""Of a JSON or a text member: ten thousand questions with ten answers each stay below."""

BOX_TOLERANCE = 1e-3
"""Boxes this far outside 0..1 are rounding (float16 has steps of 5e-4 near 1) and are clipped."""


class Fault(ValueError):
    """What is wrong with one member of a sample; whoever knows the shard and the key makes a sentence of it."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member} {reason}")
        self.member = member
        self.reason = reason


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """The texts of a sample and what its JSON says besides."""

    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    width: int = 0
    height: int = 0
    metadata: Mapping[str, Any] | None = None


def clean(text: str) -> str:
    """A text as the model gets it: NFC, no blanks at the ends."""
    return unicodedata.normalize("NFC", text).strip()


def parse_texts(json_bytes: bytes | None, txt_bytes: bytes | None) -> SampleTexts:
    """The texts of a sample, cleaned; blank ones are kept, so that counts agree with the index.

    `captions` of the JSON, else the `.txt` (one caption), else `caption` of the JSON (as img2dataset writes it).

    Raises:
        Fault: not UTF-8, not JSON, or not of the schema.
    """
    record = _record(json_bytes) if json_bytes is not None else {}
    captions = record.get("captions")
    if captions is None:
        if txt_bytes is not None:
            captions = [_utf8(txt_bytes, "txt")]
        else:
            captions = [record["caption"]] if isinstance(record.get("caption"), str) else []
    if not _strings(captions):
        raise Fault("json", "has 'captions' that are not a list of texts")
    questions = record.get("questions") or []
    if not isinstance(questions, list):
        raise Fault("json", "has 'questions' that are not a list")
    return SampleTexts(
        captions=tuple(_encodable(clean(caption)) for caption in captions),
        questions=tuple(_question(number, question) for number, question in enumerate(questions)),
        width=_size(record.get("width")),
        height=_size(record.get("height")),
        metadata=record,
    )


def check_texts(texts: SampleTexts) -> None:
    """Raises Fault if a caption or a question is blank."""
    for number, caption in enumerate(texts.captions):
        if not caption:
            raise Fault("captions", f"has an empty caption (number {number})")
    for number, question in enumerate(texts.questions):
        if not question.text:
            raise Fault("questions", f"has an empty question (number {number})")


def checked_regions(arrays: Mapping[str, NDArray[Any]]) -> Regions:
    """Regions from arrays by name: `features` [R, D], `boxes` [R, 4 or more], `confidence` [R], `class_probs` [R, C].

    Features keep their type; the others become float32; boxes are cut to x1, y1, x2, y2 and clipped to 0..1.

    Raises:
        Fault: an array is missing, of the wrong dimension, not finite, or does not match the others.
    """
    for name in ("features", "boxes"):
        if name not in arrays:
            raise Fault(name, "is missing")
    features_RD = _array(arrays, "features", 2)
    count = len(features_RD)
    boxes_R4 = _boxes(_array(arrays, "boxes", 2, count).astype(np.float32))
    confidence_R = class_probs_RC = None
    if "confidence" in arrays:
        confidence_R = _array(arrays, "confidence", 1, count).astype(np.float32)
    if "class_probs" in arrays:
        class_probs_RC = _array(arrays, "class_probs", 2, count)
        if class_probs_RC.size and class_probs_RC.min() < 0:
            raise Fault("class_probs", "has a negative probability")
    return Regions(features_RD, boxes_R4, confidence_R, class_probs_RC)


def regions_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """The region arrays of an `.npz`, in UNITER's naming or ours, by our names.

    Raises:
        Fault: damaged, or holding pickled objects.
    """
    try:
        arrays = read_npz(data, {*REGION_ARRAYS, *NPZ_NAMES})
    except ArrayFault as fault:
        raise Fault("regions.npz", str(fault)) from None
    return {NPZ_NAMES.get(name, name): array for name, array in arrays.items()}


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Regions, feature width and class count (0 if there are no classes) by the arrays' shapes alone.

    Raises:
        Fault: an array is missing, of the wrong dimension, or does not match the others.
    """
    for name, dimensions in (("features", 2), ("boxes", 2), ("confidence", 1), ("class_probs", 2)):
        shape = shapes.get(name)
        if shape is None:
            if dimensions == 2 and name != "class_probs":
                raise Fault(name, "is missing")
            continue
        _check_shape(name, shape, dimensions, shapes["features"][0] if name != "features" else None)
    classes = shapes.get("class_probs", (0, 0))[1]
    return shapes["features"][0], shapes["features"][1], classes


def _check_shape(name: str, shape: tuple[int, ...], dimensions: int, count: int | None) -> None:
    if len(shape) != dimensions or (name == "boxes" and shape[1] < 4):
        wanted = {"features": "[R, D]", "boxes": "[R, 4]", "confidence": "[R]", "class_probs": "[R, C]"}[name]
        raise Fault(name, f"has shape {list(shape)}, not {wanted}")
    if count is not None and shape[0] != count:
        raise Fault(name, f"has {shape[0]} rows where features has {count}")


def _array(arrays: Mapping[str, NDArray[Any]], name: str, dimensions: int, count: int | None = None) -> NDArray[Any]:
    array = arrays[name]
    _check_shape(name, array.shape, dimensions, count)
    if array.dtype.kind != "f":
        if name != "boxes" or array.dtype.kind not in "iu":
            raise Fault(name, f"holds {array.dtype}, not floating-point numbers")
        return array
    if not _finite(array):
        raise Fault(name, "has a number that is not finite (NaN or infinite)")
    return array


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16 and array.dtype.isnative and array.flags.c_contiguous:
        # Five times as fast as isfinite, which converts: all exponent bits set means NaN or infinite.
        return not bool(((array.view(np.uint16) & 0x7C00) == 0x7C00).any())
    return bool(np.isfinite(array).all())


def _boxes(boxes_R: NDArray[np.float32]) -> NDArray[np.float32]:
    boxes_R4 = boxes_R[:, :4]
    if not boxes_R4.size:
        return boxes_R4
    low, high = float(boxes_R4.min()), float(boxes_R4.max())
    if low < -BOX_TOLERANCE or high > 1 + BOX_TOLERANCE:
        raise Fault("boxes", f"reaches from {low:.4g} to {high:.4g}, outside 0..1 (are these pixels?)")
    if bool((boxes_R4[:, 2:] < boxes_R4[:, :2] - BOX_TOLERANCE).any()):
        raise Fault("boxes", "has x2 < x1 or y2 < y1 (are these x, y, width, height?)")
    return boxes_R4 if low >= 0 and high <= 1 else np.clip(boxes_R4, 0, 1)


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(_utf8(data, "json"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, Fault):
            raise
        raise Fault("json", "is not valid JSON") from error
    if not isinstance(record, dict):
        raise Fault("json", "is not a JSON object")
    return record


def _utf8(data: bytes, member: str) -> str:
    if len(data) > MAX_TEXT_BYTES:
        raise Fault(member, f"has {len(data)} bytes, more than {MAX_TEXT_BYTES}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Fault(member, "is not UTF-8") from error


def _encodable(text: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Fault("json", "has a text with half a surrogate pair, which is no character")
    return text


def _question(number: int, value: Any) -> Question:
    if not isinstance(value, dict) or not isinstance(value.get("question"), str):
        raise Fault("json", f"has a question (number {number}) without a text under 'question'")
    answers = value.get("answers") or []
    if not _strings(answers):
        raise Fault("json", f"has a question (number {number}) whose 'answers' are not a list of texts")
    name = value.get("question_id")
    return Question(
        text=_encodable(clean(value["question"])),
        answers=tuple(_encodable(clean(answer)) for answer in answers),
        id="" if name is None else str(name),
    )


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _size(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 31 else 0
