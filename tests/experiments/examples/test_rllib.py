"""RLlib's PPO, unmodified (`make rllib`: it needs a virtual environment of its own)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

ray = pytest.importorskip("ray")

from ray.rllib.connectors.learner import GeneralAdvantageEstimation  # noqa: E402

from experiments.examples import rllib_ppo  # noqa: E402, it needs ray
from textenv.testing import play  # noqa: E402


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray for one test."""
    ray.init(include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def trained_episodes(calls: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, list[tuple[Any, Any, Any]]]:
    """Runs one update of step size 0.

    Args:
        calls: how often `add_policy_kl` is called; the example calls it once.

    Returns:
        The module that sampled, the environment, and for each episode its observations, its tokens, and the rewards
        from which the learner computes advantages.
    """
    env: Any = gym.make("textenv/TajMahal-v0")
    add_kl = partial(rllib_ppo.add_policy_kl, kl_coef=env.unwrapped.mdp.kl_coef)
    config = rllib_ppo.make_config(rllib_ppo.Args(num_envs=8), env.unwrapped.mdp.kl_coef)
    config.training(train_batch_size=200, minibatch_size=200, lr=0.0)
    if calls != 1:
        config.callbacks(on_sample_end=[add_kl] * calls)
    recorded: list[tuple[Any, Any, Any]] = []
    advantages = GeneralAdvantageEstimation.__call__

    def recorded_call(self: Any, *, episodes: list[Any], batch: dict[str, Any], **others: Any) -> Any:
        ends = np.cumsum([len(episode) for episode in episodes])
        rewards = np.split(np.asarray(batch["default_policy"]["rewards"]), ends[:-1])
        for episode, episode_rewards in zip(episodes, rewards, strict=True):  # RLlib has added a step after each end
            assert episode.is_terminated and not episode.is_truncated
            recorded.append((episode.get_observations(), episode.get_actions()[:-1], episode_rewards[:-1].copy()))
        return advantages(self, episodes=episodes, batch=batch, **others)

    monkeypatch.setattr(GeneralAdvantageEstimation, "__call__", recorded_call)
    algorithm = config.build_algo()
    algorithm.train()
    module = algorithm.get_module()
    algorithm.stop()
    return module, env, recorded


@pytest.mark.parametrize("calls", [1, 0, 2])
def test_the_learner_gets_the_whole_reward(cluster: None, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rewards equal those of the environment with a bound policy; with zero or two calls (controls) they do not.

    Masked tokens are never sampled.
    """
    module, env, episodes = trained_episodes(calls, monkeypatch)
    assert len(episodes) >= 30
    env.unwrapped.bind_policy(module)
    width = env.unwrapped.mdp.prompt_width
    errors = []
    for observations, tokens, rewards in episodes:
        prompt = observations["input_ids"][0, :width][observations["attention_mask"][0, :width] == 1]
        whole = play(env, prompt.tolist(), tokens.tolist()).rewards
        errors += np.abs(rewards - whole).tolist()
        masks = observations["action_mask"][: len(tokens)]
        assert masks[np.arange(len(tokens)), tokens].all() and not masks.all()
    assert max(errors) < 1e-5 if calls == 1 else max(errors) > 0.1


@pytest.mark.slow
def test_it_learns_taj_mahal() -> None:
    """The share of the way exceeds 0.5 after 30,000 tokens, and Ray is shut down afterwards."""
    _, share = rllib_ppo.train(rllib_ppo.Args(total_timesteps=30_000))
    assert share > 0.5
    assert not ray.is_initialized()
