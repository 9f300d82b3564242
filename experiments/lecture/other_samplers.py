"""Another sampler: bias and noise of REINFORCE on completions that another distribution has sampled.

    w_t = pi(a_t|s_t) / sampler(a_t|s_t)       by token; its product over the tokens up to t (prefix), or over all

The sampler is the policy at another temperature, with top-k or top-p, or computed in bfloat16; or it samples from the
policy and returns log-probabilities that are rounded to bfloat16. The weights multiply the reward to go, and the KL of
the rewards is that of the policy, see agents/preparation.py. Weights by sequence are unbiased where the sampler can
sample every completion and returns the log-probabilities that it has sampled with. A weight cannot give back what top-k
and top-p leave out.
"""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from agents import REINFORCE
from agents.files import JsonObject
from agents.verification import (
    OtherSampler,
    agent_loss,
    bfloat16,
    rounded,
    temperature,
    top_k,
    top_p,
    unchanged,
    verify,
)
from experiments.lecture.memo import Remember, no_memo

UNCAPPED = {"sampler_correction": "truncate", "sampler_cap": 1e30}
CORRECTIONS: dict[str, JsonObject] = {
    "none": {},
    "token": UNCAPPED | {"sampler_level": "token"},
    "prefix": UNCAPPED | {"sampler_level": "prefix"},
    "sequence": UNCAPPED | {"sampler_level": "sequence"},
    "sequence, truncated at 2": {"sampler_correction": "truncate", "sampler_level": "sequence"},
    "sequence, masked above 2": {"sampler_correction": "mask", "sampler_level": "sequence"},
}
SAMPLERS = {
    "temperature 0.7": OtherSampler(partial(temperature, value=0.7)),
    "temperature 1.5": OtherSampler(partial(temperature, value=1.5)),
    "top-k, 3 of 4": OtherSampler(partial(top_k, k=3)),
    "top-p, 0.9": OtherSampler(partial(top_p, p=0.9)),
    "bfloat16": OtherSampler(rounded),
    "log-probs in bfloat16": OtherSampler(unchanged, bfloat16),
}


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each correction and sampler: bias and noise at each policy."""
    return {name: memo(name, partial(measured, name)) for name in CORRECTIONS}


def measured(name: str) -> JsonObject:
    """Bias and noise at each policy, for each sampler, with a correction."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=4, num_prompts=1, kl_coef=0.2)
    loss = agent_loss(REINFORCE, baseline=None, **CORRECTIONS[name])
    found = verify(loss, env, samplers=SAMPLERS).off_policy
    return {
        sampler: {
            policy: {"bias": x.bias, "noise": x.noise if np.isfinite(x.noise) else None}
            for policy, x in behaviour.by_policy.items()
        }
        for sampler, behaviour in found.items()
    }


def worst(row: JsonObject, key: str) -> float:
    """The largest number of the policies."""
    return float(max(each[key] for each in row.values() if each[key] is not None))


def table(numbers: JsonObject) -> Table:
    """A row per sampler, with bias and noise of each correction."""
    result = Table(
        title="REINFORCE on completions of another sampler: bias (noise), the worst of four policies",
        caption="Bias: |E[gradient] - grad J| / |grad J|. Noise: the standard deviation of a completion's gradient "
        "over |E[gradient]|.",
    )
    for column in ("sampler", *numbers):
        result.add_column(column, justify="left" if column == "sampler" else "right")
    for sampler in SAMPLERS:
        cells = ((worst(row[sampler], "bias"), worst(row[sampler], "noise")) for row in numbers.values())
        result.add_row(sampler, *(f"{'0' if bias < 1e-6 else f'{bias:.2g}'} ({noise:.1f})" for bias, noise in cells))
    return result


def figure(numbers: JsonObject) -> Figure:
    """Bias and noise of each correction, by sampler."""
    result = Figure(figsize=(11, 4.2), layout="constrained")
    axes = result.subplots(1, 2)
    width, places = 0.8 / len(numbers), np.arange(len(SAMPLERS))
    for i, (name, row) in enumerate(numbers.items()):
        for each, key in zip(axes, ("bias", "noise"), strict=True):
            heights = [max(worst(row[sampler], key), 1e-6) for sampler in SAMPLERS]
            each.bar(places + (i - (len(numbers) - 1) / 2) * width, heights, width, label=name)
    for each, text in zip(axes, ("bias (below 1e-6: none)", "noise"), strict=True):
        each.set_xticks(places, list(SAMPLERS), rotation=20)
        each.set_ylabel(text)
    axes[0].set_yscale("log")
    result.legend(*axes[0].get_legend_handles_labels(), title="correction", loc="outside upper center", ncols=3)
    return result
