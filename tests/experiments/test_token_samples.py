"""`samples/UPDATE.jsonl`: what is written of each token, against the environment and the exact oracle; and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from experiments.evaluation import Evaluator
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from experiments.token_samples import drop_samples_after, sample_files, sample_tokens, token_texts, write_samples
from experiments.trial import run_trial
from tests.helpers.commands import stories_flags, tiny
from tests.helpers.models import arguments
from tests.helpers.policies import random_policy
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP, exact, get_mdp

COLUMNS = {"log_prob", "ref_log_prob", "entropy", "reward_terms", "exact"}


def evaluator(**flags: object) -> tuple[Evaluator, TransformerPolicy]:
    """Of the tiny toy, with a policy that is not its reference."""
    env = tiny(**flags).make_env()
    return Evaluator.for_env(env, 16), random_policy(env, scale=0.5).float()


def exact_values(solution: exact.Solution, known: exact.Evaluation, state: int, token: int) -> dict[str, float]:
    """What is known exactly of a token, by the equations of the module."""
    tree = solution.tree
    child = int(tree.child[state, token])
    optimal_q = tree.scores[state, token] + tree.shaping[state, token] + (solution.values[child] if child >= 0 else 0)
    ratio = known.log_probs[state, token] - tree.ref_log_probs[state, token]
    return {
        "value": known.values[state],
        "advantage": known.q_values[state, token] - known.values[state],
        "optimal_value": solution.values[state],
        "optimal_q": optimal_q,
        "cost": solution.values[state] - optimal_q + solution.kl_coef * ratio,
        "state_cost": exact.suboptimality_by_state(solution, known)[state],
    }


@pytest.mark.parametrize("flags", [{}, {"kl_coef": 0.0}, {"missing_eos_penalty": 0.7}])
def test_every_number_is_that_of_the_environment_and_of_the_oracle(flags: dict[str, float]) -> None:
    """Stepping the environment with the policy bound; `exact`; the mean of the costs is J* - J."""
    measured, policy = evaluator(env_args={"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2}, **flags)
    env, solution = measured.env, measured.solution
    assert solution is not None
    known = exact.evaluate(solution.tree, policy)
    agent = PPO(policy, env, seed=0)
    rows = sample_tokens(measured, agent, 400, known)
    assert {row["prompt"] for row in rows} == set(get_mdp(env).prompts.texts)
    for row in rows[:20]:
        state, (ids, tree) = solution.tree.state_index(row["prompt"]), (row["token_ids"], solution.tree)
        assert len(row["tokens"]) == len(ids) and row["stopped"] == bool(get_mdp(env).is_eos[ids[-1]])
        for t, token in enumerate(ids):
            probs = np.exp(known.log_probs[state])
            assert row["log_prob"][t] == pytest.approx(known.log_probs[state, token], abs=1e-4)
            assert row["ref_log_prob"][t] == pytest.approx(tree.ref_log_probs[state, token], abs=1e-4)
            assert row["entropy"][t] == pytest.approx(-(probs * known.log_probs[state]).sum(), abs=1e-4)
            for name, values in exact_values(solution, known, state, token).items():
                assert row["exact"][name][t] == pytest.approx(values, abs=2e-6), name
            terms = sum(values[t] for values in row["reward_terms"].values())
            after = known.q_values[state, token] - terms
            child = int(tree.child[state, token])
            assert after == pytest.approx(0.0 if child < 0 else known.values[child], abs=1e-4)
            state = child
        assert row["reward_terms"]["score"] == [0.0] * (len(ids) - 1) + [pytest.approx(row["score"])]
        assert row["exact"].keys() == exact_values(solution, known, 0, 0).keys()
    costs = np.array([sum(row["exact"]["cost"]) for row in rows])
    error = 4 * costs.std() / np.sqrt(len(costs))
    assert costs.mean() == pytest.approx(solution.objective - known.objective, abs=error) and error < 0.3
    if solution.kl_coef > 0:
        log_ratio = known.log_probs - solution.action_log_probs  # of pi to pi*
        for row in rows[:20]:
            states = solution.tree.states_of(solution.tree.state_index(row["prompt"]), row["token_ids"])
            assert row["exact"]["cost"] == pytest.approx(
                solution.kl_coef * log_ratio[states, row["token_ids"]], abs=2e-6
            )


def test_the_advantage_is_that_of_the_agent() -> None:
    """GAE with its lambda: with lambda 1 the reward to go without V. REINFORCE has neither V nor an advantage."""
    measured, policy = evaluator()
    known = measured.evaluate_exactly(policy)
    row = sample_tokens(measured, PPO(policy, measured.env, gae_lambda=1.0, seed=0), 1, known)[0]
    rewards = np.sum(list(row["reward_terms"].values()), axis=0)
    assert np.add(row["advantage"], row["value"]) == pytest.approx(rewards[::-1].cumsum()[::-1], abs=1e-5)
    other = sample_tokens(measured, REINFORCE(policy, measured.env, seed=0), 1, known)[0]
    assert other.keys() & {"value", "advantage"} == set() and other.keys() >= COLUMNS
    assert {name: other[name] for name in other} == {name: row[name] for name in other}  # the same random numbers


def test_with_the_kl_in_the_loss_the_advantage_is_without_it() -> None:
    """GAE of the rewards that the agent trains on; the terms of the reward keep the KL."""
    measured, policy = evaluator(kl_coef=0.5)
    known = measured.evaluate_exactly(policy)
    rows = {}
    for kl_in in ("loss", "reward"):
        agent = PPO(policy, measured.env, gae_lambda=1.0, kl_in=kl_in, seed=0)
        rows[kl_in] = sample_tokens(measured, agent, 1, known)[0]
    row = rows["loss"]
    assert row["reward_terms"] == rows["reward"]["reward_terms"]
    kl = np.add(row["reward_terms"]["kl_reference"], row["reward_terms"]["kl_policy"])
    rewards = np.sum(list(row["reward_terms"].values()), axis=0) - kl
    assert np.add(row["advantage"], row["value"]) == pytest.approx(rewards[::-1].cumsum()[::-1], abs=1e-5)
    assert row["advantage"] != pytest.approx(rows["reward"]["advantage"], abs=1e-3)  # control


def test_with_an_adapted_beta_the_advantage_is_of_that_beta() -> None:
    """GAE of the rewards that the agent trains on; the terms of the reward, and all that is exact, are the task's."""
    measured, policy = evaluator(kl_coef=0.5)
    known = measured.evaluate_exactly(policy)
    rows = {}
    for beta in (0.5, 0.8):
        agent = PPO(policy, measured.env, gae_lambda=1.0, kl_target=0.1, seed=0)
        agent.kl_coef = beta
        rows[beta] = sample_tokens(measured, agent, 1, known)[0]
    row = rows[0.8]
    for name in ("reward_terms", "exact", "value"):  # V is not trained here
        assert row[name] == rows[0.5][name]
    log_ratio = np.subtract(row["log_prob"], row["ref_log_prob"])
    rewards = np.sum(list(row["reward_terms"].values()), axis=0) - (0.8 - 0.5) * log_ratio
    assert np.add(row["advantage"], row["value"]) == pytest.approx(rewards[::-1].cumsum()[::-1], abs=1e-5)
    assert row["advantage"] != pytest.approx(rows[0.5]["advantage"], abs=1e-3)  # control


