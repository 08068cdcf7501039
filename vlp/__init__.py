"""vlp: vision-language pre-training. Single- and dual-stream encoders, one config vocabulary, DeepSpeed.

The doors are `vlp.cli` (the `vlp` command) and `vlp.VisionLanguageModel`. Importing this package imports nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.features.reading import Features as Features
    from vlp.features.stream import extract as extract
    from vlp.search.index import SearchIndex as SearchIndex
    from vlp.types import Regions as Regions
    from vlp.vision_language_model import VisionLanguageModel as VisionLanguageModel

__version__ = "0.1.0"
__all__ = ["Features", "Regions", "SearchIndex", "VisionLanguageModel", "extract"]

_HOMES = {
    "Features": "vlp.features.reading",
    "Regions": "vlp.types",
    "SearchIndex": "vlp.search.index",
    "VisionLanguageModel": "vlp.vision_language_model",
    "extract": "vlp.features.stream",
}


def __getattr__(name: str) -> Any:
    """What this package exports, imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlp' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
