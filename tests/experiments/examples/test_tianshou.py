"""Tianshou's PPO, unforked, on texts (`make tianshou`: it needs an environment of its own)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tianshou")

from experiments.examples import tianshou_ppo
from textenv.testing import play


def episodes(kl_coef: float | None) -> tuple[Any, Any, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]]:
    """What 8 texts of TajMahal leave in the buffer: prompt ids, tokens, rewards and masks of each episode."""
    algorithm, collector, env = tianshou_ppo.make(tianshou_ppo.Args(num_envs=8))
    if kl_coef is not None:
        collector.set_on_step_hook(tianshou_ppo.PayKL(kl_coef))
    collector.reset()
    collector.collect(n_episode=40)
    found = []
    width = env.unwrapped.mdp.prompt_width
    for buffer in collector.buffer.buffers:
        steps = buffer[:]
        begin = 0
        for end in np.flatnonzero(steps.terminated) + 1:
            prompt = steps.obs.input_ids[begin, :width][steps.obs.attention_mask[begin, :width] == 1]
            found.append((prompt, steps.act[begin:end], steps.rew[begin:end], steps.obs.mask[begin:end]))
            begin = end
        assert not steps.truncated.any()
    return algorithm, env, found


def test_the_buffer_is_paid_the_whole_reward() -> None:
    """Reward by reward what the environment pays where the policy is bound; without the hook's half it is not."""
    algorithm, env, found = episodes(None)
    _, _, halves = episodes(0.0)
    env.unwrapped.bind_policy(algorithm.policy.actor)
    assert len(found) >= 40
    differences = []
    for (prompt, tokens, rewards, _), (_, same, half, _) in zip(found, halves, strict=True):
        whole = play(env, prompt.tolist(), tokens.tolist()).rewards
        np.testing.assert_allclose(rewards, whole, atol=1e-5)
        np.testing.assert_array_equal(tokens, same)
        differences += np.abs(half - whole).tolist()
    assert max(differences) > 0.1


def test_masked_tokens_are_never_written() -> None:
    """In the buffer, and in the distribution that the update asks for."""
    algorithm, _, found = episodes(None)
    for _, tokens, _, masks in found:
        assert masks[np.arange(len(tokens)), tokens].all() and not masks.all()
    _, collector, _ = tianshou_ppo.make(tianshou_ppo.Args(num_envs=2))
    collector.reset()
    collector.collect(n_step=32)
    batch, _ = collector.buffer.sample(0)
    probs = algorithm.policy(batch).dist.probs.detach().numpy()
    assert not probs[batch.obs.mask == 0].any() and (probs[batch.obs.mask == 1] > 0).all()


@pytest.mark.slow
def test_it_learns_taj_mahal() -> None:
    """Thirty thousand tokens bring it most of the way to the exact optimum."""
    _, share = tianshou_ppo.train(tianshou_ppo.Args(total_timesteps=30_000))
    assert share > 0.7
