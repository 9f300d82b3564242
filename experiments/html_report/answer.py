"""The question of the runs and its answer, a sentence each, from the numbers; and what a reader must know besides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agents.files import JsonObject
from experiments.agent_classes import settings_key
from experiments.html_report.figures import number
from experiments.html_report.run import Run
from experiments.html_report.runs import Runs
from experiments.html_report.task import arguments_of
from experiments.report_rows import FEW_SEEDS
from experiments.share import describe_baselines, normalized_objective, normalized_objective_stderr
from experiments.statistics import Estimate, interquartile_mean, paired_difference
from textenv import exact

ENOUGH_SEEDS = 5  # with fewer, an agent that is no better leads with all of them too often: with n, in 2^(1 - n)
SURE = 1.96  # standard errors


def question(runs: Runs) -> str:
    """What was asked."""
    flags, names = runs.flags, [*runs.trials]
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
    best, failed = ranked[0], _failed(runs)
    errors = {name: _evaluation_error(trials) for name, trials in runs.trials.items()}
    way = f"J = {estimate(reached[best])}, {_way(reached[best], errors[best], runs.baselines)}"
    if len(ranked) == 1:
        last = [run.summary for run in runs.trials[best]]
        score, kl = (interquartile_mean([each[key] for each in last]).value for key in ("score", "kl"))
        reaches = "had reached" if failed else "reaches"
        return f"{failed}{best} {reaches} {way}: a score of {number(score)} at a KL of {number(kl)} nats."
    second = ranked[1]
    if not common:
        return f"{failed}{best}: it reaches {way}, ahead of {second}; the agents have no seed in common."
    lead, seeds = paired_difference(compared[best], compared[second]), _seeds(common)
    if all(number(each or 0.0) == number(0.0) for each in lead):
        return f"{failed}{best} and {second} are level over {seeds}: {way}."
    if doubt := _doubt(lead, errors[best], errors[second], seeds):
        difference = f"the difference is {estimate(lead)}"
        return f"{failed}Undecided: {best} reaches {way}, but {doubt} do not tell it from {second}: {difference}."
    more = f"{estimate(lead)} more than {second} over {seeds}"
    return f"{failed}{best}: it reaches {way}, {more}{'' if len(common) >= ENOUGH_SEEDS else ', too few to be sure'}."


def _failed(runs: Runs) -> str:
    """A sentence about runs that failed, "" if there are none."""
    events = [f"{run.name} {run.failure.event}" for run in runs.all if run.failure is not None]
    if len(events) > 2:
        return f"{len(events)} of {len(runs.all)} runs failed. "
    return "".join(f"{event}. " for event in events)


def _evaluation_error(trials: Sequence[Run]) -> float | None:
    """The standard error of an agent's J by its evaluations; None where J is exact.

    All trials are evaluated with the same random numbers, so their errors do not average out.
    """
    errors = [error for run in trials if (error := run.summary.get("objective_stderr")) is not None]
    return float(np.mean(errors)) if errors else None


def _way(reached: Estimate, error: float | None, baselines: JsonObject) -> str:
    """Where J is between the reference and the optimum, as far as seeds and evaluations tell."""
    objective, reference = reached.value, baselines["reference"]
    of_reference, share = f"the reference ({number(reference)})", normalized_objective(objective, baselines)
    if number(objective) == number(reference):
        return f"as much as {of_reference}"
    if error is not None and abs(objective - reference) < SURE * math.hypot(error, baselines["reference_stderr"] or 0):
        return f"which its evaluations do not tell from {of_reference}"
    if reached.low is not None and reached.high is not None and reached.low <= reference <= reached.high:
        return f"which its seeds do not tell from {of_reference}"
    if objective < reference:
        return f"below {of_reference}"
    if share is None:
        return f"above {of_reference}"
    if baselines.get("optimum_stderr") is None:
        return f"{share:.0%} of the way from {of_reference} to the exact optimum ({number(baselines['optimum'])})"
    stderr = normalized_objective_stderr(share, error, baselines) or 0.0
    ends = f"of the way from {of_reference} to the estimated optimum ({number(baselines['optimum'])}"
    about = f"{share:.0%} ± {100 * stderr:.0f}"
    if (least := baselines["least_effective_sample_size"]) < exact.MIN_EFFECTIVE_SAMPLES:
        return f"at most about {about} {ends} or more: {least:.1f} effective completions decide)"
    return f"{about} {ends})"


def _doubt(lead: Estimate, first: float | None, second: float | None, seeds: str) -> str:
    """What does not tell the best agent from the next one, by the standard errors of both; "" if all does."""
    if abs(lead.value) < SURE * math.hypot(first or 0.0, second or 0.0):
        return "the evaluations"
    return seeds if lead.low is not None and lead.low <= 0 else ""


def _seeds(seeds: Sequence[int]) -> str:
    return "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"


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
    return [*found, *_own_rewards(runs), *describe_baselines(runs.baselines), *runs.notes]


def _own_rewards(runs: Runs) -> list[str]:
    """A sentence for each agent that trains on other rewards than J is of."""
    beta, found = arguments_of(runs.flags).get("kl_coef"), []
    for name, trials in runs.trials.items():
        own = trials[0].flags.get(settings_key(str(trials[0].flags["agent"]))) or {}
        how = []
        if own.get("kl_target") is not None:
            how.append(f"a β that is adapted to a KL of {own['kl_target']} nats")
        elif own.get("kl_coef") not in (None, beta):
            how.append(f"β = {own['kl_coef']}")
        if own.get("kl_in") == "loss":
            how.append("the KL in its loss")
        if own.get("gamma", 1.0) != 1.0:
            how.append(f"gamma = {own['gamma']}")
        if how:
            has_values = any("value" in each.columns for step in trials[0].steps for each in step.completions)
            learned = ", and its V and advantage are of that" if has_values else ""
            task = "the task's β" + (f" = {beta:g}" if isinstance(beta, int | float) else "")
            found.append(
                f"{name} trains with {' and '.join(how)}{learned}. J, the reward with its terms and all that is exact "
                f"have {task} and no discount."
            )
    return found


def estimate(value: Estimate) -> str:
    """A value with its interval, as the page shows it."""
    interval = "" if value.low is None or value.high is None else f" [{number(value.low)}, {number(value.high)}]"
    return number(value.value) + interval
