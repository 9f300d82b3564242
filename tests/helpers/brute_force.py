"""An independent oracle: every completion of a toy by recursion over `env.reset` and `env.step`, and the optimum."""

from __future__ import annotations

from typing import Any

import numpy as np

from textenv import exact

Completion = tuple[int, tuple[int, ...]]  # index of the prompt, tokens of the completion


def brute_force(env: Any, prompt: int, prefix: tuple[int, ...] = ()) -> dict[Completion, list[tuple[float, float]]]:
    """Every finished completion below a state, with `(reward, ref_log_prob)` of each step, by single steps alone."""
    completions: dict[Completion, list[tuple[float, float]]] = {}
    _, info = env.reset(options={"prompt": prompt, "completion": list(prefix)})
    for token in np.flatnonzero(info["action_mask"]).tolist():
        env.reset(options={"prompt": prompt, "completion": list(prefix)})
        _, reward, terminated, _, info = env.step(token)
        here = (reward, info["ref_log_prob"])
        below = {(prompt, (*prefix, token)): []} if terminated else brute_force(env, prompt, (*prefix, token))
        completions |= {completion: [here, *steps] for completion, steps in below.items()}
    return completions


def all_completions(env: Any) -> dict[Completion, list[tuple[float, float]]]:
    """Every finished completion of every prompt, by `brute_force`."""
    return {k: v for i in range(len(env.unwrapped.prompts)) for k, v in brute_force(env, i).items()}


def optimum(
    completions: dict[Completion, list[tuple[float, float]]], beta: float
) -> tuple[float, dict[Completion, float]]:
    """J* = mean over prompts of beta log sum pi_ref exp(r / beta), and log pi*(y|x), from an unbound env's rewards."""
    log_weights = {}
    for completion, steps in completions.items():
        ref = sum(log_prob for _, log_prob in steps)
        score = sum(reward for reward, _ in steps) - beta * ref
        log_weights[completion] = ref + score / beta
    prompts = sorted({prompt for prompt, _ in completions})
    log_z = [np.logaddexp.reduce([w for (p, _), w in log_weights.items() if p == prompt]) for prompt in prompts]
    return beta * float(np.mean(log_z)), {y: w - log_z[y[0]] for y, w in log_weights.items()}


def by_completion(tree: exact.Tree, values: Any) -> dict[Completion, float]:
    """Values in the order of `tree.leaves()`, by completion."""
    state, action = tree.leaves()
    return {
        (int(tree.prompt[s]), (*(int(t) for t in tree.tokens[s] if t >= 0), int(a))): float(value)
        for s, a, value in zip(state, action, values, strict=True)
    }
