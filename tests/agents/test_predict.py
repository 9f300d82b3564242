"""`predict`: shapes, probabilities, random numbers, and Stable-Baselines3's evaluation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import PPO
from tests.helpers.agents import agent_of, task
from tests.helpers.policies import random_policy
from tests.helpers.refusals import ODD, NotRefused, refused
from textenv import exact
from textenv.testing import play


def test_predict_takes_one_observation_or_a_batch() -> None:
    """Arrays [L] give one token, [B, L] give [B]; the state is passed through."""
    env = task()
    agent = agent_of(PPO, env)
    observation, _ = env.reset(seed=0)
    token, state = agent.predict(observation, state="kept", deterministic=True)
    assert np.shape(token) == () and env.action_space.contains(np.int64(token)) and state == "kept"
    batch = {name: np.stack([value] * 5) for name, value in observation.items()}
    tokens, _ = agent.predict(batch, deterministic=True)
    assert tokens.shape == (5,) and (tokens == token).all()


def test_predict_is_pi() -> None:
    """Sampled tokens have the probabilities of pi, masks and temperature included; deterministic gives its mode."""
    env = task()
    policy = random_policy(env, temperature=1.5)
    agent = PPO(policy, env, seed=0)
    tree = exact.enumerate_tree(env)
    log_probs = exact.evaluate(tree, policy).log_probs
    checked = 0
    for state in range(len(tree.prompt)):
        ids, mask = tree.observations(slice(state, state + 1))
        pi = np.exp(log_probs[state])
        observation = {"input_ids": np.repeat(ids, 1000, axis=0), "attention_mask": np.repeat(mask, 1000, axis=0)}
        tokens, _ = agent.predict(observation)
        shares = np.bincount(tokens, minlength=4) / 1000
        assert not shares[pi == 0].any()
        # six standard deviations: false failure below 1e-7 over all comparisons
        assert (np.abs(shares - pi) <= 6 * np.sqrt(pi * (1 - pi) / 1000) + 1e-9).all()
        assert agent.predict({"input_ids": ids[0], "attention_mask": mask[0]}, deterministic=True)[0] == pi.argmax()
        checked += int((pi == 0).any())
    assert checked > 0  # some tokens were masked


def test_predict_samples_with_the_agents_generator() -> None:
    """The same seed gives the same tokens; the global generator is unchanged."""
    observation = task().reset(seed=0)[0]
    batch = {name: np.stack([value] * 50) for name, value in observation.items()}
    before = torch.get_rng_state()
    first, again = (agent_of(PPO, seed=5).predict(batch)[0] for _ in range(2))
    assert np.array_equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert len(set(first.tolist())) > 1


def test_sb3s_evaluate_policy_runs_unchanged() -> None:
    """In a Monitor: the returns of greedy episodes are exactly those of replaying them."""
    env = task()
    agent = agent_of(PPO, env)
    greedy: dict[tuple[float, int], int] = {}
    for prompt in range(len(env.unwrapped.prompts)):
        observation, _ = env.reset(options={"prompt": prompt})
        tokens, terminated = [], False
        while not terminated:
            tokens.append(int(agent.predict(observation, deterministic=True)[0]))
            observation, _, terminated, _, _ = env.step(tokens[-1])
        episode = play(env, prompt, tokens)
        greedy[round(float(episode.rewards.sum()), 5), len(tokens)] = prompt
    returns, lengths = evaluate_policy(agent, Monitor(env), n_eval_episodes=30, return_episode_rewards=True)
    found = {(round(total, 5), length) for total, length in zip(returns, lengths, strict=True)}
    assert found == greedy.keys()


def test_the_mean_of_evaluate_policy_is_the_expected_reward() -> None:
    """Without a bound policy the mean return is E[score + beta log pi_ref], within five standard errors."""
    env = task()
    agent = agent_of(PPO, env)
    known = exact.evaluate(env, agent.policy)
    probs = np.exp(known.log_probs)
    log_pi = np.where(probs > 0, known.log_probs, 0.0)
    entropy = -float((known.occupancy[:, None] * probs * log_pi).sum())
    expected = known.objective - 0.5 * entropy  # J has -beta log pi in addition
    returns, _ = evaluate_policy(
        agent, Monitor(env), n_eval_episodes=600, deterministic=False, return_episode_rewards=True
    )
    assert abs(np.mean(returns) - expected) < 5 * np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - known.objective) > 5 * np.std(returns) / np.sqrt(len(returns))  # control


# -- refused arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("where", ["argument", "observation"])
def test_masks_that_allow_nothing_are_refused(where: str, deterministic: bool) -> None:
    """Neither torch's error nor a masked token, for one observation and for a row of a batch."""
    env = task()
    agent = agent_of(PPO, env)
    observation, info = env.reset(seed=0)
    batch = {name: np.stack([value] * 2) for name, value in observation.items()}
    nothing = np.zeros_like(info["action_mask"])
    for given, masks, row in ((observation, nothing, 0), (batch, np.stack([info["action_mask"], nothing]), 1)):
        arguments: dict[str, Any] = {"deterministic": deterministic, "action_masks": masks}
        if where == "observation":
            given = given | {"action_mask": arguments.pop("action_masks")}
        with refused(ValueError, f"must allow a token in each row, got none in row {row}", package="agents"):
            agent.predict(given, **arguments)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32, list, torch.tensor])
