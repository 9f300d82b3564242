"""An agent's update from its equations: loops over completions and tokens, and Adam written out.

The oracle of the tests of settings and metrics. Of the project it uses the policy, for log pi and V, and the agent's
settings. Returns, advantages, losses, metrics and the optimizer follow the docstrings of agents/, in plain Python.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.sampling import Rollout

Rows = list[list[Any]]  # one list for each completion, with one number for each of its tokens
Metrics = dict[str, float]
EPSILON = {"whiten": 1e-8, "group": 1e-4, "adam": 1e-5, "adagrad": 1e-10, "clip": 1e-6}  # what avoids divisions by zero


def per_token(x: Tensor, rollout: Rollout) -> Rows:
    """The entries [B, T] of the sampled tokens, as one list per completion."""
    return [[x[i, t] for t in range(x.shape[1]) if rollout.mask[i, t]] for i in range(len(rollout))]


def numbers(x: Tensor, rollout: Rollout) -> Rows:
    """`per_token` as Python floats."""
    return [[float(entry) for entry in row] for row in per_token(x.double(), rollout)]


def mean(values: list[Any]) -> Any:
    """The mean of a list that may be empty: 0 then."""
    return sum(values) / max(1, len(values))


def reward_to_go(rewards: list[float], gamma: float) -> list[float]:
    """G_t = sum_l gamma^l r_{t+l}."""
    return [sum(gamma**later * r for later, r in enumerate(rewards[t:])) for t in range(len(rewards))]


def gae(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """A_t = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l})), with V(s_T) = 0."""
    following = [*values[1:], 0.0][: len(values)]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    return reward_to_go(deltas, gamma * gae_lambda)


def others(returns: list[float | None], i: int, size: int) -> list[float]:
    """The returns of the other completions of the group of completion i, without those that are skipped (None)."""
    first = i // size * size
    return [g for j in range(first, first + size) if j != i and (g := returns[j]) is not None]


def without_skipped(agent: Any, rollout: Rollout) -> Rollout:
    """The rollout whose mask is False also where a completion has no other of its group to be compared with."""
    grouped = ("RLOO", "GRPO", "PathConsistency")
    if type(agent).__name__ not in grouped and getattr(agent, "baseline", None) != "leave_one_out":
        return rollout
    size, mask = agent.num_generations, rollout.mask.clone()
    for first in range(0, len(rollout), size):
        if sum(bool(row.any()) for row in rollout.mask[first : first + size]) < 2:
            mask[first : first + size] = False
    return replace(rollout, mask=mask)


def whiten(rows: Rows) -> Rows:
    """(A - mean) / (std + epsilon) over all tokens."""
    flat = [a for row in rows for a in row]
    centre = mean(flat)
    deviation = math.sqrt(mean([(a - centre) ** 2 for a in flat]))
    return [[(a - centre) / (deviation + EPSILON["whiten"]) for a in row] for row in rows]


def advantages_of(agent: Any, rollout: Rollout, q_values: Tensor | None = None) -> tuple[Rows, Rows]:
    """The weight of each token in the policy's loss, and its reward to go; without whitening."""
    kind, size = type(agent).__name__, agent.num_generations
    rewards = numbers(rollout.rewards, rollout)
    if kind == "PathConsistency":  # its weights depend on the policy: `inconsistency`
        return rewards, rewards
    to_go = [reward_to_go(row, agent.gamma) for row in rewards]
    returns = [row[0] if row else None for row in to_go]
    if kind in ("ActorCritic", "PPO"):
        assert rollout.values is not None
        values = numbers(rollout.values, rollout)
        return [gae(r, v, agent.gamma, agent.gae_lambda) for r, v in zip(rewards, values, strict=True)], to_go
    if kind == "RLOO":
        each = [0.0 if g is None else g - mean(others(returns, i, size)) for i, g in enumerate(returns)]
        return [[advantage] * len(row) for advantage, row in zip(each, rewards, strict=True)], to_go
    if kind == "GRPO":
        found = []
        for i, g in enumerate(returns):
            if g is None:
                found.append([])
                continue
            group = [g, *others(returns, i, size)]
            centre = mean(group)
            variance = sum((x - centre) ** 2 for x in group) / (len(group) - 1)
            scale = math.sqrt(variance) + EPSILON["group"] if agent.scale_rewards else 1.0
            found.append([(g - centre) / scale] * len(rewards[i]))
        return found, to_go
    q_rows = to_go if q_values is None else numbers(q_values, rollout)
    credit = {"sequence": [row[:1] * len(row) for row in to_go], "reward_to_go": to_go, "q": q_rows}[agent.credit]
    baseline = [0.0] * len(returns)
    if agent.baseline == "mean":
        baseline = [mean([g for g in returns if g is not None])] * len(returns)
    elif agent.baseline == "leave_one_out":
        baseline = [mean(others(returns, i, size)) for i in range(len(returns))]
    return [[w - b for w in row] for row, b in zip(credit, baseline, strict=True)], to_go


