"""The optimum against brute force over `env.step`, and the decomposition of the gap by state."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.brute_force import all_completions, by_completion, optimum
from tests.helpers.tasks import (
    RandomPolicy,
    hashed_potential,
    make,
    tasks,
)
from textenv import TextMDP, exact
from textenv.shaping import length_penalty, potential_based
from textenv.tree import enumerate_tree

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
    best, log_probs = optimum(all_completions(env), env.unwrapped.mdp.kl_coef)
    solution = exact.solve(env)
    assert solution.objective == pytest.approx(best, abs=1e-9)
    found = by_completion(solution.tree, solution.log_probs)
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
    """The same where the reference masks tokens, and with shaping."""
    check_against_brute_force(make(arguments))


def test_solve_equals_the_sum_over_all_completions_of_taj_mahal() -> None:
    """On the lecture's example: Z(x) is the sum of pi_ref exp(r / beta) over the task's own list of completions."""
    from textenv.tasks.taj_mahal import PLACES, QUESTIONS, reference_completions, truth

    objectives = []
    for landmark in PLACES:
        completions = reference_completions(landmark)
        num = len(completions)
        scores = np.array(truth([""] * num, list(completions), [], [landmark] * num))
        weights = np.array(list(completions.values()))
        assert weights.sum() == pytest.approx(1.0)
        objectives.append([0.1 * np.log((weights * np.exp(scores / 0.1)).sum())] * len(QUESTIONS))
    solution = exact.solve(gym.make("textenv/TajMahal-v0", kl_coef=0.1))
    assert solution.objective == pytest.approx(np.mean(objectives), abs=1e-9)
    assert solution.values[solution.tree.levels[0]] == pytest.approx(np.ravel(objectives), abs=1e-9)


def test_brute_force_detects_another_reward() -> None:
    """Negative control: the comparison fails for another beta, another toy, and one wrong reward of one completion."""
    toy = {"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2}
    env = gym.make("textenv/Toy-v0", **toy)
    completions = all_completions(env)
    right, _ = optimum(completions, 0.1)
    assert abs(optimum(completions, 0.11)[0] - right) > 1e-3
    assert abs(exact.solve(gym.make("textenv/Toy-v0", **toy, task_seed=1)).objective - right) > 1e-3
    one = next(iter(completions))
    completions[one][-1] = (completions[one][-1][0] + 1e-3, completions[one][-1][1])
    assert abs(optimum(completions, 0.1)[0] - right) > 1e-9


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
@given(arguments=tasks())
def test_the_optimum_and_the_reference_have_the_objectives_of_the_solution(arguments: dict[str, Any]) -> None:
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


def test_without_a_kl_the_best_completion_has_all_the_mass() -> None:
    """beta = 0: J* is the mean over prompts of the best score, and pi* puts all its mass there."""
    env = gym.make("textenv/Toy-v0", kl_coef=0.0, vocab_size=4, max_new_tokens=3)
    completions = all_completions(env)
    solution = exact.solve(env)
    best = [max((sum(r for r, _ in steps), y) for y, steps in completions.items() if y[0] == p) for p in (0, 1)]
    assert solution.objective == pytest.approx(np.mean([score for score, _ in best]))
    probs = by_completion(solution.tree, np.exp(solution.log_probs))
    assert {y for y, prob in probs.items() if prob > 0.5} == {y for _, y in best}


def test_potential_based_shaping_keeps_the_optimal_policy() -> None:
    """With gamma = 1 a potential shifts J* by -E Phi(s_0) and does not change pi*; a length penalty changes pi*."""
    arguments = {"vocab_size": 4, "max_new_tokens": 3, "num_prompts": 3, "task_seed": 5}
    plain = exact.solve(gym.make("textenv/Toy-v0", **arguments))
    shaped = exact.solve(gym.make("textenv/Toy-v0", **arguments, shaping=[potential_based(hashed_potential)]))
    penalized = exact.solve(gym.make("textenv/Toy-v0", **arguments, shaping=[length_penalty(0.1)]))
    prompts = plain.tree.mdp.prompts
    first = hashed_potential(prompts.input_ids, prompts.attention_mask).mean()
    assert shaped.objective == pytest.approx(plain.objective - first)
    assert shaped.log_probs == pytest.approx(plain.log_probs, abs=1e-8)
    assert abs(shaped.values - plain.values).max() > 0.1  # the values do change, by -Phi(s)
    assert abs(penalized.log_probs - plain.log_probs).max() > 0.05


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), beta=st.sampled_from([0.0, 0.1, 0.6, 3.0]))
def test_solving_for_another_beta_equals_solving_another_task(arguments: dict[str, Any], beta: float) -> None:
    """solve(tree, kl_coef=b) equals solve of an environment with that kl_coef, and keeps the task's own."""
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


