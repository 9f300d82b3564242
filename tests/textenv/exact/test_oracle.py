"""The oracle against brute force: recursion over `env.reset` and `env.step`, and autograd through a J written here."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import Counting
from tests.helpers.tasks import (
    SHAPING,
    RandomPolicy,
    golden,
    hashed_potential,
    letter_values,
    log_softmax,
    make,
    random_reference,
    tasks,
    words,
    zero,
)
from textenv import TextMDP, exact
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty, potential_based
from textenv.tree import BATCH, enumerate_tree

Text = tuple[int, tuple[int, ...]]  # index of the prompt, tokens of the answer


def brute_force(env: Any, prompt: int, answer: tuple[int, ...] = ()) -> dict[Text, list[tuple[float, float]]]:
    """Every finished text below a state, with `(reward, ref_log_prob)` of each step, by single steps alone."""
    texts: dict[Text, list[tuple[float, float]]] = {}
    _, info = env.reset(options={"prompt": prompt, "completion": list(answer)})
    for token in np.flatnonzero(info["action_mask"]).tolist():
        env.reset(options={"prompt": prompt, "completion": list(answer)})
        _, reward, terminated, _, said = env.step(token)
        here = (reward, said["ref_log_prob"])
        below = {(prompt, (*answer, token)): []} if terminated else brute_force(env, prompt, (*answer, token))
        texts |= {text: [here, *steps] for text, steps in below.items()}
    return texts


def all_texts(env: Any) -> dict[Text, list[tuple[float, float]]]:
    """`brute_force` from every prompt."""
    return {k: v for i in range(len(env.unwrapped.prompts)) for k, v in brute_force(env, i).items()}


def optimum(texts: dict[Text, list[tuple[float, float]]], beta: float) -> tuple[float, dict[Text, float]]:
    """J* = mean over prompts of beta log sum pi_ref exp(r / beta), and log pi*(y|x), from what an unbound env pays."""
    log_weights = {}
    for text, steps in texts.items():
        ref = sum(log_prob for _, log_prob in steps)
        score = sum(reward for reward, _ in steps) - beta * ref
        log_weights[text] = ref + score / beta
    prompts = sorted({prompt for prompt, _ in texts})
    log_z = [np.logaddexp.reduce([w for (p, _), w in log_weights.items() if p == prompt]) for prompt in prompts]
    return beta * float(np.mean(log_z)), {text: w - log_z[text[0]] for text, w in log_weights.items()}


def named(tree: exact.Tree, values: Any) -> dict[Text, float]:
    """Values in the order of `tree.leaves()`, by text."""
    state, action = tree.leaves()
    return {
        (int(tree.prompt[s]), (*(int(t) for t in tree.tokens[s] if t >= 0), int(a))): float(value)
        for s, a, value in zip(state, action, values, strict=True)
    }


toys = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(3, 5),
        "max_new_tokens": st.integers(1, 3),
        "num_prompts": st.integers(1, 5),
        "task_seed": st.integers(0, 999),
        "kl_coef": st.sampled_from([0.1, 0.5, 2.0]),
    }
)


def check_against_brute_force(env: Any) -> None:
    """solve(env) is the optimum that brute force finds."""
    best, log_probs = optimum(all_texts(env), env.unwrapped.mdp.kl_coef)
    solution = exact.solve(env)
    assert solution.objective == pytest.approx(best, abs=1e-9)
    found = named(solution.tree, solution.log_probs)
    assert found.keys() == log_probs.keys() and len(found) == solution.tree.num_completions
    assert found == pytest.approx(log_probs, abs=1e-7)


@settings(max_examples=12, deadline=None)
@given(toy=toys)
def test_solve_equals_brute_force_on_toys(toy: dict[str, Any]) -> None:
    """J* and pi*(y|x) of random toys equal those of the recursion over env.step."""
    check_against_brute_force(gym.make("textenv/Toy-v0", **toy))


@settings(max_examples=12, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3).filter(lambda a: a["kl_coef"] > 0))
def test_solve_equals_brute_force_with_masks_and_shaping(arguments: dict[str, Any]) -> None:
    """The same where the reference forbids tokens, and where shaping is paid on the way."""
    check_against_brute_force(make(arguments))


def test_solve_equals_the_sum_over_all_texts_of_taj_mahal() -> None:
    """On the lecture's example: Z(x) is the sum over the task's own list of answers of pi_ref exp(r / beta)."""
    from textenv.tasks.taj_mahal import PLACES, QUESTIONS, reference_completions, truth

    objectives = []
    for landmark in PLACES:
        answers = reference_completions(landmark)
        scores = np.array(truth([""] * len(answers), list(answers), [], [landmark] * len(answers)))
        weights = np.array(list(answers.values()))
        assert weights.sum() == pytest.approx(1.0)
        objectives.append([0.1 * np.log((weights * np.exp(scores / 0.1)).sum())] * len(QUESTIONS))
    solution = exact.solve(gym.make("textenv/TajMahal-v0", kl_coef=0.1))
    assert solution.objective == pytest.approx(np.mean(objectives), abs=1e-9)
    assert solution.values[solution.tree.levels[0]] == pytest.approx(np.ravel(objectives), abs=1e-9)


def test_brute_force_notices_another_reward() -> None:
    """Negative control: the comparison fails for another beta, another toy, and a reward that is off for one text."""
    toy = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2}
    env = gym.make("textenv/Toy-v0", **toy)
    texts = all_texts(env)
    right, _ = optimum(texts, 0.1)
    assert abs(optimum(texts, 0.11)[0] - right) > 1e-3
    assert abs(exact.solve(gym.make("textenv/Toy-v0", **toy, task_seed=1)).objective - right) > 1e-3
    one = next(iter(texts))
    texts[one][-1] = (texts[one][-1][0] + 1e-3, texts[one][-1][1])
    assert abs(optimum(texts, 0.1)[0] - right) > 1e-9


# -- evaluate ----------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_evaluate_equals_the_mean_over_all_texts(arguments: dict[str, Any], seed: int) -> None:
    """J, E[score], KL: the sums over all texts of pi(y|x) times what an env with the policy bound pays for y."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    env, known = make(arguments, policy=policy), exact.evaluate(TextMDP(**arguments), policy)
    log_probs = named(known.tree, known.tree.completion_log_probs(known.log_probs))
    texts = all_texts(env)
    assert texts.keys() == log_probs.keys()
    prompts, beta = len(env.unwrapped.prompts), arguments["kl_coef"]
    objective = kl = 0.0
    for text, steps in texts.items():
        weight = np.exp(log_probs[text]) / prompts
        objective += weight * sum(reward for reward, _ in steps)
        kl += weight * (log_probs[text] - sum(ref for _, ref in steps))
    assert known.objective == pytest.approx(objective, abs=1e-9)
    assert known.kl == pytest.approx(kl, abs=1e-9)
    shaping = float((known.occupancy[:, None] * np.exp(known.log_probs) * known.tree.shaping).sum())
    assert known.objective == pytest.approx(known.score + shaping - beta * known.kl, abs=1e-9)
    other = exact.evaluate(known.tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1))  # negative control
    assert known.tree.num_completions <= prompts or other.objective != pytest.approx(objective, abs=1e-9)


