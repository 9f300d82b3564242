"""Rollout buffers that add the policy's half of the KL: with Stable-Baselines3 and sb3-contrib, unmodified."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    KLMaskableRolloutBuffer,
    KLRolloutBuffer,
    MaskableCausalLMPolicy,
)
from tests.helpers.policies import random_policy
from tests.helpers.sb3 import KL_BUFFER, TOY, KeepRollout, vec
from textenv import exact, get_mdp
from textenv.testing import play
from textenv.wrappers import FlatTokens

Episode = tuple[tuple[int, ...], tuple[int, ...], np.ndarray]


def episodes(kept: dict[str, np.ndarray], width: int) -> list[Episode]:
    """The whole episodes of a rollout: prompt, tokens, rewards."""
    found = []
    steps, envs = kept["rewards"].shape
    for env in range(envs):
        starts = [t for t in range(steps) if kept["episode_starts"][t, env]]
        for start, stop in itertools.pairwise(starts):
            mask = kept["attention_mask"][start, env, :width] == 1
            prompt = kept["input_ids"][start, env, :width][mask]
            tokens = kept["actions"][start:stop, env].ravel()
            found.append((tuple(prompt.tolist()), tuple(tokens.tolist()), kept["rewards"][start:stop, env]))
    return found


@pytest.mark.parametrize(
    ("algorithm", "policy", "buffer"),
    [
        (PPO, CausalLMPolicy, KLDictRolloutBuffer),
        (A2C, CausalLMPolicy, KLDictRolloutBuffer),
        (MaskablePPO, MaskableCausalLMPolicy, KLMaskableDictRolloutBuffer),
    ],
)
def test_the_buffers_rewards_equal_those_of_collect(algorithm: Any, policy: Any, buffer: Any) -> None:
    """For the same completions each r_t, with the score and both halves of the KL, equals that of `collect`."""
    envs = vec(**TOY)
    language_model = random_policy(envs).float()
    agent = algorithm(
        policy,
        envs,
        n_steps=40,
        seed=0,
        rollout_buffer_class=buffer,
        policy_kwargs={"language_model": language_model},
    )
    assert agent.rollout_buffer.kl_coef == TOY["kl_coef"]  # read from the environment
    keep = KeepRollout()
    agent.learn(1, callback=keep)
    ours = collect(envs, language_model, 1024, generator=new_generator("cpu", 0))
    width = envs.mdp.prompt_width
    expected = {}
    for row in range(len(ours)):
        columns = ours.attention_mask[row, : -ours.num_tokens] == 1
        prompt = ours.input_ids[row, : -ours.num_tokens][columns]
        mask = ours.mask[row]
        expected[tuple(prompt.tolist()), tuple(ours.tokens[row][mask].tolist())] = ours.rewards[row][mask]
    compared = [episode for episode in episodes(keep.kept, width) if episode[:2] in expected]
    assert len(compared) > 30 and len({(prompt, tokens) for prompt, tokens, _ in compared}) > 5
    for prompt, tokens, rewards in compared:
        np.testing.assert_allclose(rewards, expected[prompt, tokens].numpy(), atol=2e-5)
    # control: the environment's reward alone differs
    halves = keep.kept | {"rewards": keep.kept["rewards"] + TOY["kl_coef"] * keep.kept["log_probs"]}
    compared = [episode for episode in episodes(halves, width) if episode[:2] in expected]
    assert all(np.abs(half - expected[prompt, tokens].numpy()).max() > 1e-3 for prompt, tokens, half in compared)


@pytest.mark.parametrize(
    ("algorithm", "buffer", "env_id"),
    [(PPO, KLRolloutBuffer, "textenv/Toy-v0"), (MaskablePPO, KLMaskableRolloutBuffer, "textenv/TajMahal-v0")],
)
def test_rewards_on_flat_observations_equal_those_of_a_bound_policy(algorithm: Any, buffer: Any, env_id: str) -> None:
    """Each r_t, with a plain network; the buffer needs `kl_coef`, since `FlatTokens` hides the environment's."""
    envs = DummyVecEnv([lambda: FlatTokens(gym.make(env_id))])
    with pytest.raises(TypeError, match="pass rollout_buffer_kwargs={'kl_coef': ...}"):
        algorithm("MlpPolicy", envs, n_steps=200, rollout_buffer_class=buffer)
    settings = {"rollout_buffer_class": buffer, "rollout_buffer_kwargs": {"kl_coef": 0.1}}
    agent = algorithm("MlpPolicy", envs, n_steps=200, seed=0, learning_rate=0.0, **settings)
    keep = KeepRollout()
    agent.learn(1, callback=keep)
    mdp = get_mdp(gym.make(env_id))
    padding, width = mdp.vocab_size, mdp.prompt_width

    def network(ids: np.ndarray, attention: np.ndarray) -> torch.Tensor:
        tensors, _ = agent.policy.obs_to_tensor(np.where(attention == 1, ids, padding))
        logits: torch.Tensor = agent.policy.get_distribution(tensors).distribution.logits
        return logits

    env = gym.make(env_id, policy=network)
    assert mdp.kl_coef == 0.1
    keep.kept["input_ids"], keep.kept["attention_mask"] = keep.kept["flat"], keep.kept["flat"] != padding
    whole = episodes(keep.kept, width)
    halves = episodes(keep.kept | {"rewards": keep.kept["rewards"] + 0.1 * keep.kept["log_probs"]}, width)
    assert len(whole) > 30
    missing = 0.0
    for (prompt, tokens, rewards), (_, _, half) in zip(whole, halves, strict=True):
        bound = play(env, [int(i) for i in prompt], list(tokens)).rewards
        np.testing.assert_allclose(rewards, bound, atol=2e-5)
        missing = max(missing, np.abs(half - bound).max())
    assert missing > 0.05  # control


