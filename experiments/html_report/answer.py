"""The question of the runs and its answer, a sentence each, from the numbers; and what a reader must know besides."""

from __future__ import annotations

from collections.abc import Mapping

from agents.files import JsonObject
from experiments.html_report.figures import number
from experiments.html_report.runs import Runs
from experiments.report import FEW_SEEDS
from experiments.share import describe_baselines, normalized_objective
from experiments.statistics import Estimate, interquartile_mean, paired_difference

UPPER = {"ppo": "PPO", "rloo": "RLOO", "grpo": "GRPO", "reinforce": "REINFORCE", "actor_critic": "ActorCritic"}


def question(runs: Runs) -> str:
    """What was asked."""
    flags, names = runs.flags, [shown(name) for name in runs.trials]
    task = str(flags.get("env", "")).rpartition("/")[2]
    if isinstance(model := flags.get("model"), str):
        task += f" with {model.rstrip('/').rpartition('/')[2]}"
    tokens = max(run.summary["num_timesteps"] for run in runs.all)
    beta = flags.get("kl_coef")
    where = f"on {task} in {tokens:,} tokens" + (f", with β = {beta:g}" if isinstance(beta, int | float) else "")
    if len(names) == 1:
        return f"How far does {names[0]} get {where}?"
    return f"Which of {', '.join(names[:-1])} and {names[-1]} gets furthest {where}?"


def answer(runs: Runs) -> str:
    """What the numbers say."""
    objectives = {
        name: interquartile_mean([run.summary["objective"] for run in all_]) for name, all_ in runs.trials.items()
    }
    ranked = sorted(objectives, key=lambda name: objectives[name].value, reverse=True)
    best = ranked[0]
    reached = f"J = {estimate(objectives[best])}, {_way(objectives[best].value, runs.baselines)}"
    if len(ranked) == 1:
        last = [run.summary for run in runs.trials[best]]
        score, kl = (interquartile_mean([each[key] for each in last]).value for key in ("score", "kl"))
        return f"{shown(best)} reaches {reached}: a score of {number(score)} at a KL of {number(kl)} nats."
    return f"{shown(best)}: it reaches {reached}, {_lead(runs, best, ranked[1])}."


def _way(objective: float, baselines: JsonObject) -> str:
    reference, share = baselines["reference"], normalized_objective(objective, baselines)
    if share is None:
        return f"where the reference has {number(reference)}"
    if share < 0:
        return f"below the reference ({number(reference)})"
    kind = "exact" if baselines.get("optimum_stderr") is None else "estimated"
    ends = f"from the reference ({number(reference)}) to the {kind} optimum ({number(baselines['optimum'])})"
    return f"{share:.0%} of the way {ends}"


def _lead(runs: Runs, best: str, second: str) -> str:
    """How sure it is that the best agent is better than the next one."""
    first, other = ({run.seed: run.summary["objective"] for run in runs.trials[name]} for name in (best, second))
    common = sorted(first.keys() & other.keys())
    if not common:
        return f"ahead of {shown(second)}, with which it has no seed in common"
    lead = paired_difference({seed: first[seed] for seed in common}, {seed: other[seed] for seed in common})
    if lead.low is None or lead.high is None:
        return f"{number(lead.value)} more than {shown(second)} with one seed, so another seed may turn the order"
    if lead.low > 0:
        return f"{estimate(lead)} more than {shown(second)}, seed by seed"
    return f"but {len(common)} seeds do not tell it from {shown(second)}: the difference is {estimate(lead)}"


def caveats(runs: Runs) -> list[str]:
    """Sentences that qualify the answer."""
    fewest = min(len(trials) for trials in runs.trials.values())
    found = []
    if fewest == 1:
        found.append("One seed has no interval.")
    elif fewest < FEW_SEEDS:
        found.append(f"In brackets: 95% bootstrap intervals over seeds; with {fewest} of them they are too narrow.")
    return [*found, *describe_baselines(runs.baselines), *runs.notes]


def estimate(value: Estimate) -> str:
    """A value with its interval, as the page shows it."""
    interval = "" if value.low is None or value.high is None else f" [{number(value.low)}, {number(value.high)}]"
    return number(value.value) + interval


def shown(name: str, names: Mapping[str, str] = UPPER) -> str:
    """An agent's name in a sentence."""
    return names.get(name, name)
