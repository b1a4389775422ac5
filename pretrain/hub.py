"""Models of the Hugging Face hub: whether one can be had at all, before the library tries for long."""

from __future__ import annotations

import functools
from pathlib import Path

import tenacity
from huggingface_hub import constants, get_session
from huggingface_hub.file_download import repo_folder_name

from pretrain.errors import CheckpointError

ATTEMPTS, FIRST_WAIT = 3, 0.5
"""Attempts to reach the hub, and seconds after the first of them; the waits double."""
ANSWER_SECONDS = 3.0
"""The hub's time to answer one attempt."""
PATIENCE = 6.0
"""Seconds after which no further attempt begins: looking up a name may take long by itself."""


def check(name: str) -> None:
    """See that a model is a folder, or in the hub's cache on this machine, or that the hub answers.

    A hub that is out of reach costs the library half a minute for each file, behind some firewalls minutes.
    So one that does not answer is not asked again: for the rest of this process there is only its cache.

    Raises:
        CheckpointError: none of the three.
    """
    if Path(name).is_dir():
        return
    refuse_path(name)
    reason = out_of_reach()
    if not reason:
        return
    if not (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir():
        raise CheckpointError(
            f"no such folder, not in the hub's cache, and the hub is out of reach ({reason})",
            where=name,
            mend=f"check the name and the network, or fetch it elsewhere into {constants.HF_HUB_CACHE}",
        )
    constants.HF_HUB_OFFLINE = True


def refuse_path(name: str) -> None:
    """See that what is no folder here may be a name of the hub: `NAME` or `OWNER/NAME`.

    Raises:
        CheckpointError: it is a path.
    """
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise CheckpointError("no such folder", where=name, mend="name a model folder, or one of the hub")


@functools.cache
def out_of_reach() -> str:
    """Why the hub cannot be asked; empty when it gives any answer at all. Found out once a process."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    asking = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_after_delay(PATIENCE),
        wait=tenacity.wait_exponential(multiplier=FIRST_WAIT),
        reraise=True,
    )
    try:
        asking(get_session().request, "HEAD", constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except Exception as error:  # whatever keeps a request from its answer keeps the models away
        return f"{constants.ENDPOINT}: {str(error) or type(error).__name__}"
    return ""
