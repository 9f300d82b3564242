"""RLlib's PPO, unforked, on texts (`make rllib`: it needs an environment of its own)."""

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
    """Ray, for one test."""
    ray.init(include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def learned_from(payments: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, list[tuple[Any, Any, Any]]]:
    """One update of step size 0: the module that wrote, the environment, and of each text observations, tokens, and the
    rewards that the learner computes its advantages from.

    Args:
        payments: how often `pay_kl` is called, which the example does once.
    """
    env: Any = gym.make("textenv/TajMahal-v0")
    pay = partial(rllib_ppo.pay_kl, kl_coef=env.unwrapped.mdp.kl_coef)
    config = rllib_ppo.make_config(rllib_ppo.Args(num_envs=8), env.unwrapped.mdp.kl_coef)
    config.training(train_batch_size=200, minibatch_size=200, lr=0.0)
    if payments != 1:
        config.callbacks(on_sample_end=[pay] * payments)
    seen: list[tuple[Any, Any, Any]] = []
    advantages = GeneralAdvantageEstimation.__call__

    def watched(self: Any, *, episodes: list[Any], batch: dict[str, Any], **others: Any) -> Any:
        ends = np.cumsum([len(episode) for episode in episodes])
        rewards = np.split(np.asarray(batch["default_policy"]["rewards"]), ends[:-1])
        for episode, paid in zip(episodes, rewards, strict=True):  # RLlib has added a step beyond each end
            assert episode.is_terminated and not episode.is_truncated
            seen.append((episode.get_observations(), episode.get_actions()[:-1], paid[:-1].copy()))
        return advantages(self, episodes=episodes, batch=batch, **others)

    monkeypatch.setattr(GeneralAdvantageEstimation, "__call__", watched)
    algorithm = config.build_algo()
    algorithm.train()
    module = algorithm.get_module()
    algorithm.stop()
    return module, env, seen


@pytest.mark.parametrize("payments", [1, 0, 2])
def test_the_learner_is_paid_the_whole_reward(cluster: None, payments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reward by reward what the environment pays where the policy is bound, in what advantages are computed from; paid
    never or twice (controls) it is not. Masked tokens are never written."""
    module, env, texts = learned_from(payments, monkeypatch)
    assert len(texts) >= 30
    env.unwrapped.bind_policy(module)
    width = env.unwrapped.mdp.prompt_width
    errors = []
    for observations, tokens, rewards in texts:
        prompt = observations["input_ids"][0, :width][observations["attention_mask"][0, :width] == 1]
        whole = play(env, prompt.tolist(), tokens.tolist()).rewards
        errors += np.abs(rewards - whole).tolist()
        masks = observations["action_mask"][: len(tokens)]
        assert masks[np.arange(len(tokens)), tokens].all() and not masks.all()
    assert max(errors) < 1e-5 if payments == 1 else max(errors) > 0.1


@pytest.mark.slow
def test_it_learns_taj_mahal() -> None:
    """Thirty thousand tokens bring it more than half of the way to the exact optimum, and Ray is gone afterwards."""
    _, share = rllib_ppo.train(rllib_ppo.Args(total_timesteps=30_000))
    assert share > 0.5
    assert not ray.is_initialized()
