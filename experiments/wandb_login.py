"""Weights & Biases: whether it can be logged to is known before anything is measured."""

from __future__ import annotations

import importlib.util

from experiments.errors import FlagError


def check_login(project: str | None) -> None:
    """Logs in to Weights & Biases if a run is to be logged there; on a terminal it asks for the key.

    No login is needed with WANDB_MODE=offline or disabled.

    Raises:
        FlagError: it is not installed, there is no key, or the key is refused.
    """
    if project is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise FlagError('--wandb-project needs Weights & Biases: pip install -e ".[wandb]".')
    import wandb

    try:
        wandb.login()
    except Exception as error:  # its own errors have no common base but this one
        raise FlagError(
            f"--wandb-project {project} needs a login: {str(error).rstrip('.')}. Run `wandb login`, or set "
            "WANDB_MODE=offline."
        ) from error