@pytest.mark.parametrize("kind", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_the_value_of_stable_baselines_is_what_it_predicts(kind: Any) -> None:
    """In each state; the advantage is GAE with its lambda, here 1: the reward to go without V."""
    task = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2}
    measured, policy = evaluator(env_args=task)
    agent = kind(policy, measured.env, n_episodes=8, n_steps=4, gae_lambda=1.0, learning_rate=0.01, seed=0).learn(200)
    env = gym.make_vec("textenv/Toy-v0", num_envs=1, **task)
    rows = sample_tokens(measured, agent, 4, measured.evaluate_exactly(agent.policy))
    for row in rows:
        rewards = np.sum(list(row["reward_terms"].values()), axis=0)
        assert np.add(row["advantage"], row["value"]) == pytest.approx(rewards[::-1].cumsum()[::-1], abs=1e-5)
        for t, value in enumerate(row["value"]):
            start = {"prompt": row["prompt"], "completion": row["token_ids"][:t]}
            observation, _ = env.reset(options=start)
            tensors, _ = agent.algorithm.policy.obs_to_tensor(observation)
            with torch.no_grad():
                assert float(agent.algorithm.policy.predict_values(tensors)) == pytest.approx(value, abs=1e-4)
    assert len({value for row in rows for value in row["value"]} - {0.0}) > 1  # they were learned, and differ