def test_another_beta_has_another_optimum() -> None:
    """Negative control: for another beta the optimum differs, and the gap is that of J with this beta."""
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
    for beta in (-1.0, float("nan"), float("inf"), 1e-310, 9e-31, True, "1"):
        with pytest.raises(ValueError, match=f"kl_coef .* got {beta!r}; 0 switches .* other value is 1e-30"):
            exact.solve(tree, kl_coef=beta)  # type: ignore[arg-type]


def test_the_smallest_beta_has_the_optimum_of_none() -> None:
    """No number overflows. Control: an ordinary beta has another."""
    tree = enumerate_tree(gym.make("textenv/Toy-v0", kl_coef=1e-30))
    smallest, none = exact.solve(tree), exact.solve(tree, kl_coef=0)
    assert smallest.objective == pytest.approx(none.objective, rel=1e-12)
    assert not np.isnan(smallest.log_probs).any() and exact.solve(tree, kl_coef=0.1).objective < none.objective - 0.1


@settings(max_examples=30, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_suboptimality_by_state_sums_to_the_gap(arguments: dict[str, Any], seed: int) -> None:
    """Costs are >= 0 and sum to J* - J; each is d(s) beta KL(pi(.|s) || pi*(.|s)), written out, where beta > 0."""
    tree = enumerate_tree(TextMDP(**arguments))
    solution, known = exact.solve(tree), exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed))
    with np.errstate(all="raise", under="ignore"):  # masked actions must not enter the arithmetic
        costs = exact.suboptimality_by_state(solution, known)
    assert costs.shape == tree.prompt.shape and (costs >= 0).all()
    assert costs.sum() == pytest.approx(solution.objective - known.objective, abs=1e-9)
    if (beta := arguments["kl_coef"]) > 0:
        for state, (ours, best) in enumerate(zip(known.log_probs, solution.action_log_probs, strict=True)):
            kl = sum(np.exp(p) * (p - q) for p, q in zip(ours, best, strict=True) if p > -np.inf)
            assert costs[state] == pytest.approx(known.occupancy[state] * beta * kl, abs=1e-9)
    # negative control: the sum of another policy differs
    other = exact.evaluate(tree, RandomPolicy(len(arguments["tokenizer"]), seed + 1, scale=2.0))
    wrong = exact.suboptimality_by_state(solution, other).sum()
    assert beta == 0 or (np.sum(tree.child != -2, axis=1) < 2).all() or wrong != pytest.approx(costs.sum(), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(arguments=tasks(), beta=st.sampled_from([0.0, 0.05, 0.7]))
def test_the_q_values_are_rewards_and_what_follows(arguments: dict[str, Any], beta: float) -> None:
    """Q*(s, a) = r(s, a) + V*(s a), -inf where masked; pi* and V* follow from it, and not from another beta's."""
    tree = enumerate_tree(TextMDP(**arguments))
    solution = exact.solve(tree, kl_coef=beta)
    for state, action in np.ndindex(tree.child.shape):
        child, found = tree.child[state, action], solution.q_values[state, action]
        if child == -2:
            assert found == -np.inf
        else:
            later = solution.values[child] if child >= 0 else 0.0
            assert found == pytest.approx(tree.scores[state, action] + tree.shaping[state, action] + later)
    best = solution.q_values.max(axis=1) if beta == 0 else solution.values
    assert solution.values == pytest.approx(best)
    if beta > 0:
        log_probs = tree.ref_log_probs + (solution.q_values - solution.values[:, None]) / beta
        assert np.exp(log_probs) == pytest.approx(np.exp(solution.action_log_probs))
        assert np.exp(log_probs).sum(axis=1) == pytest.approx(1.0)
        wrong = np.exp(log_probs + solution.q_values / beta).sum(axis=1)  # control: Q* counted twice
        assert np.ptp(tree.rewards) == 0 or wrong != pytest.approx(1.0)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 999))
