"""What the state of a checkpoint says of the data, in words for a console or a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def account(state: Mapping[str, Any]) -> dict[str, str]:
    """Label and text; what a job does not count, or what did not happen, is left out."""
    told: dict[str, str] = {}
    mixture = state.get("mixture", {})
    if mixture:
        told["realised mixture (tokens)"] = ", ".join(
            f"{source} {served['share']:.1%}" for source, served in mixture.items()
        )
    if state.get("lost_documents"):
        told["documents left out (unreadable)"] = f"{state['lost_documents']:,}"
    return told
