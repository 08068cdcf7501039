"""What the two streams' embeddings share, and whether it is there to be shared."""

from __future__ import annotations

from vlp.models.embeddings import PositionConfig, SegmentConfig, WholeImageConfig
from vlp.models.image import ImageConfig
from vlp.models.imageparts import AlignedConfig, ImagePart, ImagePositionConfig, SharedConfig
from vlp.models.text import TextConfig


def check_sharing(text: TextConfig, image: ImageConfig, image_width: int) -> None:
    """Whether all that one stream's embedding takes from the other is there and of its width.

    Raises:
        ValueError: it is not; the message names the part.
    """
    segments = next((part.rows for part in text.parts if isinstance(part, SegmentConfig)), 0)
    positions = next((part.rows or text.max_length for part in text.parts if isinstance(part, PositionConfig)), 0)
    if 0 < positions < text.max_length:
        raise ValueError(f"text.parts: position has {positions} rows, and max_length is {text.max_length}")
    for part in (*image.parts, *(image.grid.parts if image.grid is not None else ())):
        if not _takes_from_text(part):
            continue
        if isinstance(part, SegmentConfig) and part.index >= segments:
            raise ValueError(f"image.parts: the text's segment table has no row {part.index}")
        if isinstance(part, ImagePositionConfig | AlignedConfig) and not positions:
            raise ValueError(f"image.parts: {part.kind} takes the text's position table, and the text has none")
        if isinstance(part, ImagePositionConfig) and part.rows is not None and part.rows > positions:
            raise ValueError(f"image.parts: position starts as the text's table, which has {positions} rows only")
        behind = 1 + int(image.end)
        if isinstance(part, ImagePositionConfig) and part.at == "after_text" and positions < text.max_length + behind:
            raise ValueError(
                f"image.parts: position at after_text needs {behind} rows behind the longest text; "
                f"give text.parts a position of rows: {text.max_length + behind} or more"
            )
        if image_width != text.table_width:
            raise ValueError(f"image.parts: {part.kind} takes a row of the text's table, which has another width")
    if image.norm == "text" and (not text.norm or image_width != text.table_width):
        raise ValueError("image.norm is the text's, which has none of this width")
    if any(isinstance(part, WholeImageConfig) for part in text.parts) and image_width != text.table_width:
        raise ValueError("text.parts: whole_image needs streams of one width")


def _takes_from_text(part: ImagePart) -> bool:
    match part:
        case SegmentConfig() | ImagePositionConfig():
            return "text" in (part.table, part.start)
        case SharedConfig():
            return part.word is not None
        case _:
            return isinstance(part, AlignedConfig)
