"""What TRL's trainers do to a policy's model besides training it, undone: training mode, configs, forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from agents.policy import TransformerPolicy


def remove_dropout(model: torch.nn.Module) -> None:
    """Sets every dropout rate of a model to 0: a trainer sets training mode, in which our policies never are.

    Transformers keeps rates in modules of their own (p), and as numbers of layers (attention_dropout, dropout).
    """
    for module in model.modules():
        for name, value in vars(module).items():
            rate = isinstance(module, torch.nn.Dropout) and name == "p"
            if isinstance(value, float) and (rate or "drop" in name):
                setattr(module, name, 0.0)


@contextmanager
def model_restored(policy: TransformerPolicy) -> Iterator[Callable[[], None]]:
    """Undoes what a trainer does to a policy's model besides training it: its forward pass, its mode, its configs.

    Yields a function that restores the configs before the end.
    """
    model = policy.model
    forward = vars(model).get("forward")  # TRL replaces it by one that can also compute log-probabilities
    configs = (model.config, model.config.get_text_config(), model.generation_config)
    before = [(config, dict(vars(config))) for config in configs]

    def restore_configs() -> None:
        for config, values in before:
            vars(config).update(values)

    try:
        yield restore_configs
    finally:
        restore_configs()
        vars(model).pop("forward", None)
        if forward is not None:
            model.forward = forward
        policy.eval()