def test_masks_of_any_type_are_obeyed(dtype: Any) -> None:
    """Control: one mask for all rows, or one each."""
    env = task()
    agent = agent_of(PPO, env)
    observation, info = env.reset(seed=0)
    only = np.eye(len(info["action_mask"]), dtype=np.int8)[2]
    batch = {name: np.stack([value] * 3) for name, value in observation.items()}
    for masks in (only, np.stack([only] * 3)):
        given = masks.astype(dtype) if dtype not in (list, torch.tensor) else dtype(masks.tolist())
        assert agent.predict(batch, action_masks=given)[0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["observation", "action_masks", "input_ids", "attention_mask", "action_mask"])
def test_what_is_no_observation_is_refused(name: str) -> None:
    """Each argument and each array, given a value of every type: a token of the vocabulary, or an error of ours."""
    env = task()
    agent = agent_of(PPO, env)
    observation, _ = env.reset(seed=0)
    for value in ODD:
        with suppress(NotRefused), refused(ValueError, package="agents"):
            if name == "observation":
                tokens = agent.predict(value)[0]
            elif name == "action_masks":
                tokens = agent.predict(observation, action_masks=value)[0]
            else:
                tokens = agent.predict(observation | {name: value})[0]
            assert env.action_space.contains(np.int64(tokens))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": np.ones(2, dtype=np.int8)}, r"of the same shape, \[L\] or \[B, L\].*and \(2,\)"),
        ({"input_ids": np.full(7, 99)}, "must be in 0 .. 3, the policy's ids, got 99"),
        ({"attention_mask": np.zeros(7, dtype=np.int8)}, "must be 1 on a row's tokens, at least one"),
        ({"input_ids": np.zeros(7)}, "input_ids must be an array of integers, got ndarray of float64"),
        ({"action_mask": np.ones(3, dtype=np.int8)}, r"of shape \(4,\) or \(1, 4\), got int8\(3,\)"),
    ],
)
def test_the_error_names_the_rule_and_the_value(change: dict[str, Any], message: str) -> None:
    """For arrays that do not fit the policy or each other."""
    env = task()
    observation, _ = env.reset(seed=0)
    with refused(ValueError, message, package="agents"):
        agent_of(PPO, env).predict(observation | change)


def test_an_observation_longer_than_the_context_is_refused() -> None:
    """A position that the model does not have."""
    agent = agent_of(PPO)
    context = agent.policy.model.config.max_position_embeddings
    fits, longer = (
        {name: np.ones(length, dtype=np.int64) for name in ("input_ids", "attention_mask")}
        for length in (context, context + 1)
    )
    agent.predict(fits)
    with pytest.raises(ValueError, match=f"context of {context} tokens, got {context + 1}"):
        agent.predict(longer)
