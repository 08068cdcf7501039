"""All kinds of published checkpoints, by the name that `vlp convert` knows them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vlp.errors import ConfigError, nearest
from vlp.models.convert.family import Family
from vlp.models.convert.lxmert import HF_LXMERT, LXMERT
from vlp.models.convert.uniter import UNITER
from vlp.models.convert.vilbert import VILBERT
from vlp.models.convert.vilt import HF_VILT, VILT
from vlp.models.convert.visualbert import HF_VISUALBERT, VISUALBERT
from vlp.models.convert.vl_bert import VL_BERT

FAMILIES: Mapping[str, Family] = {
    "visualbert": VISUALBERT,
    "hf-visualbert": HF_VISUALBERT,
    "vilbert": VILBERT,
    "uniter": UNITER,
    "vl_bert": VL_BERT,
    "vilt": VILT,
    "hf-vilt": HF_VILT,
    "lxmert": LXMERT,
    "hf-lxmert": HF_LXMERT,
}


LIBRARY = {"visualbert": "visual_bert.", "lxmert": "lxmert.", "vilt": "vilt."}
"""What the names of the transformers library's models begin with, by the authors' kind of checkpoint."""


def library_name(name: str, tensors: Iterable[str]) -> str:
    """The kind of checkpoint that tensors of these names are: authors' weights are about in the library's form too."""
    start = LIBRARY.get(name)
    return f"hf-{name}" if start and any(tensor.startswith(start) for tensor in tensors) else name


def family_of(name: str, option: str) -> Family:
    """A kind of checkpoint by its name.

    Raises:
        ConfigError: there is none of that name; the known ones are listed.
    """
    if name not in FAMILIES:
        raise ConfigError(f"{option}: no checkpoints are called '{name}'{nearest(name, FAMILIES)}")
    return FAMILIES[name]
