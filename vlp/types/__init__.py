"""The records that flow through vlp: Sample -> Example -> Batch -> Encoded -> Losses.

Shape suffixes, here and everywhere:
    B examples of a batch      N text tokens of a batch     M image tokens of a batch     J = N + M
    T tokens of one text       R regions of one image       K targets of one objective
    D feature width            C classes                    H hidden width
"""

from vlp.types.batches import (
    Batch,
    BothBatch,
    Encoded,
    FramedBatch,
    Hidings,
    ImageBatch,
    Losses,
    Packing,
    PixelBatch,
    Read,
    RegionBatch,
    Rematched,
    Rows,
    Step,
    Stream,
    Targets,
    TextBatch,
    regions_of,
)
from vlp.types.examples import (
    Asked,
    BothInput,
    Example,
    Hiding,
    ImageInput,
    Origin,
    PixelInput,
    RegionInput,
    Target,
)
from vlp.types.samples import (
    Loan,
    Pair,
    Question,
    Regions,
    Sample,
    Slot,
    View,
)

__all__ = [
    "Asked",
    "Batch",
    "BothBatch",
    "BothInput",
    "Encoded",
    "Example",
    "FramedBatch",
    "Hiding",
    "Hidings",
    "ImageBatch",
    "ImageInput",
    "Loan",
    "Losses",
    "Origin",
    "Packing",
    "Pair",
    "PixelBatch",
    "PixelInput",
    "Question",
    "Read",
    "RegionBatch",
    "RegionInput",
    "Regions",
    "Rematched",
    "Rows",
    "Sample",
    "Slot",
    "Step",
    "Stream",
    "Target",
    "Targets",
    "TextBatch",
    "View",
    "regions_of",
]
