"""`check_reward`: samples completions from the reference once, and reports what can be said of the reward on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from textenv.arguments import check_count
from textenv.mdp import TextMDP
from textenv.reward_check.agreement import check_agreement
from textenv.reward_check.calls import Array, WatchedReward
from textenv.reward_check.contract import check_contract, check_failures
from textenv.reward_check.correlation import spread_within
from textenv.reward_check.findings import Finding, RewardReport, Table
from textenv.reward_check.holes import ContentColumns, Hole, check_content, completions_to_read
from textenv.reward_check.lengths import check_lengths
from textenv.reward_check.parts import check_parts
from textenv.reward_check.probes import base_of, check_edits
from textenv.reward_check.samples import Samples, draw_samples
from textenv.reward_check.signal import check_missing, check_signal
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

    Each reward function scores each of the K completions four to six times, and at most three thousand that are alone,
    edited or cut: about a hundred calls, and two for each text of its own source. Calls that fail are tried again, and
    each of their completions alone: as `on_reward_error` of the task has it, what is left without a score is an error
    or is skipped. What a function prints is counted and not shown.

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
    reward = WatchedReward(mdp.reward)
    report = _check(mdp, samples, reward, other_process, seed)
    failures = [finding for function in reward.functions for finding in check_failures(function, mdp.reward)]
    return RewardReport([*failures, *report.findings], report.tables, report.unseen)  # counts are of all calls


def _check(mdp: TextMDP, samples: Samples, reward: WatchedReward, other_process: bool, seed: int) -> RewardReport:
    findings, scores, noise = _contracts(reward, samples, other_process)
    if scores is None:
        return RewardReport(findings)
    findings.append(check_missing(samples, scores))
    enough = (~np.isnan(samples.by_prompt(scores))).sum(axis=1) >= 2  # to compare completions of a prompt
    if not enough.any():
        return RewardReport(findings)
    samples, scores = samples.of_prompts(enough), samples.by_prompt(scores)[enough].ravel()
    signal, tables = check_signal(samples, scores, noise)
    findings += signal
    constant = spread_within(samples.by_prompt(scores)) == 0
    found, more, unseen = _holes(reward, samples, scores, constant, seed)
    findings, tables = findings + found, tables + more
    if mdp.gold_reward is not None and not constant:
        found, more = _agreement(mdp, samples, scores)
        findings, tables = findings + found, tables + more
    return RewardReport(findings, tables, unseen)


def _contracts(
    reward: WatchedReward, samples: Samples, other_process: bool
) -> tuple[list[Finding], Array | None, float]:
    """Checks each function; the findings, the weighted sum of the scores, [K], and the standard deviation of its noise.

    There is no sum where a function has no scores.
    """
    findings, parts, variance = list[Finding](), list[Array](), 0.0
    for function, weight in zip(reward.functions, reward.weights, strict=True):
        found, scores, noise = check_contract(function, samples, other_process=other_process)
        findings += found
        variance += (weight * noise) ** 2
        if scores is not None and not np.isnan(scores).all():
            parts.append(scores)
    complete = len(parts) == len(reward.functions)
    return findings, reward.sum(parts, samples.finished) if complete else None, float(np.sqrt(variance))


def _holes(
    reward: WatchedReward, samples: Samples, scores: Array, constant: bool, seed: int
) -> tuple[list[Finding], list[Table], list[Finding]]:
    """Features, words and edits: those that show something, the tables, and those that show nothing.

    Where the scores of each prompt are constant, edits alone may show something.
    """
    holes, tables, strongest = list[Hole](), list[Table](), None
    if not constant:
        content = ContentColumns.of(samples, scores)
        holes, tables = check_content(content)
        strongest = content.strongest
    if (base := base_of(reward, samples, scores)) is not None:
        for found, more in (check_edits(base, strongest, seed), check_lengths(base, seed), check_parts(base)):
            holes, tables = holes + found, tables + more
    holes.sort(key=lambda hole: -hole.rank)
    findings = [hole.finding for hole in holes if hole.is_shown]
    unseen = [hole.finding for hole in holes if not hole.is_shown]
    if base is None:
        findings.append(Finding("holes", "edits", "look here", "not tried: no completion with a score has a text"))
    if not findings:
        count = sum(not each.text.startswith("not tried") for each in unseen)
        text = f"none of the {count} features and edits that were tried raises the score by itself"
        findings = [Finding("holes", "holes", "holds", text)]
    return findings, [*tables, completions_to_read(samples, scores)], unseen


def _agreement(mdp: TextMDP, samples: Samples, scores: Array) -> tuple[list[Finding], list[Table]]:
    assert mdp.gold_reward is not None
    reward = WatchedReward(mdp.gold_reward)
    try:
        gold = reward.score(samples.finished)
    except RewardError as error:
        return [Finding("agreement", "second reward", "broken", str(error))], []
    failures = [each for function in reward.functions for each in check_failures(function, mdp.gold_reward)]
    failures = [replace(each, section="agreement") for each in failures]
    enough = (~np.isnan(samples.by_prompt(scores + gold))).sum(axis=1) >= 2
    if not enough.any():
        text = "no prompt has two completions with both scores"
        return [*failures, Finding("agreement", "second reward", "look here", text)], []
    scores, gold = (samples.by_prompt(values)[enough].ravel() for values in (scores, gold))
    found, tables = check_agreement(samples.of_prompts(enough), scores, gold)
    return [*failures, *found], tables