def gold_of_all_texts(env: Any) -> dict[Text, float]:
    """info["gold_score"] of every finished text, from single steps."""
    shown = {}
    for prompt, answer in all_texts(env):
        env.reset(options={"prompt": prompt, "completion": list(answer[:-1])})
        shown[prompt, answer] = env.step(answer[-1])[-1]["gold_score"]
    return shown


@settings(max_examples=12, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_the_gold_score_is_a_mean_over_all_texts(arguments: dict[str, Any], seed: int) -> None:
    """tree.gold_scores is what single steps show; E[gold score] its sum over all texts; nothing else moves."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    env = make(arguments | {"gold_reward": golden})
    tree = enumerate_tree(env)
    known, plain = exact.evaluate(tree, policy), exact.evaluate(TextMDP(**arguments), policy)
    shown = gold_of_all_texts(env)
    assert tree.gold_scores is not None and known.gold_score is not None
    assert named(tree, tree.gold_scores[tree.leaves()]) == pytest.approx(shown, abs=1e-12)
    assert not tree.gold_scores[tree.child != -1].any()
    probs = named(tree, np.exp(tree.completion_log_probs(known.log_probs)))
    expected = sum(probs[text] * gold for text, gold in shown.items()) / len(env.unwrapped.prompts)
    assert known.gold_score == pytest.approx(expected, abs=1e-9)
    assert plain.gold_score is None and plain.tree.gold_scores is None
    assert (known.objective, known.score, known.kl) == (plain.objective, plain.score, plain.kl)
    # negative control: another policy has another one
    other = exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1, scale=2.0)).gold_score
    assert tree.num_completions <= len(env.unwrapped.prompts) or other != pytest.approx(expected, abs=1e-9)


def test_the_gold_score_of_what_is_paid_is_the_score() -> None:
    """Where gold reward and reward are one function the two scores are one number; the gold reward moves no optimum."""
    own, other = (enumerate_tree(TextMDP(**words(gold_reward=gold))) for gold in (letter_values, golden))
    known = exact.evaluate(own, RandomPolicy(4))
    assert known.gold_score == known.score != exact.evaluate(other, RandomPolicy(4)).gold_score
    assert exact.solve(own).objective == exact.solve(other).objective


# -- where the gap comes from ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_the_gap_is_the_sum_of_what_each_state_costs(arguments: dict[str, Any], seed: int) -> None:
    """Costs are >= 0 and sum to J* - J; each is d(s) beta KL(pi(.|s) || pi*(.|s)), written out, where beta > 0."""
    tree = enumerate_tree(TextMDP(**arguments))
    solution, known = exact.solve(tree), exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed))
    with np.errstate(all="raise", under="ignore"):  # masked actions are left alone, not computed with
        costs = exact.suboptimality_by_state(solution, known)
    assert costs.shape == tree.prompt.shape and (costs >= 0).all()
    assert costs.sum() == pytest.approx(solution.objective - known.objective, abs=1e-9)
    if (beta := arguments["kl_coef"]) > 0:
        for state, (ours, best) in enumerate(zip(known.log_probs, solution.action_log_probs, strict=True)):
            kl = sum(np.exp(p) * (p - q) for p, q in zip(ours, best, strict=True) if p > -np.inf)
            assert costs[state] == pytest.approx(known.occupancy[state] * beta * kl, abs=1e-9)
    # negative control: what another policy costs is another sum
    other = exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1, scale=2.0))
    wrong = exact.suboptimality_by_state(solution, other).sum()
    assert beta == 0 or (np.sum(tree.child != -2, axis=1) < 2).all() or wrong != pytest.approx(costs.sum(), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999))
def test_the_best_policy_costs_nothing_and_one_wrong_state_costs_there(arguments: dict[str, Any], seed: int) -> None:
    """At pi* every cost is 0; a policy that is pi* but for one state costs in that state and in no other."""
    tree = enumerate_tree(TextMDP(**arguments))
    solution = exact.solve(tree)
    best = solution.action_log_probs
    nothing = exact.suboptimality_by_state(solution, exact.evaluate_log_probs(tree, best))
    assert (nothing >= 0).all() and nothing == pytest.approx(0.0, abs=1e-12)
    wrong = np.random.default_rng(seed).integers(len(tree.prompt))
    log_probs = best.copy()
    log_probs[wrong] = exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed)).log_probs[wrong]
    known = exact.evaluate_log_probs(tree, log_probs)
    costs = exact.suboptimality_by_state(solution, known)
    assert np.delete(costs, wrong) == pytest.approx(0.0, abs=1e-12)
    assert costs[wrong] == pytest.approx(solution.objective - known.objective, abs=1e-9)
    choices = np.flatnonzero(tree.child[wrong] != -2)
    if known.occupancy[wrong] > 1e-6 and len(choices) > 1 and arguments["kl_coef"] > 0:
        assert costs[wrong] > 0  # negative control: it does cost


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), beta=st.sampled_from([0.0, 0.1, 0.6, 3.0]))
def test_solving_for_another_beta_is_solving_another_task(arguments: dict[str, Any], beta: float) -> None:
    """solve(tree, kl_coef=b) is solve of an environment with that kl_coef, and leaves the task's own alone."""
    tree, task = enumerate_tree(TextMDP(**arguments)), make(arguments | {"kl_coef": beta})
    found, right = exact.solve(tree, kl_coef=beta), exact.solve(task)
    assert found.kl_coef == right.kl_coef == beta and tree.mdp.kl_coef == arguments["kl_coef"]
    assert found.tree is tree
    for name in ("objective", "reference_objective", "log_probs", "values", "action_log_probs"):
        assert np.array_equal(getattr(found, name), getattr(right, name)), name
    own = exact.solve(tree)
    assert own.kl_coef == arguments["kl_coef"] and own.objective == exact.solve(make(arguments)).objective
    known = exact.evaluate_log_probs(tree, found.action_log_probs)
    assert found.objective == pytest.approx(known.objective + (own.kl_coef - beta) * known.kl, abs=1e-9)


def test_another_beta_is_told_apart() -> None:
    """Negative control: solved for another beta the optimum is another, and its gap is that of J with this beta."""
    tree = enumerate_tree(gym.make("textenv/Toy-v0", kl_coef=0.1))
    near, far = exact.solve(tree), exact.solve(tree, kl_coef=0.5)
    assert near.objective > far.objective + 0.1 and abs(near.log_probs - far.log_probs).max() > 0.1
    known = exact.evaluate(tree, RandomPolicy(6))
    expected = far.objective - (known.score - 0.5 * known.kl)
    assert exact.suboptimality_by_state(far, known).sum() == pytest.approx(expected, abs=1e-9)
    assert exact.suboptimality_by_state(near, known).sum() != pytest.approx(expected, abs=1e-3)
    other = exact.solve(gym.make("textenv/Toy-v0", kl_coef=0.1, task_seed=1))
    with pytest.raises(ValueError, match="of the same environment"):
        exact.suboptimality_by_state(other, known)
    for beta in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"kl_coef .* got {beta}"):
            exact.solve(tree, kl_coef=beta)


