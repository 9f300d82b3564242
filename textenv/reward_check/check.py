"""`check_reward`: samples completions from the reference once, and reports what can be said of the reward on them."""

from __future__ import annotations

import numpy as np

from textenv.arguments import check_count
from textenv.mdp import TextMDP
from textenv.reward_check.agreement import check_agreement
from textenv.reward_check.calls import Array, Function
from textenv.reward_check.contract import check_contract
from textenv.reward_check.findings import Finding, RewardReport, Table
from textenv.reward_check.holes import Hole, check_features, check_words, completions_to_read
from textenv.reward_check.probes import check_probes
from textenv.reward_check.samples import Samples, draw_samples
from textenv.reward_check.signal import check_signal
from textenv.rewards import RewardError
from textenv.unwrap import EnvLike, get_mdp


def check_reward(
    env: EnvLike | TextMDP,
    *,
    num_completions: int = 64,
    max_prompts: int = 16,
    other_process: bool = True,
    seed: int = 0,
) -> RewardReport:
    """Checks the reward of a task before a policy is trained on it.

    Completions are sampled from the reference once. Each finding is "holds", "look here" or "broken", with the smallest
    example that shows it.

    Args:
        env: any environment of textenv, or its MDP. Its gold reward, if it has one, is the second reward that the
            reward is compared with.
        num_completions: of each prompt, at least 8.
        max_prompts: of more prompts so many are taken, evenly spread.
        other_process: also score in another process, which takes seconds.
        seed: of the completions and of shuffles.

    Raises:
        ValueError: a number is out of range.

    >>> import gymnasium as gym, textenv
    >>> report = check_reward(gym.make("textenv/RewardHacking-v0"), other_process=False)
    >>> report["repeats"].verdict, report["feature: emoticons"].verdict
    ('holds', 'look here')
    """
    mdp = get_mdp(env)
    num_completions = check_count("num_completions", num_completions, 8)
    samples = draw_samples(mdp, num_completions, check_count("max_prompts", max_prompts), seed)
    findings, parts, noises = list[Finding](), list[Array | None](), list[float]()
    for function in mdp.reward.functions:
        found, scores, noise = check_contract(Function(function), samples, other_process=other_process)
        findings += found
        parts.append(scores)
        noises.append(noise)
    scores = _weighted(mdp, parts)
    if scores is None:
        return RewardReport(findings)
    noise = float(np.sqrt(sum((w * n) ** 2 for w, n in zip(mdp.reward.weights, noises, strict=True))))
    signal, tables = check_signal(samples, scores, noise)
    findings += signal
    if any(each.verdict == "broken" for each in signal):
        return RewardReport(findings, tables)
    holes, more = _holes(samples, scores, seed)
    findings, tables = findings + holes, tables + more
    if mdp.gold_reward is not None:
        found, more = _agreement(mdp, samples, scores)
        findings, tables = findings + found, tables + more
    return RewardReport(findings, tables)


def _weighted(mdp: TextMDP, parts: list[Array | None]) -> Array | None:
    """The weighted sum of the functions' scores, nan where all returned None; None where one has no scores."""
    known = [part for part in parts if part is not None and not np.isnan(part).all()]
    if len(known) < len(parts):
        return None
    total = np.stack([weight * part for weight, part in zip(mdp.reward.weights, known, strict=True)])
    return np.where(np.isnan(total).all(axis=0), np.nan, np.nansum(total, axis=0))


def _holes(samples: Samples, scores: Array, seed: int) -> tuple[list[Finding], list[Table]]:
    """Features, words and edits; what a policy would find first is first."""
    features, table = check_features(samples, scores)
    words, of_words, strongest = check_words(samples, scores)
    edits, of_edits = check_probes(samples, scores, strongest, seed)
    found: list[Hole] = sorted([*features, *words, *edits], key=lambda hole: -hole.rank)
    findings = [hole.finding for hole in found]
    if not findings:
        findings = [Finding("holes", "holes", "holds", "no feature, word or edit raises the score by itself")]
    return findings, [table, of_words, of_edits, completions_to_read(samples, scores)]


def _agreement(mdp: TextMDP, samples: Samples, scores: Array) -> tuple[list[Finding], list[Table]]:
    assert mdp.gold_reward is not None
    try:
        gold = np.asarray(mdp.gold_reward.score(samples.finished, may_skip=True), dtype=np.float64)
    except RewardError as error:
        return [Finding("agreement", "second reward", "broken", str(error))], []
    return check_agreement(samples, scores, gold)