@dataclass
class Batch:
    """What an update knows of its rollout: lists of numbers, one list for each completion."""

    rollout: Rollout
    advantages: Rows
    returns: Rows
    old_log_probs: Rows
    old_values: Rows | None


def surrogate(rho: Tensor, advantage: float, low: float | None, high: float | None) -> tuple[Tensor, bool]:
    """min(rho A, clip(rho, 1 - eps, 1 + eps_high) A), and whether the clip binds."""
    if low is None:
        return rho * advantage, False
    above = low if high is None else high
    binds = (advantage > 0 and rho.item() > 1 + above) or (advantage < 0 and rho.item() < 1 - low)
    limit = 1 + above if advantage > 0 else 1 - low
    return (torch.tensor(limit * advantage, dtype=rho.dtype) if binds else rho * advantage), binds


def importance(new: list[Tensor], before: list[float], t: int, level: str) -> Tensor:
    """rho_t: the product over the token, the tokens up to it or all, or its geometric mean; the gradient is pi_t's."""
    log_ratios = [a.item() - b for a, b in zip(new, before, strict=True)]
    logs = {
        "token": log_ratios[t],
        "prefix": sum(log_ratios[: t + 1]),
        "sequence": sum(log_ratios),
        "mean": mean(log_ratios),
    }
    return (new[t] - new[t].detach() + logs[level]).exp()


def soft_gate(rho: Tensor, advantage: float, agent: Any) -> Tensor:
    """SAPO: 4 / tau sigmoid(tau (rho - 1)) A."""
    tau = 1.0 if advantage > 0 else 1.05
    return 4 / tau * advantage / (1 + (-tau * (rho - 1)).exp())


def clipped_weight(rho: Tensor, advantage: float, agent: Any) -> Tensor:
    """CISPO: the weight is at most 1 + eps_high, and no factor of the gradient."""
    high = agent.clip_range if agent.clip_range_high is None else agent.clip_range_high
    return (rho.item() if high is None else min(rho.item(), 1 + high)) * advantage * rho.log()


SOFT = {"sapo": soft_gate, "cispo": clipped_weight}


def completion_weight(agent: Any, batch: Batch, length: int) -> float:
    """What a loss of GRPO divides a completion's sum by: its length, the batch's mean length, or nothing."""
    name = getattr(agent, "loss", "dr_grpo")
    lengths = [len(row) for row in batch.old_log_probs if row]
    return {"dr_grpo": 1.0, "dapo": 1 / mean(lengths), "cispo": 1 / mean(lengths)}.get(name, 1 / length)