@settings(max_examples=20, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_paths_lead_to_their_texts(arguments: dict[str, Any], seed: int) -> None:
    """Each path begins at a prompt, follows `child` to its text's end, says its tokens and has its probability."""
    task = TextMDP(**arguments)
    tree = enumerate_tree(task)
    states, actions = tree.paths()
    assert states.shape == actions.shape == (tree.num_completions, len(tree.levels))
    log_probs = exact.evaluate(tree, RandomPolicy(task.vocab_size, seed)).log_probs
    total, texts = tree.completion_log_probs(log_probs), list(named(tree, np.zeros(tree.num_completions)))
    for row, (prompt, answer) in enumerate(texts):
        length = len(answer)
        assert actions[row].tolist() == [*answer] + [-1] * (len(tree.levels) - length)
        assert (states[row, length:] == -1).all()
        asked = task.prompts.texts[prompt]
        walked = [tree.state_index(asked, list(answer[:t])) for t in range(length)]
        assert states[row, :length].tolist() == walked
        assert tree.child[walked, list(answer)].tolist() == [*walked[1:], -1]
        assert (states[row, 0], tree.prompt[walked[-1]]) == (prompt, prompt)
        assert np.exp(log_probs[walked, list(answer)]).prod() == pytest.approx(np.exp(total[row]), rel=1e-9)
    finished = make(arguments)
    for row in np.random.default_rng(seed).integers(tree.num_completions, size=3):  # the environment ends there too
        answer = [int(token) for token in actions[row] if token >= 0]
        finished.reset(options={"prompt": texts[row][0], "completion": answer[:-1]})
        _, _, terminated, _, info = finished.step(answer[-1])
        assert terminated and info["completion"] == task.decode(answer)


def test_paths_of_other_texts_are_told_apart() -> None:
    """Negative control: no two texts share a path, and in another order probabilities do not fit."""
    tree = enumerate_tree(gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3))
    states, actions = tree.paths()
    assert len(np.unique(np.hstack([states[:, :1], actions]), axis=0)) == tree.num_completions
    log_probs = exact.evaluate(tree, RandomPolicy(3)).log_probs
    along = np.where(states >= 0, log_probs[states, actions], 0.0).sum(axis=1)
    assert along == pytest.approx(tree.completion_log_probs(log_probs), abs=1e-12)
    assert np.abs(along[::-1] - tree.completion_log_probs(log_probs)).max() > 0.1


