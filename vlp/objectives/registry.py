"""All self-supervised objectives by the `kind` in their config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from vlp.objectives.itc import Contrast, ContrastPretrainingConfig
from vlp.objectives.itm import Matching, MatchingConfig
from vlp.objectives.mlm import MaskedLanguage, MaskedLanguageConfig
from vlp.objectives.objective import Facts, SelfSupervised
from vlp.objectives.patch_feature import PatchFeature, PatchFeatureConfig
from vlp.objectives.prefix import PrefixLanguage, PrefixLanguageConfig
from vlp.objectives.question import QuestionAnswering, QuestionAnsweringConfig
from vlp.objectives.region_class import RegionClass, RegionClassConfig
from vlp.objectives.region_contrast import RegionContrast, RegionContrastConfig
from vlp.objectives.region_feature import RegionFeature, RegionFeatureConfig
from vlp.objectives.word_region import Alignment, AlignmentConfig

AnyObjectiveConfig = Annotated[
    MaskedLanguageConfig
    | RegionFeatureConfig
    | RegionClassConfig
    | RegionContrastConfig
    | PatchFeatureConfig
    | MatchingConfig
    | AlignmentConfig
    | QuestionAnsweringConfig
    | PrefixLanguageConfig
    | ContrastPretrainingConfig,
    Field(discriminator="kind"),
]

_CLASSES: dict[str, Callable[[str, Any, Facts], SelfSupervised]] = {
    "masked_language": MaskedLanguage,
    "region_feature": RegionFeature,
    "region_class": RegionClass,
    "region_contrast": RegionContrast,
    "patch_feature": PatchFeature,
    "matching": Matching,
    "word_region_alignment": Alignment,
    "question_answering": QuestionAnswering,
    "prefix_language": PrefixLanguage,
    "contrast": lambda name, config, facts: Contrast(name, config, facts.model, f"task.objectives.{name}"),
}


def make_objective(name: str, config: AnyObjectiveConfig, facts: Facts) -> SelfSupervised:
    """The objective of a config; raises ConfigError if the model or the shards cannot serve it."""
    return _CLASSES[config.kind](name, config, facts)
