"""Multi-source attention fusion; see `docs/families/fusion.md`."""

from finetune.families.fusion.family import Family
from finetune.families.fusion.modeling import FusionModel
from finetune.families.fusion.settings import FusionSettings

__all__ = ["Family", "FusionModel", "FusionSettings"]
