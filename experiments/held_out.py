"""Prompts that are not trained on, on which policies are measured beside those that are.

--held-out 0.2          a part of the task's prompts; equal prompts stay together
--eval-prompts FILE     others, from a file
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.errors import FlagError
from textenv import EnvLike, TextMDP, TextVectorEnv, get_mdp
from textenv.data import load_prompts, printable

SPLIT_SEED = 0  # the same prompts are held out in all runs of a task


class Environments(NamedTuple):
    """The environments of a run.

    Attributes:
        train: agents are trained in it.
        held_out: has the prompts that are not trained on; None where there are none.
        initial: has the task's own prompts, of both; a toy's initial policy is fitted to its reference on them.
    """

    train: EnvLike
    held_out: EnvLike | None
    initial: EnvLike


def split(env: EnvLike, fraction: float) -> Environments:
    """Holds a fraction of the prompts out, drawn with the same seed always; equal prompts stay together.

    Raises:
        FlagError: one of the two parts has no prompt.
    """
    mdp = get_mdp(env)
    number = {text: i for i, text in enumerate(dict.fromkeys(mdp.prompts.texts))}
    count = round(fraction * len(number))
    if not 0 < count < len(number):
        raise FlagError(
            f"--held-out must leave at least one prompt on each side, got {fraction} of {len(number)} different "
            f"prompts, which holds out {count}."
        )
    chosen = np.random.default_rng(SPLIT_SEED).permutation(len(number))[:count]
    is_held_out = np.isin([number[text] for text in mdp.prompts.texts], chosen)
    train, held_out = (
        mdp.with_prompts(mdp.prompts.select(rows.nonzero()[0].tolist())) for rows in (~is_held_out, is_held_out)
    )
    return Environments(_batch(train), _batch(held_out), env)


def with_eval_prompts(env: EnvLike, path: str) -> Environments:
    """Reads prompts that are not trained on from a file.

    Raises:
        FlagError: there is no such file.
        ValueError: see `load_prompts`; or the reference's context is too short for them.
    """
    if not Path(path).is_file():
        raise FlagError(
            f"The prompt file {path!r} of --eval-prompts {'is no file' if Path(path).exists() else 'does not exist'}."
        )
    mdp = get_mdp(env)
    prompts = load_prompts(path, mdp.tokenizer, **mdp.encoding)
    if trained := set(prompts.texts) & set(mdp.prompts.texts):
        text = f"--eval-prompts: {len(trained)} of {len(prompts.texts)} prompts are trained on too, e.g. {min(trained)}"
        print(printable(text), file=sys.stderr)
    return Environments(env, _batch(mdp.with_prompts(prompts)), env)


def _batch(mdp: TextMDP) -> TextVectorEnv:
    return TextVectorEnv(mdp, num_envs=1)