@settings(max_examples=15, deadline=None)
@given(toy=toys, seed=st.integers(0, 99))
def test_the_gap_to_the_optimum_is_a_kl(toy: dict[str, Any], seed: int) -> None:
    """J* - J(pi) = beta E_x KL(pi || pi*), within 1e-6; with another beta it is not."""
    env = gym.make("textenv/Toy-v0", **toy)
    solution, known = exact.solve(env), exact.evaluate(env, RandomPolicy(toy["vocab_size"], seed))
    log_pi = known.tree.completion_log_probs(known.log_probs)
    kl = (np.exp(log_pi) * (log_pi - solution.log_probs)).sum() / toy["num_prompts"]
    assert kl > 1e-3
    assert solution.objective - known.objective == pytest.approx(toy["kl_coef"] * kl, abs=1e-6)
    assert solution.objective - known.objective != pytest.approx(1.1 * toy["kl_coef"] * kl, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_values_are_consistent(arguments: dict[str, Any], seed: int) -> None:
    """V = sum pi Q, A = Q - V, sum pi A = 0, Q = r + V(s'), occupancy flow from parent to child, J = mean V(s_0)."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed)
    known = exact.evaluate(TextMDP(**arguments), policy)
    tree, probs = known.tree, np.exp(known.log_probs)
    taken = np.where(probs > 0, probs, 0.0)
    allowed = tree.child != -2
    q_values = np.where(allowed, known.q_values, 0.0)
    assert np.isneginf(known.q_values[~allowed]).all() and not probs[~allowed].any()
    assert (taken * q_values).sum(axis=1) == pytest.approx(known.values, abs=1e-9)
    assert known.advantages[allowed] == pytest.approx((known.q_values - known.values[:, None])[allowed])
    assert (taken * np.where(allowed, known.advantages, 0.0)).sum(axis=1) == pytest.approx(0.0, abs=1e-9)
    parent, action = np.nonzero(tree.child >= 0)
    assert known.occupancy[tree.child[parent, action]] == pytest.approx(known.occupancy[parent] * probs[parent, action])
    ends = np.nonzero(tree.child == -1)
    assert (known.occupancy[ends[0]] * probs[ends]).sum() == pytest.approx(1.0)
    assert known.objective == pytest.approx(known.values[tree.levels[0]].mean())
    # Q(s, a) is what stepping pays, plus V of where it leads
    env, rng = make(arguments, policy=policy), np.random.default_rng(seed)
    for state in rng.integers(len(tree.prompt), size=5):
        answer = [int(t) for t in tree.tokens[state] if t >= 0]
        for token in np.flatnonzero(allowed[state]):
            env.reset(options={"prompt": int(tree.prompt[state]), "completion": answer})
            _, reward, terminated, _, _ = env.step(int(token))
            after = 0.0 if terminated else known.values[tree.child[state, token]]
            assert known.q_values[state, token] == pytest.approx(reward + after, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks())
def test_the_best_policy_and_the_reference_score_what_is_said_of_them(arguments: dict[str, Any]) -> None:
    """J(pi*) = J*, J(pi_ref) = reference_objective <= J*, with beta = 0 too; no random policy is better than pi*."""
    mdp = TextMDP(**arguments)
    solution = exact.solve(mdp)
    tree = solution.tree

    def best(input_ids: Any, attention_mask: Any) -> Any:
        known = {row.tobytes(): i for i, row in enumerate(np.hstack(tree.observations(slice(None))))}
        rows = [known[row.tobytes()] for row in np.hstack([input_ids, attention_mask])]
        return np.maximum(solution.action_log_probs[rows], -1e9)

    assert exact.evaluate(tree, best).objective == pytest.approx(solution.objective, abs=1e-4)
    assert exact.evaluate(tree, best).objective == pytest.approx(solution.objective, abs=1e-9) or mdp.kl_coef == 0
    reference = exact.evaluate(tree, mdp.reference.log_probs)
    assert reference.objective == pytest.approx(solution.reference_objective, abs=1e-9)
    assert reference.kl == pytest.approx(0.0, abs=1e-9)
    for seed in range(3):
        other = exact.evaluate(tree, RandomPolicy(mdp.vocab_size, seed, scale=3.0)).objective
        assert other <= solution.objective + 1e-9
    assert np.exp(tree.completion_log_probs(solution.action_log_probs)).sum() == pytest.approx(len(mdp.prompts.texts))


def test_without_a_kl_the_best_answer_takes_all() -> None:
    """beta = 0: J* is the mean over prompts of the best score, and pi* puts all its mass there."""
    env = gym.make("textenv/Toy-v0", kl_coef=0.0, vocab_size=4, max_new_tokens=3)
    texts = all_texts(env)
    solution = exact.solve(env)
    best = [max((sum(r for r, _ in steps), text) for text, steps in texts.items() if text[0] == p) for p in (0, 1)]
    assert solution.objective == pytest.approx(np.mean([score for score, _ in best]))
    probs = named(solution.tree, np.exp(solution.log_probs))
    assert {text for text, prob in probs.items() if prob > 0.5} == {text for _, text in best}


def test_potential_based_shaping_leaves_the_best_policy_where_it_is() -> None:
    """With gamma = 1 a potential shifts J* by -E Phi(s_0) and pi* not at all; a length penalty moves pi*."""
    arguments = {"vocab_size": 4, "max_new_tokens": 3, "num_prompts": 3, "task_seed": 5}
    plain = exact.solve(gym.make("textenv/Toy-v0", **arguments))
    shaped = exact.solve(gym.make("textenv/Toy-v0", **arguments, shaping=[potential_based(hashed_potential)]))
    moved = exact.solve(gym.make("textenv/Toy-v0", **arguments, shaping=[length_penalty(0.1)]))
    prompts = plain.tree.mdp.prompts
    first = hashed_potential(prompts.input_ids, prompts.attention_mask).mean()
    assert shaped.objective == pytest.approx(plain.objective - first)
    assert shaped.log_probs == pytest.approx(plain.log_probs, abs=1e-8)
    assert abs(shaped.values - plain.values).max() > 0.1  # the values do move, by -Phi(s)
    assert abs(moved.log_probs - plain.log_probs).max() > 0.05


# -- size --------------------------------------------------------------------------------------------------------------


def refused_cheaply(task: TextMDP, match: str, **arguments: Any) -> None:
    """solve(task) is refused with a message, before 50 MB are spent."""
    tracemalloc.start()
    try:
        with pytest.raises(exact.TreeTooLarge, match=match):
            exact.solve(task, **arguments)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_tree_too_large_is_refused_before_memory_is_spent() -> None:
    """A dense tree is refused with its size and the limit; its size is right where it can be counted."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(49)])
    large = TextMDP(tokenizer, ["w1"], zero, max_new_tokens=20)
    refused_cheaply(large, r"about 10\^33 texts.*1 prompts.*50 tokens.*up to 20.*limit is 2,000,000.*lower")
    small = TextMDP(**words(max_new_tokens=4))
    texts = exact.solve(small).tree.num_completions
    refused_cheaply(small, rf"has {texts} texts.*limit is {texts - 1}", max_completions=texts - 1)
    assert exact.solve(small, max_completions=texts).tree.num_completions == texts


def test_a_toy_whose_tables_do_not_fit_is_refused() -> None:
    """Before they are drawn: the error names their size and the limit."""
    with pytest.raises(ValueError, match=r"300,600,300 here, the limit is 30,000,000"):
        gym.make("textenv/Toy-v0", vocab_size=1001, max_new_tokens=1, num_prompts=300)


def test_the_size_of_any_tree_can_be_said() -> None:
    """Also a number of texts with thousands of digits is written in a message, not in full."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(49)])
    refused_cheaply(TextMDP(tokenizer, ["w1"], zero, max_new_tokens=4000), r"about 10\^6\d\d\d texts")


def test_a_sparse_tree_too_large_is_refused_where_it_grows_too_large() -> None:
    """A sparse tree's size is not known beforehand: it is refused at the token where it passes the limit."""
    probs = np.r_[np.full(10, 0.1), np.zeros(10)]
    with np.errstate(divide="ignore"):
        reference = TableReference(np.log(probs))
    arguments = {"reference": reference, "max_new_tokens": 30}
    mdp = TextMDP(WordTokenizer([f"w{i}" for i in range(19)]), ["w1"], zero, **arguments)
    refused_cheaply(mdp, r"more than .* texts \(already at token 4 of 30\), the limit is 2,000", max_completions=2_000)


@pytest.mark.parametrize(("batch", "horizon"), [(1, 3), (7, 4), (BATCH, 6)])  # 1: the control, a call a node
def test_a_tree_is_enumerated_in_batches(batch: int, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference and rewards are asked once a level and BATCH, not once a node; of every state and text once."""
    monkeypatch.setattr("textenv.tree.BATCH", batch)
    reference, reward, gold = Counting(random_reference(6, 0, sparse=False)), Counting(zero), Counting(golden)
    task = TextMDP(**words(6, reference=reference, reward=reward, gold_reward=gold, max_new_tokens=horizon))
    reference.calls.clear()
    tree = enumerate_tree(task)
    sizes = [level.stop - level.start for level in tree.levels]
    assert reference.calls == [min(batch, size - start) for size in sizes for start in range(0, size, batch)]
    assert len(reference.calls) <= len(sizes) + len(tree.prompt) / batch
    assert sum(reward.calls) == tree.num_completions and max(reward.calls) <= batch
    assert len(reward.calls) <= len(sizes) + 6 * len(tree.prompt) / batch and gold.calls == reward.calls
    assert (len(reference.calls) == len(tree.prompt)) == (len(reward.calls) == tree.num_completions) == (batch == 1)
    asked = len(reference.calls) + len(reward.calls)
    exact.solve(tree)
    exact.evaluate(tree, RandomPolicy(6))
    assert len(reference.calls) + len(reward.calls) == asked  # a tree is enumerated once


MILLION = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import gymnasium as gym, numpy as np, textenv
from textenv import exact

env = gym.make("textenv/Toy-v0", vocab_size=10, max_new_tokens=6, num_prompts=2)
solution = exact.solve(env)
tree, beta, process = solution.tree, 0.1, env.unwrapped.process
assert solution.kl_coef == beta and tree.num_completions > 10**6, tree.num_completions
assert tree.num_completions == 2 * (sum(9**t for t in range(5)) + 9**5 * 10)

# over all texts: each as its tokens, its score from the reward's own weights, its log pi_ref from the reference's rows
weights = process.scorer.functions[0].weights
states, actions = tree.paths()
written = actions >= 0
prompt = tree.prompt[states[:, 0]]
last = np.hstack([np.zeros((len(actions), 1), dtype=int), actions[:, :-1]])
scores = np.where(written, weights[prompt[:, None], np.arange(6), last, actions], 0.0).sum(axis=1)
log_ref = np.where(written, tree.ref_log_probs[states, actions], 0.0).sum(axis=1)


def optimum(scores, beta):
    sums = log_ref + scores / beta
    return beta * np.mean([np.logaddexp.reduce(sums[prompt == x]) for x in (0, 1)])


assert abs(sum(np.exp(log_ref)) - 2) < 1e-9
assert abs(optimum(scores, beta) - solution.objective) < 1e-9, (optimum(scores, beta), solution.objective)
assert abs(np.exp(solution.log_probs).sum() - 2) < 1e-9
# negative controls: another beta, and each text with its neighbour's score
assert abs(optimum(scores, 1.01 * beta) - solution.objective) > 1e-4
assert abs(optimum(np.roll(scores, 1), beta) - solution.objective) > 1e-4

# without any text: a toy is a chain, Z(x) a product of matrices pi_ref(w|t, last) exp(weight / beta)
log_z = []
for x in (0, 1):
    ids = [process.tokenizer.encode(process.prompts.texts[x]) + [w] for w in range(1, 10)]
    alive, ended = np.zeros(10), 0.0  # Z of what goes on, by last word; of what has ended
    alive[0] = 1.0
    for t in range(6):
        logs = np.zeros((10, 10))
        for w in range(10):
            answer = [] if t == 0 else [1] * (t - 1) + [w]
            if t == 0 and w == 0 or t > 0 and w > 0:
                row = np.array([process.tokenizer.encode(process.prompts.texts[x]) + answer])
                logs[w] = process.reference.log_probs(row, np.ones_like(row))[0]
        flow = alive[:, None] * np.exp(logs + weights[x, t] / beta)
        flow[alive == 0] = 0.0
        if t == 5:
            ended += flow.sum()
        else:
            ended += flow[:, 0].sum()
            alive = np.append(0.0, flow[:, 1:].sum(axis=0))
    log_z.append(np.log(ended))
assert abs(beta * np.mean(log_z) - solution.objective) < 1e-9, (beta * np.mean(log_z), solution.objective)
assert not {"torch", "transformers"} & set(sys.modules)
print("texts", tree.num_completions)
"""


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")


@needs_linux
@pytest.mark.slow
def test_a_million_texts_fit_into_four_gigabytes() -> None:
    """J* of 1.2 million texts, against a sum over all of them and a product of matrices, in 4 GiB and without torch."""
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread reserves address space of its own
    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, env={**os.environ, **threads}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["texts", "1195742"]


@needs_linux
def test_the_limit_on_memory_binds() -> None:
    """Negative control: under such a limit an array of 4 GiB cannot be had."""
    code = MILLION.split("import gymnasium")[0] + "import numpy as np; np.ones(1 << 29)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "MemoryError" in done.stderr


# -- policy_gradient ---------------------------------------------------------------------------------------------------


class TablePolicy(torch.nn.Module):
    """A logit for every state and token, float64; states are told apart by what is observed."""

    def __init__(self, tree: exact.Tree, seed: int) -> None:
        super().__init__()
        self.rows = {row.tobytes(): i for i, row in enumerate(np.hstack(tree.observations(slice(None))))}
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(tree.child.shape, generator=generator, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(2))

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> torch.Tensor:
        """Logits [B, V]."""
        return self.logits[[self.rows[row.tobytes()] for row in np.hstack([input_ids, attention_mask])]]


def differentiable_objective(env: Any, policy: TablePolicy, beta: float) -> torch.Tensor:
    """J(pi) = mean over prompts, sum over texts of pi(y|x) (r - beta log(pi / pi_ref)), with gradients."""
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, answer), steps in all_texts(env).items():
        log_prob = torch.zeros((), dtype=torch.float64)
        for t, token in enumerate(answer):
            observation, info = env.reset(options={"prompt": prompt, "completion": list(answer[:t])})
            logits = policy.next_token_logits(observation["input_ids"][None], observation["attention_mask"][None])[0]
            allowed = torch.as_tensor(info["action_mask"] == 1)
            log_prob = log_prob + logits[token] - logits[allowed].logsumexp(0)
        # the unbound environment pays score + shaping + beta log pi_ref
        total = total + log_prob.exp() * (sum(reward for reward, _ in steps) - beta * log_prob)
    return total / len(env.unwrapped.prompts)


@settings(max_examples=8, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_policy_gradient_equals_autograd(arguments: dict[str, Any], seed: int) -> None:
    """The exact gradient, made of occupancy and advantages, is that of autograd through J written as a sum over texts."""
    mdp = TextMDP(**arguments)
    policy = TablePolicy(enumerate_tree(mdp), seed)
    beta = arguments["kl_coef"]
    objective = differentiable_objective(make(arguments), policy, beta)
    objective.backward()
    assert exact.evaluate(mdp, policy).objective == pytest.approx(objective.item(), abs=1e-6)
    gradient = exact.policy_gradient(mdp, policy)
    torch.testing.assert_close(gradient["logits"], policy.logits.grad, rtol=0, atol=1e-6)
    assert gradient.keys() == {"logits", "unused"} and not gradient["unused"].any()


def test_the_gradient_test_notices_another_gradient() -> None:
    """Negative control: the gradient without the KL, and that of another policy, are not the gradient of J."""
    arguments = words(3, prompts=["a", "b b"], max_new_tokens=2, reference=random_reference(3, 0, sparse=False))
    mdp = TextMDP(**arguments)
    policy = TablePolicy(enumerate_tree(mdp), 0)
    differentiable_objective(make(arguments), policy, 0.5).backward()
    without_kl = exact.policy_gradient(TextMDP(**arguments | {"kl_coef": 0.0}), policy)
    other = exact.policy_gradient(mdp, TablePolicy(enumerate_tree(mdp), 1))
    for wrong in (without_kl["logits"], other["logits"]):
        assert (wrong - policy.logits.grad).abs().max() > 1e-3


def test_small_steps_along_the_gradient_lead_to_the_optimum() -> None:
    """Gradient ascent on the exact gradient climbs to J*: the two oracles agree on what is best."""
    arguments = words(3, prompts=["a"], max_new_tokens=2, kl_coef=1.0, shaping=SHAPING[1:2])
    tree = enumerate_tree(TextMDP(**arguments))
    policy, solution = TablePolicy(tree, 0), exact.solve(TextMDP(**arguments))
    before = exact.evaluate(tree, policy).objective
    for _ in range(300):
        policy.logits.data += exact.policy_gradient(tree, policy)["logits"]
    assert before < solution.objective - 0.05
    assert exact.evaluate(tree, policy).objective == pytest.approx(solution.objective, abs=1e-4)


def test_log_softmax_of_the_tests_is_one() -> None:
    """The tests' own oracle of a masked softmax, on numbers done by hand."""
    assert np.exp(log_softmax(np.log([1.0, 2.0, 5.0]), np.array([True, True, False]))) == pytest.approx(
        [1 / 3, 2 / 3, 0]
    )
