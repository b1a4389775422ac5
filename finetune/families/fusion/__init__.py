"""Multi-source attention fusion; see `docs/families/fusion.md`."""

from finetune.families.fusion.family import Family, FusionSettings
from finetune.families.fusion.modeling import FusionModel

__all__ = ["Family", "FusionModel", "FusionSettings"]
