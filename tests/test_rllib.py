"""RLlib's PPO, unforked, on texts (`make rllib`: it needs an environment of its own)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

ray = pytest.importorskip("ray")

from experiments.examples import rllib_ppo  # noqa: E402, it needs ray
from textenv.testing import play  # noqa: E402


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray, for one test."""
    ray.init(include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def written(kl_coef: float) -> tuple[Any, Any, list[Any]]:
    """One update: the module that wrote, the environment, and the episodes as they leave the env runner."""
    env: Any = gym.make("textenv/TajMahal-v0")
    kept: list[Any] = []
    pay = partial(rllib_ppo.pay_kl, kl_coef=kl_coef)
    config = rllib_ppo.make_config(rllib_ppo.Args(num_envs=8), kl_coef)
    config.training(train_batch_size=200, minibatch_size=200, lr=0.0)
    config.callbacks(on_sample_end=[pay, lambda samples, **kwargs: kept.extend(samples)])
    algorithm = config.build_algo()
    episodes = algorithm.env_runner.sample(num_episodes=40)
    assert {e.id_ for e in episodes} == {e.id_ for e in kept}
    module = algorithm.get_module()
    algorithm.stop()
    return module, env, episodes


def test_the_learner_is_paid_the_whole_reward(cluster: None) -> None:
    """Reward by reward what the environment pays where the policy is bound; masked tokens are never written."""
    module, env, episodes = written(0.1)
    assert env.unwrapped.process.kl_coef == 0.1 and len(episodes) >= 40
    env.unwrapped.bind_policy(module)
    width = env.unwrapped.process.prompt_width
    halves = []
    for episode in episodes:
        observations, tokens = episode.get_observations(), episode.get_actions()
        prompt = observations["input_ids"][0, :width][observations["attention_mask"][0, :width] == 1]
        whole = play(env, prompt.tolist(), tokens.tolist())
        np.testing.assert_allclose(episode.get_rewards(), whole.rewards, atol=1e-5)
        assert episode.is_terminated and not episode.is_truncated
        masks = observations["action_mask"][: len(tokens)]
        assert masks[np.arange(len(tokens)), tokens].all() and not masks.all()
        halves += np.abs(whole.terms["kl_policy"]).tolist()
    assert max(halves) > 0.1  # control: what the environment pays alone is something else


def test_an_update_leaves_the_rewards_as_they_are(cluster: None) -> None:
    """Learning pays nothing a second time: two updates with a step size of 0 see the same return on average."""
    config = rllib_ppo.make_config(rllib_ppo.Args(num_envs=8), 0.1)
    paid: list[float] = []
    config.callbacks(
        on_sample_end=[
            config.callbacks_on_sample_end,
            lambda samples, **kwargs: paid.extend(float(e.get_rewards().sum()) for e in samples),
        ]
    )
    config.training(train_batch_size=1024, minibatch_size=1024, lr=0.0)
    algorithm = config.build_algo()
    algorithm.train()
    first = len(paid)
    algorithm.train()
    algorithm.stop()
    error = np.std(paid) * np.sqrt(1 / first + 1 / (len(paid) - first))
    assert abs(np.mean(paid[:first]) - np.mean(paid[first:])) < 4 * error


@pytest.mark.slow
def test_it_learns_taj_mahal() -> None:
    """Thirty thousand tokens bring it more than half of the way to the exact optimum, and Ray is gone afterwards."""
    _, share = rllib_ppo.train(rllib_ppo.Args(total_timesteps=30_000))
    assert share > 0.5
    assert not ray.is_initialized()