def test_a_missing_buffer_is_an_error() -> None:
    """Before the first update; so is a beta other than the environment's. With beta = 0 no such buffer is needed."""
    envs = vec(**TOY)
    settings = {"n_steps": 8, "seed": 0, "policy_kwargs": {"language_model": random_policy(envs).float()}}
    for algorithm, policy in ((PPO, CausalLMPolicy), (A2C, CausalLMPolicy), (MaskablePPO, MaskableCausalLMPolicy)):
        agent = algorithm(policy, VecMonitor(envs), **settings)
        before = [p.clone() for p in agent.policy.parameters()]
        with pytest.raises(ValueError, match="rollout_buffer_class=KLDictRolloutBuffer, with MaskablePPO KLMaskable"):
            agent.learn(64)
        assert all(torch.equal(p, q) for p, q in zip(before, agent.policy.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"The environment's kl_coef is 0.5, the buffer's 0.4: leave the buffer's out"):
        PPO(CausalLMPolicy, envs, **KL_BUFFER, rollout_buffer_kwargs={"kl_coef": 0.4}, **settings)
    PPO(CausalLMPolicy, envs, **KL_BUFFER, rollout_buffer_kwargs={"kl_coef": 0.5}, **settings).learn(64)
    PPO(CausalLMPolicy, vec(**(TOY | {"kl_coef": 0.0})), **settings).learn(64)


class WithoutPolicyKL(KLDictRolloutBuffer):
    """Control: the environment's reward alone, without the policy's half of the KL."""

    def add(self, obs: Any, action: Any, reward: Any, start: Any, value: Any, log_prob: torch.Tensor) -> None:  # type: ignore[override]
        super().add(obs, action, reward + self.kl_coef * log_prob.numpy(), start, value, log_prob)


@pytest.mark.slow
def test_ppo_goes_most_of_the_way_to_the_optimum() -> None:
    """With the language model and both halves of the KL; control: not without the policy's half."""
    envs = vec(num_envs=16, vocab_size=5, max_new_tokens=4, kl_coef=0.5)
    start = TransformerPolicy.for_env(envs)
    solution = exact.solve(envs)
    shares = []
    for buffer in (KLDictRolloutBuffer, WithoutPolicyKL):
        agent = PPO(
            CausalLMPolicy,
            envs,
            n_steps=16,
            batch_size=64,
            n_epochs=4,
            learning_rate=1e-3,
            gamma=1.0,
            seed=0,
            normalize_advantage=False,
            rollout_buffer_class=buffer,
            policy_kwargs={"language_model": start},
        )
        agent.learn(15_000)
        known = exact.evaluate(solution.tree, agent.policy.features_extractor.language_model)
        reference = solution.reference_objective
        shares.append((known.objective - reference) / (solution.objective - reference))
    assert shares[0] > 0.8 and shares[0] > shares[1] + 0.1
