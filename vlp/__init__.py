"""vlp: vision-language pre-training. Single- and dual-stream encoders, one config vocabulary, DeepSpeed.

The doors are `vlp.cli` (the `vlp` command) and `vlp.VisionLanguageModel`. Importing this package imports nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.types import Regions as Regions
    from vlp.vision_language_model import VisionLanguageModel as VisionLanguageModel

__version__ = "0.1.0"
__all__ = ["Regions", "VisionLanguageModel"]


def __getattr__(name: str) -> Any:
    """What this package exports, imported when it is first asked for."""
    if name == "VisionLanguageModel":
        from vlp.vision_language_model import VisionLanguageModel

        return VisionLanguageModel
    if name == "Regions":
        from vlp.types import Regions

        return Regions
    raise AttributeError(f"module 'vlp' has no attribute '{name}'")
