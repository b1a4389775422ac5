"""Controls of the MemBART paper: BART, LED, GPT-2 and their like; see `docs/families/baseline.md`."""

from finetune.families.baseline.family import BaselineSettings, Family

__all__ = ["BaselineSettings", "Family"]
