"""Credit, seen: the weight that each estimator puts on each token of a good and of a bad completion.

"the taj mahal is in agra" and "... in paris" differ in one word, and the score comes at the end. The whole return, and
with it the reward to go, blames every word for "paris"; the advantage is what each word changed. The weights are those
of `agents.functional` for the two completions, under a policy a tenth of the way from the reference to the optimum. The
prompt's value V(s_0) replaces a mean return, of the batch or of the other completions; Q replaces a mean over sampled
continuations.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table

from agents.files import JsonObject
from agents.functional import gae, reward_to_go
from agents.verification import Enumeration
from experiments.lecture.credit_variance import values_from_samples
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.policies import interpolated_policy

PROMPT = "where is the taj mahal located"
ENDINGS = {"the taj mahal is in agra": "good", "the taj mahal is in paris": "bad"}


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each completion its tokens, and for each estimator one weight per token.

    `memo` is not used: this takes seconds.
    """
    completions = Enumeration.of(interpolated_policy(gym.make("textenv/TajMahal-v0"), 0.1))
    evaluation = completions.evaluation
    rows = torch.tensor([find(completions, completion) for completion in ENDINGS])
    rewards, mask = completions.rewards[rows], completions.mask[rows]
    values = completions.look_up(evaluation.values)[rows]
    learned = completions.look_up(values_from_samples(completions, np.random.default_rng(0), count=2048))[rows]
    to_go = reward_to_go(rewards, mask)
    weights = {
        "whole return": to_go[:, :1].expand_as(to_go),
        "reward to go": to_go,
        "reward to go - V(s_0)": to_go - values[:, :1],
        "reward to go - V(s_t)": gae(rewards, values, mask, gae_lambda=1.0),
        "Q": completions.look_up(evaluation.q_values)[rows],
        "advantage, exact V": gae(rewards, values, mask, gae_lambda=0.0),
        "advantage, learned V": gae(rewards, learned, mask, gae_lambda=0.0),
    }
    return {
        completion: {
            "tokens": completions.tree.mdp.tokenizer.convert_ids_to_tokens(completions.actions[row][mask[i]].tolist()),
            "weights": {name: w[i][mask[i]].tolist() for name, w in weights.items()},
        }
        for i, (completion, row) in enumerate(zip(ENDINGS, rows, strict=True))
    }


def find(completions: Enumeration, completion: str) -> int:
    """Returns the row of this completion of PROMPT."""
    mdp = completions.tree.mdp
    prompt = mdp.prompts.texts.index(PROMPT)
    tokens = [*mdp.encode_completion(completion).tolist(), mdp.eos_token_ids[0]]
    for row in torch.nonzero(completions.prompt == prompt).flatten().tolist():
        if completions.actions[row][completions.mask[row]].tolist() == tokens:
            return int(row)
    raise ValueError(f"The completion must be possible under the reference, got {completion!r} after {PROMPT!r}.")


def table(numbers: JsonObject) -> Table:
    """A row per completion and estimator, a column per token."""
    first = next(iter(numbers.values()))["tokens"]
    result = Table(title=f"weights of the tokens: {PROMPT}?")
    result.add_column("w_t")
    for token in [*first[:-2], "agra / paris", first[-1]]:
        result.add_column(token, justify="right")
    for completion in numbers.values():
        result.add_row(f"... {completion['tokens'][-2]}")
        for name, weights in completion["weights"].items():
            result.add_row(f"  {name}", *(f"{w:+.2f}" for w in weights))
        result.add_section()
    return result


def figure(numbers: JsonObject) -> Figure:
    """A heat map per completion."""
    fig = Figure(figsize=(13, 3.4), layout="constrained")
    axes = fig.subplots(1, len(numbers), sharey=True)
    for axis, completion in zip(axes, numbers.values(), strict=True):
        names, grid = list(completion["weights"]), list(completion["weights"].values())
        image = axis.imshow(grid, cmap="RdBu", vmin=-2, vmax=2, aspect="auto")
        axis.set_xticks(range(len(completion["tokens"])), completion["tokens"])
        axis.set_title(f"... in {completion['tokens'][-2]}")
        axis.set_yticks(range(len(names)), names)
        for y, row in enumerate(grid):
            for x, weight in enumerate(row):
                axis.text(x, y, f"{weight:+.2f}", ha="center", va="center", color="white" if abs(weight) > 1.2 else "k")
    fig.colorbar(image, ax=axes, label="weight")
    return fig
