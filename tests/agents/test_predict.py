"""`predict`: shapes, probabilities, random numbers, and Stable-Baselines3's evaluation."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents import PPO
from tests.helpers.agents import agent_of, task
from tests.helpers.policies import random_policy
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
