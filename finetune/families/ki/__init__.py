"""Family 4, lexical knowledge internalization; see `docs/families/ki.md`."""

from finetune.families.ki.family import Family
from finetune.families.ki.settings import KiSettings

__all__ = ["Family", "KiSettings"]
