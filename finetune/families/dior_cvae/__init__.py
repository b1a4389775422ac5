"""Family 5, Dior-CVAE: a hierarchical CVAE with a diffusion prior; see `docs/families/dior_cvae.md`."""

from finetune.families.dior_cvae.configuration import DiorConfig
from finetune.families.dior_cvae.family import DiorSettings, Family
from finetune.families.dior_cvae.modeling import DiorForConditionalGeneration

__all__ = ["DiorConfig", "DiorForConditionalGeneration", "DiorSettings", "Family"]
