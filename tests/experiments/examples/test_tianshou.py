"""Tianshou's PPO, unmodified (`make tianshou`: it needs a virtual environment of its own)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("tianshou")

from experiments.examples import tianshou_ppo
from textenv.testing import play


def episodes(kl_coef: float | None) -> tuple[Any, Any, list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]]:
    """The episodes in the buffer of 8 TajMahal environments: prompt ids, tokens, rewards and masks of each."""
    algorithm, collector, env = tianshou_ppo.make(tianshou_ppo.Args(num_envs=8))
    if kl_coef is not None:
        collector.set_on_step_hook(tianshou_ppo.AddPolicyKL(kl_coef))
    collector.reset()
    collector.collect(n_episode=40)
    recorded = []
    width = env.unwrapped.mdp.prompt_width
    for buffer in collector.buffer.buffers:
        steps = buffer[:]
        start = 0
        for end in np.flatnonzero(steps.terminated) + 1:
            prompt = steps.obs.input_ids[start, :width][steps.obs.attention_mask[start, :width] == 1]
            recorded.append((prompt, steps.act[start:end], steps.rew[start:end], steps.obs.mask[start:end]))
            start = end
        assert not steps.truncated.any()
    return algorithm, env, recorded


def test_the_buffer_has_the_whole_reward() -> None:
    """Its rewards equal those of the environment with a bound policy; without the hook (control) they do not."""
    algorithm, env, recorded = episodes(None)
    _, _, halves = episodes(0.0)
    env.unwrapped.bind_policy(algorithm.policy.actor)
    assert len(recorded) >= 40
    differences = []
    for (prompt, tokens, rewards, _), (_, same, half, _) in zip(recorded, halves, strict=True):
        whole = play(env, prompt.tolist(), tokens.tolist()).rewards
        np.testing.assert_allclose(rewards, whole, atol=1e-5)
        np.testing.assert_array_equal(tokens, same)
        differences += np.abs(half - whole).tolist()
    assert max(differences) > 0.1


def test_masked_tokens_are_never_sampled() -> None:
    """In the buffer, and in the distribution of the update."""
    algorithm, _, recorded = episodes(None)
    for _, tokens, _, masks in recorded:
        assert masks[np.arange(len(tokens)), tokens].all() and not masks.all()
    _, collector, _ = tianshou_ppo.make(tianshou_ppo.Args(num_envs=2))
    collector.reset()
    collector.collect(n_step=32)
    batch, _ = collector.buffer.sample(0)
    probs = algorithm.policy(batch).dist.probs.detach().numpy()
    assert not probs[batch.obs.mask == 0].any() and (probs[batch.obs.mask == 1] > 0).all()


@pytest.mark.slow
def test_it_learns_taj_mahal() -> None:
    """The share of the way exceeds 0.7 after 30,000 tokens."""
    _, share = tianshou_ppo.train(tianshou_ppo.Args(total_timesteps=30_000))
    assert share > 0.7
