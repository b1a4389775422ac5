"""Packages that only this part needs: the extra `knowledge`."""

from __future__ import annotations

import importlib
from typing import Any

from pretrain.errors import UserError


def needed(package: str) -> Any:
    """The module of a package of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"needs the Python package {package.partition('.')[0]}",
            mend="pip install 'membart[knowledge]'; for a GPU index replace faiss-cpu by faiss-gpu-cu12",
        ) from None