def test_only_a_wrong_state_has_a_cost(arguments: dict[str, Any], seed: int) -> None:
    """At pi* every cost is 0; a policy that differs from pi* in one state has a cost in that state only."""
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
        assert costs[wrong] > 0  # negative control: the cost is positive


MILLION = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import gymnasium as gym, numpy as np, textenv
from textenv import exact

env = gym.make("textenv/Toy-v0", vocab_size=10, max_new_tokens=6, num_prompts=2)
solution = exact.solve(env)
tree, beta, mdp = solution.tree, 0.1, env.unwrapped.mdp
assert solution.kl_coef == beta and tree.num_completions > 10**6, tree.num_completions
assert tree.num_completions == 2 * (sum(9**t for t in range(5)) + 9**5 * 10)

# over all completions: tokens, score from the reward's own weights, log pi_ref from the reference's rows
weights = mdp.reward.functions[0].weights
states, actions = tree.paths()
real = actions >= 0
prompt = tree.prompt[states[:, 0]]
last = np.hstack([np.zeros((len(actions), 1), dtype=int), actions[:, :-1]])
scores = np.where(real, weights[prompt[:, None], np.arange(6), last, actions], 0.0).sum(axis=1)
log_ref = np.where(real, tree.ref_log_probs[states, actions], 0.0).sum(axis=1)


def optimum(scores, beta):
    sums = log_ref + scores / beta
    return beta * np.mean([np.logaddexp.reduce(sums[prompt == x]) for x in (0, 1)])


assert abs(sum(np.exp(log_ref)) - 2) < 1e-9
assert abs(optimum(scores, beta) - solution.objective) < 1e-9, (optimum(scores, beta), solution.objective)
assert abs(np.exp(solution.log_probs).sum() - 2) < 1e-9
# negative controls: another beta, and each completion with its neighbour's score
assert abs(optimum(scores, 1.01 * beta) - solution.objective) > 1e-4
assert abs(optimum(np.roll(scores, 1), beta) - solution.objective) > 1e-4

# without enumeration: a toy is a chain, Z(x) a product of matrices pi_ref(w|t, last) exp(weight / beta)
log_z = []
for x in (0, 1):
    alive, ended = np.zeros(10), 0.0  # Z of live completions by last word; Z of finished ones
    alive[0] = 1.0
    for t in range(6):
        logs = np.zeros((10, 10))
        for w in range(10):
            prefix = [] if t == 0 else [1] * (t - 1) + [w]
            if t == 0 and w == 0 or t > 0 and w > 0:
                row = np.array([mdp.tokenizer.encode(mdp.prompts.texts[x]) + prefix])
                logs[w] = mdp.reference.log_probs(row, np.ones_like(row))[0]
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
print("completions", tree.num_completions)
"""


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the memory limit needs Linux")


@needs_linux
@pytest.mark.slow
def test_a_million_completions_fit_into_four_gigabytes() -> None:
    """J* of 1.2 million completions equals a sum over all of them and a product of matrices; 4 GiB and no torch."""
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # each thread reserves address space
    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, env={**os.environ, **threads}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["completions", "1195742"]


@needs_linux
def test_the_memory_limit_is_effective() -> None:
    """Negative control: under this limit an array of 4 GiB cannot be allocated."""
    code = MILLION.split("import gymnasium")[0] + "import numpy as np; np.ones(1 << 29)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "MemoryError" in done.stderr