def kl_term(agent: Any, new: Tensor, reference: float, before: float) -> Tensor:
    """The KL of a token in the loss."""
    log_ratio = new - reference
    k3 = (-log_ratio).exp() - 1 + log_ratio
    terms = {"k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3, "k3_rho": (new - before).exp() * k3}
    return terms[agent.kl_loss]


def ratio_metrics(rho: list[float], of_tokens: list[float], advantages: list[float], binds: list[bool]) -> Metrics:
    """The metrics of the probability ratios of tokens (RLOO: of completions)."""
    high = [b for b, a in zip(binds, advantages, strict=True) if a > 0]
    low = [b for b, a in zip(binds, advantages, strict=True) if a < 0]
    return {
        "val/ratio": mean(rho),
        "val/ratio_error_max": max(abs(r - 1) for r in rho),
        "val/ess": sum(rho) ** 2 / (len(rho) * sum(r * r for r in rho)),
        # KL(pi_old || pi) = E_old[log(pi_old / pi)], by k3 of that log-ratio: exp(-x) - 1 + x
        "policy/approxkl_avg": mean([math.exp(-x) - 1 + x for x in (-math.log(r) for r in of_tokens)]),
        "policy/clipfrac_avg": mean(binds),
        "policy/clipfrac_high_avg": mean(high),
        "policy/clipfrac_low_avg": mean(low),
    }


def inconsistency(agent: Any, batch: Batch, rows: list[int], log_probs: list[list[Tensor]]) -> list[Any]:
    """n / (n - 1) (R_i - mean)^2 / (2 beta) over the n completions of a group, R without importance weights."""
    beta, found = agent.mdp.kl_coef, []
    reference = numbers(batch.rollout.ref_log_probs, batch.rollout)
    returns = {}
    for i, new in zip(rows, log_probs, strict=True):
        if new:
            before = sum(a - b for a, b in zip(batch.old_log_probs[i], reference[i], strict=True))
            score = sum(batch.returns[i]) + beta * before
            returns[i] = score - beta * (sum(new) - sum(reference[i]))
    for i, own in returns.items():
        group = [g for j, g in returns.items() if j // agent.num_generations == i // agent.num_generations]
        found.append(len(group) / (len(group) - 1) * (own - mean(group)) ** 2 / (2 * beta))
    return found


def loss_of(agent: Any, batch: Batch, rows: list[int], policy: Any) -> tuple[Tensor, Metrics]:
    """The loss of a minibatch, a mean over its completions that are not skipped, and its metrics."""
    count = sum(1 for i in rows if batch.old_log_probs[i])
    part = batch.rollout[torch.tensor(rows)]
    found = policy.evaluate_actions(part.input_ids, part.attention_mask, part.num_tokens, part.action_mask)
    log_probs, values = per_token(found.log_probs.double(), part), per_token(found.values.double(), part)
    of_the_tokens = log_probs
    old, advantages = [batch.old_log_probs[i] for i in rows], [batch.advantages[i] for i in rows]
    kind, metrics, gains = type(agent).__name__, Metrics(), list[Any]()
    pairs = [pair for new, before in zip(log_probs, old, strict=True) for pair in zip(new, before, strict=True)]
    first_ratio_error = mean([abs(math.exp(new.item() - before) - 1) for new, before in pairs])
    if kind in ("REINFORCE", "ActorCritic"):
        for new, weights in zip(log_probs, advantages, strict=True):
            gains += [log_prob * weight for log_prob, weight in zip(new, weights, strict=True)]
    elif kind == "PathConsistency":
        gains += [-each for each in inconsistency(agent, batch, rows, log_probs)]
    else:
        if kind == "RLOO":  # one ratio for each completion, and one weight
            log_probs, old = (
                [[sum(row)] if row else [] for row in log_probs],
                [[sum(row)] if row else [] for row in old],
            )
            advantages = [row[:1] for row in advantages]
        rho, binds, name = [], [], getattr(agent, "loss", "dr_grpo")
        for new, before, weights in zip(log_probs, old, advantages, strict=True):
            for t, weight in enumerate(weights):
                rho.append(
                    importance(new, before, t, "mean" if name == "gspo" else getattr(agent, "importance", "token"))
                )
                gain, bound = surrogate(rho[-1], weight, agent.clip_range, getattr(agent, "clip_range_high", None))
                if name in SOFT:
                    gain = SOFT[name](rho[-1], weight, agent)
                gains.append(completion_weight(agent, batch, len(new)) * gain)
                binds.append(bound)
        of_tokens = [
            math.exp(a.item() - b) for x, y in zip(log_probs, old, strict=True) for a, b in zip(x, y, strict=True)
        ]
        metrics = ratio_metrics([r.item() for r in rho], of_tokens, [a for row in advantages for a in row], binds)
    metrics["val/first_ratio_error_avg"] = first_ratio_error
    # where the clip binds for every token the gradient is 0, not missing
    loss = -sum(gains) / count + 0.0 * sum(log_prob for row in log_probs for log_prob in row)
    metrics["loss/policy_avg"] = loss.item()
    if agent.kl_in == "loss":
        reference, old = numbers(part.ref_log_probs, part), [batch.old_log_probs[i] for i in rows]
        terms = [
            completion_weight(agent, batch, len(row)) * kl_term(agent, new, ref, before)
            for row, refs, befores in zip(of_the_tokens, reference, old, strict=True)
            for new, ref, before in zip(row, refs, befores, strict=True)
        ]
        penalty = agent.mdp.kl_coef * sum(terms) / count
        metrics["loss/kl_avg"] = penalty.item()
        loss = loss + penalty
    if kind not in ("ActorCritic", "PPO"):
        return loss, metrics
    clip, errors = getattr(agent, "clip_range_vf", None), list[Any]()
    for i, row in zip(rows, values, strict=True):
        for t, value in enumerate(row):
            target, error = batch.returns[i][t], (value - batch.returns[i][t]) ** 2
            if clip is not None:
                assert batch.old_values is not None
                before = batch.old_values[i][t]
                clipped = min(max(value.item() - before, -clip), clip)
                if abs(value.item() - before) > clip and (before + clipped - target) ** 2 > error.item():
                    error = torch.tensor((before + clipped - target) ** 2, dtype=value.dtype)
            errors.append(error)
    value_loss = sum(errors) / 2 / count
    metrics["loss/value_avg"] = value_loss.item()
    return loss + agent.vf_coef * value_loss, metrics


class Adam:
    """Adam (Kingma & Ba 2015) with the step size of each parameter, beta_1 = 0.9 and beta_2 = 0.999."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def step(self, name: str, parameter: Tensor, gradient: Tensor, step_size: float) -> None:
        """Changes a parameter in place."""
        t = self.steps[name] = self.steps.get(name, 0) + 1
        self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * gradient
        self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * gradient**2
        first, second = self.first[name] / (1 - 0.9**t), self.second[name] / (1 - 0.999**t)
        with torch.no_grad():
            parameter -= step_size * first / (second.sqrt() + EPSILON["adam"])


class Adagrad:
    """Adagrad (Duchi et al. 2011) with the step size of each parameter."""

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}

    def step(self, name: str, parameter: Tensor, gradient: Tensor, step_size: float) -> None:
        """Changes a parameter in place."""
        self.squares[name] = self.squares.get(name, 0.0) + gradient**2
        with torch.no_grad():
            parameter -= step_size * gradient / (self.squares[name].sqrt() + EPSILON["adagrad"])


def minibatches(agent: Any, count: int) -> list[list[int]]:
    """The rows of each minibatch: an epoch is a shuffle by the agent's generator, whose state is not changed."""
    if not hasattr(agent, "n_epochs"):
        return [list(range(count))]
    generator = torch.Generator()
    generator.set_state(agent.generator.get_state())
    found, size, unit = [], agent.batch_size or count, 1
    if type(agent).__name__ == "PathConsistency":  # whole groups; of the one rollout of a new replay
        torch.randint(1, (agent.n_epochs - 1,), generator=generator)
        unit = agent.num_generations
    for _ in range(agent.n_epochs):
        groups = torch.randperm(count // unit, generator=generator).tolist()
        order = [group * unit + i for group in groups for i in range(unit)]
        found += [order[first : first + size] for first in range(0, count, size)]
    return found


class Update(NamedTuple):
    """The metrics of an update, the weights after it, and the metrics of each of its minibatches."""

    metrics: Metrics
    weights: dict[str, Tensor]
    minibatches: list[Metrics]


def update(agent: Any, rollout: Rollout, q_values: Tensor | None = None) -> Update:
    """What `agent.train(rollout)` returns and leaves; the agent is not changed."""
    policy, rollout = copy.deepcopy(agent.policy), without_skipped(agent, rollout)
    optimizer = {"adam": Adam, "adagrad": Adagrad}[agent.optimizer]()
    advantages, returns = advantages_of(agent, rollout, q_values)
    advantages = whiten(advantages) if getattr(agent, "normalize_advantage", False) else advantages
    old_values = None if rollout.values is None else numbers(rollout.values, rollout)
    batch = Batch(rollout, advantages, returns, numbers(rollout.log_probs, rollout), old_values)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    rows_of_metrics, norms = [], []
    for rows in minibatches(agent, len(rollout)):
        if not any(batch.old_log_probs[i] for i in rows):
            continue
        loss, metrics = loss_of(agent, batch, rows, policy)
        rows_of_metrics.append(metrics)
        target = getattr(agent, "target_kl", None)
        if target is not None and metrics["policy/approxkl_avg"] > 1.5 * target:
            break
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        found = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
        if agent.num_updates < getattr(agent, "value_warmup", 0):
            found = {name: g for name, g in found.items() if not name.startswith("model.")}
        norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in found.values()))
        scale = min(1.0, agent.max_grad_norm / (norm + EPSILON["clip"]))
        for name, gradient in found.items():
            critics = getattr(agent, "vf_learning_rate", None)
            own = agent.learning_rate if critics is None or name.startswith("model.") else critics
            optimizer.step(name, parameters[name], scale * gradient, own)
        norms.append(norm)
    columns = {name: [row[name] for row in rows_of_metrics] for name in (rows_of_metrics or [{}])[0]}
    reduced = {name: mean(values) for name, values in columns.items()}
    reduced |= {name: max(values) for name, values in columns.items() if name == "val/ratio_error_max"}
    reduced |= {name: min(values) for name, values in columns.items() if name == "val/ess"}
    reduced |= {name: values[0] for name, values in columns.items() if name == "val/first_ratio_error_avg"}
    reduced |= {"grad_norm": mean(norms)} if norms else {}
    if hasattr(agent, "n_epochs"):
        reduced["num_minibatches"] = float(len(norms))
    if old_values is not None and type(agent).__name__ in ("ActorCritic", "PPO"):
        reduced |= critic_metrics(old_values, returns, type(agent).__name__ == "ActorCritic")
    return Update(reduced, {name: p.detach() for name, p in policy.named_parameters()}, rows_of_metrics)


def critic_metrics(values: Rows, returns: Rows, with_mean: bool) -> Metrics:
    """1 - Var[G - V] / Var[G] over all tokens, and the mean of V."""

    def variance(x: list[float]) -> float:
        return float(mean([(each - mean(x)) ** 2 for each in x]))

    v, g = [x for row in values for x in row], [x for row in returns for x in row]
    explained = 1 - variance([b - a for a, b in zip(v, g, strict=True)]) / variance(g)
    return {"val/explained_variance": explained} | ({"val/mean": mean(v)} if with_mean else {})


def rollout_metrics(rollout: Rollout, kl_estimator: str = "k1") -> Metrics:
    """The metrics of a rollout: means over its completions that are not skipped."""
    rows = [i for i in range(len(rollout)) if rollout.mask[i].any()]
    rollout = rollout[torch.tensor(rows)]
    new, ref = numbers(rollout.log_probs, rollout), numbers(rollout.ref_log_probs, rollout)
    returns = [sum(row) for row in numbers(rollout.rewards, rollout)]
    scores = [float(score) for score in rollout.scores]
    ratios = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(new, ref, strict=True)]
    k = {"k1": lambda x: x, "k2": lambda x: x * x / 2, "k3": lambda x: math.exp(-x) - 1 + x}[kl_estimator]
    found = {
        "objective/scores": mean(scores),
        "objective/entropy": mean([-sum(row) for row in new]),
        "objective/kl": mean([sum(k(x) for x in row) for row in ratios]),
        "objective/rlhf_reward": mean(returns),
        "objective/non_score_reward": mean([g - score for g, score in zip(returns, scores, strict=True)]),
        "completions/mean_length": mean([len(row) for row in new]),
        "completions/clipped_ratio": mean([0.0 if stopped else 1.0 for stopped in rollout.stopped.tolist()]),
    }
    if rollout.gold_scores is not None:
        found["objective/gold_scores"] = mean([float(score) for score in rollout.gold_scores])
    return found


