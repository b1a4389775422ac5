"""Implicit-persona CVAE; see `docs/families/persona_cvae.md`."""

from finetune.families.persona_cvae.family import Family, PersonaSettings
from finetune.families.persona_cvae.modeling import PersonaCvae

__all__ = ["Family", "PersonaCvae", "PersonaSettings"]
