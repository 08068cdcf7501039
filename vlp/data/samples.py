"""What the members of a sample must look like: names, the JSON's schema, region arrays.

One place for the rules, so that the index, the reader and the importers cannot disagree about them.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlp.data.arrays import ArrayFault, read_npy, read_npz
from vlp.data.imagefile import IMAGE_EXTENSIONS, MAX_IMAGE_BYTES
from vlp.types import Question, Regions

_REGION_SHAPES = {
    "features": "[R, D]",
    "boxes": "[R, 4]",
    "confidence": "[R]",
    "class_probs": "[R, C]",
    "classes": "[R]",
    "attributes": "[R]",
    "attribute_confidence": "[R]",
}
REGION_ARRAYS = tuple(_REGION_SHAPES)
"""Features and boxes are needed; the others may be there or not."""
REGION_IDS = ("classes", "attributes")
"""Of these, numbers of classes; the rest are floating-point numbers."""
REGION_EXTENSIONS = tuple(f"{name}.npy" for name in REGION_ARRAYS)
EXTENSIONS = (*IMAGE_EXTENSIONS, "json", "txt", *REGION_EXTENSIONS, "regions.npz")
"""Members that vlp knows; others are left alone."""

NPZ_NAMES = {"norm_bb": "boxes", "conf": "confidence", "soft_labels": "class_probs"}
"""What the files of Chen et al. 2020 (arXiv 1909.11740) call the arrays of an npz; our names are taken too."""

MAX_TEXT_BYTES = 16 << 20
"""Of a JSON or a text member: ten thousand questions with ten answers each stay below."""

MAX_REGION_BYTES = 64 << 20
"""Of one region array, and of all that a `regions.npz` unpacks to: 400 regions of 2048 float32 are 3 MB."""

MEMBER_LIMITS = {
    **dict.fromkeys(IMAGE_EXTENSIONS, MAX_IMAGE_BYTES),
    **dict.fromkeys(("json", "txt"), MAX_TEXT_BYTES),
    **dict.fromkeys((*REGION_EXTENSIONS, "regions.npz"), MAX_REGION_BYTES),
}
"""Most bytes of each member; a larger one is never read."""

_MAX_MARKS = 100
"""Combining marks in a row (Unicode's own bound for streams is 30): to sort n of them takes n * n steps."""

_MAX_ID = (1 << 20) - 1
"""No detector has a million classes; a damaged number is told by it."""

BOX_TOLERANCE = 1e-3
"""Boxes this far outside 0..1 are rounding (float16 has steps of 5e-4 near 1) and are clipped."""


class Fault(ValueError):
    """What is wrong with one member of a sample; whoever knows the shard and the key makes a sentence of it."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"{member} {reason}")
        self.member = member
        self.reason = reason


class ShardFault(Fault):
    """A fault that all samples of the shard share: it is gone, or cannot be fetched."""


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
        captions=tuple(_text(caption) for caption in captions),
        questions=tuple(_question(number, question) for number, question in enumerate(questions)),
        width=_size(record.get("width")),
        height=_size(record.get("height")),
        metadata=record,
    )


def check_characters(text: str, member: str) -> None:
    """Raises Fault if a text cannot be encoded, or composed in reasonable time."""
    if text.isascii():
        return
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Fault(member, "has a text with half a surrogate pair, which is no character")
    runs = groupby(text, lambda letter: unicodedata.combining(letter) != 0)
    if len(text) > 10 * _MAX_MARKS and any(marks and len(list(run)) > _MAX_MARKS for marks, run in runs):
        raise Fault(member, f"has a text with more than {_MAX_MARKS} combining marks in a row")


def check_texts(texts: SampleTexts) -> None:
    """Raises Fault if a caption or a question is blank."""
    for number, caption in enumerate(texts.captions):
        if not caption:
            raise Fault("captions", f"has an empty caption (number {number})")
    for number, question in enumerate(texts.questions):
        if not question.text:
            raise Fault("questions", f"has an empty question (number {number})")


def checked_regions(arrays: Mapping[str, NDArray[Any]]) -> Regions:
    """Regions from arrays by name: `features` [R, D], `boxes` [R, 4 or more], `confidence` [R], `class_probs` [R, C],
    `classes` [R], `attributes` [R], `attribute_confidence` [R].

    Features and class probabilities keep their type, numbers of classes become int64, the others float32; boxes are
    cut to x1, y1, x2, y2 and clipped to 0..1.

    Raises:
        Fault: an array is missing, of the wrong dimension or type, not finite, or does not match the others.
    """
    check_shapes({name: array.shape for name, array in arrays.items()})
    for name in arrays:
        _check_numbers(name, arrays[name])

    def taken(name: str, dtype: Any) -> NDArray[Any] | None:
        return arrays[name].astype(dtype, copy=False) if name in arrays else None

    class_probs_RC = arrays.get("class_probs")
    if class_probs_RC is not None and class_probs_RC.size and class_probs_RC.min() < 0:
        raise Fault("class_probs", "has a negative probability")
    return Regions(
        features_RD=arrays["features"],
        boxes_R4=_boxes(arrays["boxes"].astype(np.float32)),
        confidence_R=taken("confidence", np.float32),
        class_probs_RC=class_probs_RC,
        classes_R=taken("classes", np.int64),
        attributes_R=taken("attributes", np.int64),
        attribute_confidence_R=taken("attribute_confidence", np.float32),
    )


def check_features(features_KD: NDArray[Any]) -> None:
    """Raises Fault if features are no finite floating-point numbers."""
    _check_numbers("features", features_KD)


def region_arrays(read: Callable[[str], bytes | None]) -> dict[str, NDArray[Any]]:
    """The region arrays of a sample by name, empty if it has none; those of a `regions.npz` where there are no others.

    Args:
        read: gives the bytes of a member by its extension, None where there is no such member.
    Raises:
        Fault: an array is damaged, or holds pickled objects; and what `read` raises.
    """
    arrays = {}
    for name in REGION_ARRAYS:
        data = read(f"{name}.npy")
        if data is not None:
            try:
                arrays[name] = read_npy(data)
            except ArrayFault as fault:
                raise Fault(f"{name}.npy", str(fault)) from None
    packed = read("regions.npz") if not arrays else None
    return arrays if packed is None else regions_npz(packed)


def regions_npz(data: bytes) -> dict[str, NDArray[Any]]:
    """The region arrays of an `.npz`, under the names of `NPZ_NAMES` or ours, by our names.

    Raises:
        Fault: damaged, or holding pickled objects.
    """
    try:
        arrays = read_npz(data, {*REGION_ARRAYS, *NPZ_NAMES}, MAX_REGION_BYTES)
    except ArrayFault as fault:
        raise Fault("regions.npz", str(fault)) from None
    return {NPZ_NAMES.get(name, name): array for name, array in arrays.items()}


def check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """Regions, feature width and class count (0 if there are no classes) by the arrays' shapes alone.

    Raises:
        Fault: an array is missing, of the wrong dimension, or does not match the others.
    """
    for name, wanted in _REGION_SHAPES.items():
        shape = shapes.get(name)
        if shape is None:
            if name in ("features", "boxes"):
                raise Fault(name, "is missing")
            continue
        if len(shape) != wanted.count(",") + 1 or (name == "boxes" and shape[1] < 4):
            raise Fault(name, f"has shape {list(shape)}, not {wanted}")
        if shape[0] != shapes["features"][0]:
            raise Fault(name, f"has {shape[0]} rows where features has {shapes['features'][0]}")
    classes = shapes.get("class_probs", (0, 0))[1]
    return shapes["features"][0], shapes["features"][1], classes


def id_bound(name: str, ids_R: NDArray[Any]) -> int:
    """The largest of some regions' `classes` or `attributes`, plus 1; 0 if there are no regions.

    Raises:
        Fault: not whole numbers from 0 on.
    """
    _check_numbers(name, ids_R)
    return int(ids_R.max()) + 1 if ids_R.size else 0


def _check_numbers(name: str, array: NDArray[Any]) -> None:
    if name in REGION_IDS:
        if array.dtype.kind not in "iu":
            raise Fault(name, f"holds {array.dtype}, not whole numbers")
        if array.size and (array.min() < 0 or array.max() > _MAX_ID):
            raise Fault(name, f"has the number {array.min() if array.min() < 0 else array.max()}, not 0..{_MAX_ID}")
    elif array.dtype.kind == "f":
        if not _finite(array):
            raise Fault(name, "has a number that is not finite (NaN or infinite)")
    elif name != "boxes" or array.dtype.kind not in "iu":
        raise Fault(name, f"holds {array.dtype}, not floating-point numbers")


def _finite(array: NDArray[Any]) -> bool:
    if array.dtype == np.float16 and array.dtype.isnative and array.flags.c_contiguous:
        # Ten times as fast as isfinite, which converts: all exponent bits set means NaN or infinite.
        return not array.size or bool((array.view(np.uint16) & 0x7FFF).max() < 0x7C00)
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


def _text(text: str) -> str:
    """`clean`, once it is known that it can be."""
    check_characters(text, "json")
    return clean(text)


def _question(number: int, value: Any) -> Question:
    if not isinstance(value, dict) or not isinstance(value.get("question"), str):
        raise Fault("json", f"has a question (number {number}) without a text under 'question'")
    answers = value.get("answers") or []
    if not _strings(answers):
        raise Fault("json", f"has a question (number {number}) whose 'answers' are not a list of texts")
    name = value.get("question_id")
    return Question(
        text=_text(value["question"]),
        answers=tuple(_text(answer) for answer in answers),
        id="" if name is None else str(name),
        types=_types(value.get("types")),
    )


def _types(value: Any) -> dict[str, str]:
    """Shards of others may have anything under this name: what is no text is left alone."""
    return {name: kind for name, kind in value.items() if isinstance(kind, str)} if isinstance(value, dict) else {}


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _size(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value < 1 << 31 else 0
