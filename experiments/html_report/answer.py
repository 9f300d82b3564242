"""The question of the runs and its answer, a sentence each, from the numbers; and what a reader must know besides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agents.files import JsonObject
from experiments.html_report.figures import number
from experiments.html_report.runs import Runs
from experiments.html_report.task import arguments_of
from experiments.report_rows import FEW_SEEDS
from experiments.share import describe_baselines, normalized_objective
from experiments.statistics import Estimate, interquartile_mean, paired_difference

DISPLAY_NAMES = {
    **{"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "reinforce": "REINFORCE", "actor_critic": "ActorCritic"},
    "path_consistency": "PathConsistency",
}


def question(runs: Runs) -> str:
    """What was asked."""
    flags, names = runs.flags, [shown(name) for name in runs.trials]
    task = str(flags.get("env", "")).rpartition("/")[2]
    if isinstance(model := flags.get("model"), str):
        task += f" with {model.rstrip('/').rpartition('/')[2]}"
    counts = [run.summary["num_timesteps"] for run in runs.all]
    tokens = f"{'up to ' if min(counts) < max(counts) else ''}{max(counts):,} tokens"
    beta = arguments_of(flags).get("kl_coef")
    where = f"on {task} in {tokens}" + (f", with β = {beta:g}" if isinstance(beta, int | float) else "")
    if len(names) == 1:
        return f"How far does {names[0]} get {where}?"
    return f"Which of {', '.join(names[:-1])} and {names[-1]} gets furthest {where}?"


def answer(runs: Runs) -> str:
    """What the numbers say. Agents are ranked by their means over the seeds that all of them have, if there are any."""
    objectives = {name: {run.seed: run.summary["objective"] for run in all_} for name, all_ in runs.trials.items()}
    reached = {name: interquartile_mean([*values.values()]) for name, values in objectives.items()}
    common = sorted(set.intersection(*(set(values) for values in objectives.values())))
    compared = {name: {seed: values[seed] for seed in common} for name, values in objectives.items()}
    ranked = sorted(
        objectives,
        key=lambda name: float(np.mean([*compared[name].values()])) if common else reached[name].value,
        reverse=True,
    )
    best = ranked[0]
    way = f"J = {estimate(reached[best])}, {_way(reached[best].value, runs.baselines)}"
    if len(ranked) == 1:
        last = [run.summary for run in runs.trials[best]]
        score, kl = (interquartile_mean([each[key] for each in last]).value for key in ("score", "kl"))
        return f"{shown(best)} reaches {way}: a score of {number(score)} at a KL of {number(kl)} nats."
    second = ranked[1]
    if not common:
        return f"{shown(best)}: it reaches {way}, ahead of {shown(second)}; the agents have no seed in common."
    return f"{shown(best)}: it reaches {way}, {_lead(compared[best], compared[second], shown(second))}."


def _way(objective: float, baselines: JsonObject) -> str:
    reference, share = baselines["reference"], normalized_objective(objective, baselines)
    if share is None:
        return f"where the reference has {number(reference)}"
    if share < 0:
        return f"below the reference ({number(reference)})"
    kind = "exact" if baselines.get("optimum_stderr") is None else "estimated"
    ends = f"from the reference ({number(reference)}) to the {kind} optimum ({number(baselines['optimum'])})"
    return f"{share:.0%} of the way {ends}"


def _lead(first: Mapping[int, float], second: Mapping[int, float], name: str) -> str:
    """How sure it is that the best agent is better than the next one, of that `name`; J by seed of both."""
    lead = paired_difference(first, second)
    if lead.low is None or lead.high is None:
        if number(lead.value) == number(0.0):
            return f"as much as {name} with one seed"
        return f"{number(lead.value)} more than {name} with one seed, so another seed may turn the order"
    if lead.low > 0:
        return f"{estimate(lead)} more than {name}, seed by seed"
    return f"but {len(first)} seeds do not tell it from {name}: the difference is {estimate(lead)}"


def caveats(runs: Runs) -> list[str]:
    """Sentences that qualify the answer."""
    fewest = min(len(trials) for trials in runs.trials.values())
    found = []
    if fewest == 1:
        found.append("One seed has no interval.")
    elif fewest < FEW_SEEDS:
        found.append(f"In brackets: 95% bootstrap intervals over seeds; with {fewest} of them they are too narrow.")
    counts = [run.summary["num_timesteps"] for run in runs.all]
    if min(counts) < 0.95 * max(counts):  # more than the completions of an update
        found.append(f"The runs had {min(counts):,} to {max(counts):,} tokens: one with more had more time to learn.")
    return [*found, *describe_baselines(runs.baselines), *runs.notes]


def estimate(value: Estimate) -> str:
    """A value with its interval, as the page shows it."""
    interval = "" if value.low is None or value.high is None else f" [{number(value.low)}, {number(value.high)}]"
    return number(value.value) + interval


def shown(name: str) -> str:
    """An agent's name in a sentence; what tells it from others of the name stays behind it."""
    agent, space, rest = name.partition(" ")
    return DISPLAY_NAMES.get(agent, agent) + space + rest
