"""Implicit-persona CVAE; see `docs/families/persona_cvae.md`."""

from finetune.families.persona_cvae.family import Family
from finetune.families.persona_cvae.modeling import PersonaCvae
from finetune.families.persona_cvae.settings import PersonaSettings

__all__ = ["Family", "PersonaCvae", "PersonaSettings"]