@pytest.mark.parametrize("agent", ["ppo", "reinforce", "sb3-ppo"])
def test_a_trial_writes_samples_at_each_evaluation(agent: str, tmp_path: Path, initial: Path) -> None:
    """As many as --samples-per-eval says, of the same prompts; 0 writes none."""
    run_trial(tiny(agent=agent, samples_per_eval=3), tmp_path / "run", initial)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    evaluated = [row["num_updates"] for row in rows if "eval/objective" in row]
    assert [update for update, _ in sample_files(tmp_path / "run")] == evaluated and evaluated[0] == 0
    for update, path in sample_files(tmp_path / "run"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(samples) == 3 and {row["num_updates"] for row in samples} == {update}
        assert all(("value" in row) == (agent != "reinforce") for row in samples)
    run_trial(tiny(agent=agent, samples_per_eval=0), tmp_path / "none", initial)
    assert sample_files(tmp_path / "none") == [] and not (tmp_path / "none/samples").exists()


def test_samples_of_updates_that_are_repeated_are_dropped(tmp_path: Path, initial: Path) -> None:
    """A trial that was killed after an evaluation and before its checkpoint; other files of the folder stay."""
    (tmp_path / "samples").mkdir()
    for name in ("0", "3", "12", "notes"):
        (tmp_path / f"samples/{name}.jsonl").write_text("{}\n")
    drop_samples_after(tmp_path, 3)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["0.jsonl", "3.jsonl", "notes.jsonl"]
    run_trial(tiny(), tmp_path / "run", initial)
    known = {path.name: path.read_text() for _, path in sample_files(tmp_path / "run")}
    (tmp_path / "run/samples/999.jsonl").write_text("{}\n")
    (tmp_path / "run/summary.json").unlink()
    run_trial(tiny(), tmp_path / "run", initial)
    assert {path.name: path.read_text() for _, path in sample_files(tmp_path / "run")} == known


def test_a_language_model_has_no_exact_columns(assets: Path, tmp_path: Path) -> None:
    """And its tokens are pieces whose texts add up to the completion."""
    env = tiny(**stories_flags(assets, tmp_path)).make_env()
    measured = Evaluator.for_env(env, 4)
    agent = PPO(TransformerPolicy.for_env(env), env, seed=0)
    write_samples(tmp_path, measured, agent, 3, measured.evaluate_exactly(agent.policy))
    rows = [json.loads(line) for line in (tmp_path / "samples/0.jsonl").read_text().splitlines()]
    for row in rows:
        assert "exact" not in row and "".join(row["tokens"]) == row["completion"]
        assert row["log_prob"] == pytest.approx(row["ref_log_prob"], abs=1e-4)  # it starts at the reference
    assert token_texts(get_mdp(env), []) == []


def test_a_row_has_what_else_a_reward_gets() -> None:
    """The columns of its prompt that JSON can hold, and the messages of a conversation; of a text there are none."""
    chat = [{"role": "user", "content": "a b"}]
    rows = [{"prompt": chat, "answer": {"a": [i, None]}, "odd": {i}} for i in range(2)]
    settings = arguments("gpt2", prompts=rows, max_new_tokens=2)
    settings["tokenizer"].chat_template = "{{ messages[0].content }}"
    env = gym.make_vec("textenv/Text-v0", num_envs=1, **settings)
    agent = PPO(TransformerPolicy.for_env(env), env, seed=0)
    found = sample_tokens(Evaluator.for_env(env, 4), agent, 2, None)
    assert [row["columns"] for row in found] == [{"answer": {"a": [i, None]}} for i in range(2)]
    assert [row["messages"] for row in found] == [chat, chat]
    measured, policy = evaluator()
    (text,) = sample_tokens(measured, PPO(policy, measured.env, seed=0), 1, measured.evaluate_exactly(policy))
    assert text["columns"] == {} and "messages" not in text


@pytest.mark.parametrize("text", ["hello naïve 日本 🙂!", "日", "a\N{REPLACEMENT CHARACTER}b"])
def test_a_character_of_several_tokens_is_the_last_ones(text: str) -> None:
    """Of a byte-level tokenizer: the texts add up to the completion; tokens of the bytes before add nothing."""
    mdp = TextMDP(byte_level(), ["hello"], lambda prompts, **rest: [0.0] * len(prompts), max_new_tokens=60)
    ids = [int(token) for token in mdp.encode_completion(text)]
    eos = int(np.flatnonzero(mdp.is_eos)[0])
    for stopped in (False, True):
        texts = token_texts(mdp, [*ids, eos] if stopped else ids)
        assert len(texts) == len(ids) + stopped and "".join(texts) == mdp.decode(ids) == text
        assert "" in texts[: len(ids)] and not (stopped and texts[-1])
        assert ("\N{REPLACEMENT CHARACTER}" in "".join(texts)) == ("\N{REPLACEMENT CHARACTER}" in text)
    cut = token_texts(mdp, [*mdp.encode_completion("a日")][:-1])  # bytes that never became a character are shown
    assert cut[0] == "a" and "\N{REPLACEMENT CHARACTER}" in cut[-1]
    alone = [mdp.decode([token]) for token in mdp.encode_completion("日")]  # control: token by token it is lost
    assert "日" not in alone and "日" not in "".join(alone)