def sample_variance(x: list[float]) -> float:
    """sum (x - mean)^2 / (n - 1)."""
    return float(sum((each - mean(x)) ** 2 for each in x) / (len(x) - 1))


def batch_statistics(rollout: Rollout, group: int) -> Metrics:
    """Standard errors over completions, groups with equal scores, noise of the score among identical completions."""
    rows = [i for i in range(len(rollout)) if rollout.mask[i].any()]
    scores = {i: float(rollout.scores[i]) for i in rows}
    columns = {
        "kl": [float((rollout.log_probs[i].double() - rollout.ref_log_probs[i].double()).sum()) for i in rows],
        "rlhf_reward": [float(rollout.rewards[i].double().sum()) for i in rows],
    }
    found = {f"objective/{name}_stderr": math.sqrt(sample_variance(x) / len(x)) for name, x in columns.items()}
    size = group if group > 1 else len(rollout)
    groups = [[scores[i] for i in range(first, first + size) if i in scores] for first in range(0, len(rollout), size)]
    comparable = [each for each in groups if len(each) > 1]
    found["groups/equal_scores_ratio"] = mean([len(set(each)) == 1 for each in comparable])
    same: dict[Any, list[float]] = {}
    for i, score in scores.items():
        same.setdefault((int(rollout.prompt[i]), rollout.completions[i]), []).append(score)
    repeats = sum(len(each) - 1 for each in same.values())
    if repeats >= 8:
        within = sum((score - mean(each)) ** 2 for each in same.values() for score in each)
        found["objective/score_noise"] = within / repeats / sample_variance(list(scores.values()))
    return found
