"""Credit, seen: the weight that each estimator puts on each token of a good and of a bad answer.

"the taj mahal is in agra" and "... in paris" differ in one word, and the score is paid at the end. The whole return,
and with it the reward to go, blames every word for "paris"; the advantage asks what each word changed. Weights are what
`agents/returns.py` makes of the two answers, under a policy that has just left the reference (a tenth of the way). The
prompt's value V(s_0) stands for a mean return, of the batch or of the other answers; Q for the mean of sampled ones.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from agents.functional import gae, reward_to_go
from experiments.lecture.credit_variance import values_from_samples
from experiments.lecture.enumeration import Enumeration, on_the_way

PROMPT = "where is the taj mahal located"
ENDINGS = {"the taj mahal is in agra": "good", "the taj mahal is in paris": "bad"}


def measure() -> dict[str, Any]:
    """The weights, answer by answer: its tokens, and for each estimator a number a token."""
    answers = Enumeration.of(on_the_way(gym.make("textenv/TajMahal-v0"), 0.1))
    known = answers.evaluation
    rows = torch.tensor([find(answers, text) for text in ENDINGS])
    rewards, mask = answers.rewards[rows], answers.mask[rows]
    values = answers.look_up(known.values)[rows]
    learned = answers.look_up(values_from_samples(answers, np.random.default_rng(0), count=2048))[rows]
    to_go = reward_to_go(rewards, mask)
    weights = {
        "whole return": to_go[:, :1].expand_as(to_go),
        "reward to go": to_go,
        "reward to go - V(s_0)": to_go - values[:, :1],
        "reward to go - V(s_t)": gae(rewards, values, mask, gae_lambda=1.0),
        "Q": answers.look_up(known.q_values)[rows],
        "advantage, exact V": gae(rewards, values, mask, gae_lambda=0.0),
        "advantage, learned V": gae(rewards, learned, mask, gae_lambda=0.0),
    }
    return {
        text: {
            "tokens": answers.tree.mdp.tokenizer.convert_ids_to_tokens(answers.actions[row][mask[i]].tolist()),
            "weights": {name: w[i][mask[i]].tolist() for name, w in weights.items()},
        }
        for i, (text, row) in enumerate(zip(ENDINGS, rows, strict=True))
    }


def find(answers: Enumeration, text: str) -> int:
    """The row of this answer to PROMPT."""
    mdp = answers.tree.mdp
    prompt = mdp.prompts.texts.index(PROMPT)
    wanted = [*mdp.encode_completion(text).tolist(), mdp.eos_token_ids[0]]
    for row in torch.nonzero(answers.prompt == prompt).flatten().tolist():
        if answers.actions[row][answers.mask[row]].tolist() == wanted:
            return int(row)
    raise ValueError(f"The reference never says {text!r} after {PROMPT!r}.")


def table(numbers: dict[str, Any]) -> Table:
    """A row an estimator and answer, a column a token."""
    first = next(iter(numbers.values()))["tokens"]
    made = Table(title=f"weights of the tokens: {PROMPT}?")
    made.add_column("w_t")
    for token in [*first[:-2], "agra / paris", first[-1]]:
        made.add_column(token, justify="right")
    for answer in numbers.values():
        made.add_row(f"... {answer['tokens'][-2]}")
        for name, weights in answer["weights"].items():
            made.add_row(f"  {name}", *(f"{w:+.2f}" for w in weights))
        made.add_section()
    return made


def figure(numbers: dict[str, Any]) -> Figure:
    """A heat map an answer."""
    made = Figure(figsize=(13, 3.4), layout="constrained")
    axes = made.subplots(1, len(numbers), sharey=True)
    for axis, answer in zip(axes, numbers.values(), strict=True):
        names, grid = list(answer["weights"]), list(answer["weights"].values())
        image = axis.imshow(grid, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        axis.set_xticks(range(len(answer["tokens"])), answer["tokens"])
        axis.set_title(f"... in {answer['tokens'][-2]}")
        axis.set_yticks(range(len(names)), names)
        for y, row in enumerate(grid):
            for x, weight in enumerate(row):
                axis.text(x, y, f"{weight:+.2f}", ha="center", va="center", color="white" if abs(weight) > 1.2 else "k")
    made.colorbar(image, ax=axes, label="weight")
    return made
