"""`vlp-data regions`: shards with region features, from a detector, a backbone, or files that people have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_tools.options import Out, Overwrite, existing_file
from vlp.errors import ConfigError

if TYPE_CHECKING:
    from data_tools.regions.maker import RegionMaker

_NETWORK = ("weights", "untrained", "size", "batch", "device", "workers")
_OWN = {
    "detector": (*_NETWORK, "min_boxes", "max_boxes", "threshold", "nms"),
    "grid": (*_NETWORK, "backbone"),
    "boxes": (*_NETWORK, "backbone"),
    "tsv": (),
    "npz": ("standardise",),
}
"""What makes regions, and the options that it has."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `vlp-data regions` was asked to make regions of; None where nothing was said."""

    detector: str | None = None
    grid: int | None = None
    boxes: bool = False
    tsv: Path | None = None
    npz: Path | None = None
    standardise: Path | None = None
    backbone: str | None = None
    weights: Path | None = None
    untrained: bool = False
    size: int | None = None
    min_boxes: int | None = None
    max_boxes: int | None = None
    threshold: float | None = None
    nms: float | None = None
    batch: int | None = None
    device: str | None = None
    workers: int | None = None

    @property
    def maker(self) -> str:
        """The one maker that was named.

        Raises:
            ConfigError: none or several, or an option that it does not have.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        given = {name for name, value in values.items() if value is not None and value is not False}
        named = [name for name in _OWN if name in given]
        if len(named) != 1:
            told = f"{' and '.join(map(_option, named))} are given" if named else "none is given"
            raise ConfigError(f"what makes the regions: {told}; give one of {', '.join(map(_option, _OWN))}")
        for name in sorted(given - {named[0], *_OWN[named[0]]}):
            raise ConfigError(f"{_option(name)}: means nothing with {_option(named[0])}; leave it out")
        return named[0]


def regions(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Directory of indexed shards.")],
    out: Out,
    detector: Annotated[
        str | None,
        typer.Option("--detector", metavar="NAME", help="A torchvision detector, e.g. fasterrcnn_resnet50_fpn_v2."),
    ] = None,
    grid: Annotated[
        int | None, typer.Option("--grid", min=1, metavar="N", help="N x N cells of a timm backbone's feature map.")
    ] = None,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="A timm backbone's features of the boxes that the shards have already.")
    ] = False,
    tsv: Annotated[Path | None, typer.Option("--tsv", metavar="FILE", help="Merge a bottom-up-attention TSV.")] = None,
    npz: Annotated[
        Path | None,
        typer.Option("--npz", metavar="PATH", help="Merge a directory of <image id>.npz, or one .npz of vectors."),
    ] = None,
    standardise: Annotated[
        Path | None,
        typer.Option("--standardise", metavar="FILE", help="Vectors: to mean 0, deviation 1 over this list of images."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="A timm model, for --grid and --boxes.")
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Weights of detector or backbone: .safetensors or .pth."),
    ] = None,
    untrained: Annotated[
        bool,
        typer.Option(
            "--untrained/--pretrained", help="Random weights; or the library's own, from its cache or the network."
        ),
    ] = False,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=16,
            metavar="PIXELS",
            help="Short side of a detector's input, side of a backbone's.",
            show_default="as trained",
        ),
    ] = None,
    min_boxes: Annotated[
        int | None, typer.Option("--min-boxes", min=1, help="Boxes taken in any case.", show_default="10")
    ] = None,
    max_boxes: Annotated[
        int | None, typer.Option("--max-boxes", min=1, help="Most boxes of a photo.", show_default="100")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", min=0, max=1, help="Least confidence of further boxes.", show_default="0.2"),
    ] = None,
    nms: Annotated[
        float | None,
        typer.Option("--nms", min=0, max=1, help="Most overlap of two boxes of one class.", show_default="0.5"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", min=1, help="Photos (--boxes: crops) at a time; changes no result.", show_default="4, 16 or 32"
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...", show_default="a GPU if there is one")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode photos.", show_default="4")
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Keep features and class probabilities as float16: half the bytes.")
    ] = False,
    without_images: Annotated[
        bool, typer.Option("--without-images", help="Leave the photos behind: samples hold texts and regions.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write shards again with region features. Texts and photos stay; regions that there were are replaced."""
    wanted = Wanted(
        detector, grid, boxes, tsv, npz, standardise, backbone, weights, untrained, size,
        min_boxes, max_boxes, threshold, nms, batch, device, workers,
    )  # fmt: skip
    name = wanted.maker

    from data_tools.regions.run import RegionRun, add_regions
    from vlp.data.index import open_index

    index = open_index(data)
    makers = {"detector": _detector, "grid": _backbone, "boxes": _backbone, "tsv": _stored, "npz": _stored}
    inputs = tuple(path for path in (tsv, npz) if path is not None)
    add_regions(index, makers[name](wanted), RegionRun(out, without_images, half, overwrite, inputs))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _given(wanted: Wanted, *names: str) -> dict[str, Any]:
    """The options that were given, by name."""
    return {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}


def _weights(wanted: Wanted) -> Path | None:
    if wanted.weights is None:
        return None
    if wanted.untrained:
        raise ConfigError("--weights and --untrained are both given; give one")
    return existing_file(wanted.weights, "--weights")


def _detector(wanted: Wanted) -> RegionMaker:
    from data_tools.regions.detectors import DetectorRegions, Selection

    selection = Selection(**_given(wanted, "min_boxes", "max_boxes", "threshold", "nms"))
    if selection.min_boxes > selection.max_boxes:
        raise ConfigError(
            f"--min-boxes {selection.min_boxes} is more than --max-boxes {selection.max_boxes}; give a smaller one"
        )
    assert wanted.detector is not None
    return DetectorRegions(
        wanted.detector,
        weights=_weights(wanted),
        untrained=wanted.untrained,
        selection=selection,
        **_given(wanted, "size", "batch", "device", "workers"),
    )


def _backbone(wanted: Wanted) -> RegionMaker:
    from data_tools.regions.backbones import Backbone, BoxRegions, GridRegions

    if wanted.backbone is None:
        raise ConfigError(f"{_option(wanted.maker)}: needs --backbone NAME, a timm model")
    network = Backbone(
        wanted.backbone, weights=_weights(wanted), untrained=wanted.untrained, **_given(wanted, "size", "device")
    )
    speed = _given(wanted, "batch", "workers")
    return GridRegions(network, wanted.grid, **speed) if wanted.grid is not None else BoxRegions(network, **speed)


def _stored(wanted: Wanted) -> RegionMaker:
    from data_tools.regions.maker import StoredRegions
    from data_tools.regions.sources import VectorRegions, open_regions

    path = wanted.tsv or wanted.npz
    assert path is not None
    source = open_regions(path, _option(wanted.maker))
    if wanted.standardise is not None:
        if not isinstance(source, VectorRegions):
            raise ConfigError(f"--standardise: is for an .npz of vectors, which {path} is not; leave it out")
        lines = existing_file(wanted.standardise, "--standardise").read_text(encoding="utf-8-sig").split("\n")
        source.standardise(line.strip() for line in lines if line.strip())
    return StoredRegions(source)
