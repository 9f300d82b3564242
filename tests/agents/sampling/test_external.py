"""Agents in external environments, compared with the same environment of textenv."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from transformers import GPT2Config, GPT2LMHeadModel

from agents import PPO, REINFORCE, ActorCritic, Diverged
from agents.policy import TransformerPolicy
from agents.sampling import collect, collect_external, new_generator
from agents.sampling.external import _input_row
from agents.training import Batch
from tests.helpers.policies import random_policy
from tests.helpers.tasks import sparse
from textenv import exact

TOY = {"vocab_size": 3, "max_new_tokens": 3, "num_prompts": 2, "kl_coef": 0.5}


class Hidden(gym.Env[Any, Any]):
    """An environment of textenv disguised as an external one: right padding, and no KL."""

    def __init__(self, truncate_at: int | None = None, **arguments: Any) -> None:
        self.inner: Any = gym.make("textenv/Toy-v0", **(TOY | {"kl_coef": 0.0} | arguments)).unwrapped
        self.observation_space, self.action_space = self.inner.observation_space, spaces.Discrete(3)
        self.truncate_at = truncate_at

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.time = 0
        observation, _ = self.inner.reset(seed=seed)
        return self.right_padded(observation), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        observation, reward, terminated, _, _ = self.inner.step(action)
        truncated = self.time == self.truncate_at and not terminated
        return self.right_padded(observation), reward, terminated, truncated, {}

    def right_padded(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation with right padding, filled with a token that must be ignored."""
        mask = observation["attention_mask"] == 1
        ids = np.full_like(observation["input_ids"], 2)
        ids[: mask.sum()] = observation["input_ids"][mask]
        return {"input_ids": ids, "attention_mask": np.sort(observation["attention_mask"])[::-1].copy()}


class Masked(Hidden):
    """As `Hidden`, but only token 0 is allowed after a 1; after other tokens `info` has no mask."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.must_end = False
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        assert not self.must_end or action == 0, f"{action} is masked"
        *step, _ = super().step(action)
        self.must_end = action == 1
        return *step, ({"action_mask": np.array([1, 0, 0], dtype=np.int8)} if self.must_end else {})


class MaskInObservation(Masked):
    """As `Masked`, with the mask in every observation instead of the info."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed)
        return observation | {"action_mask": np.ones(3, dtype=np.int8)}, info

    def step(self, action: Any) -> Any:
        observation, *rest, info = super().step(action)
        return observation | {"action_mask": info.get("action_mask", np.ones(3, dtype=np.int8))}, *rest, {}


def float32_policy(env: Any, seed: int = 0) -> TransformerPolicy:
    """A policy with random weights."""
    return random_policy(env, seed=seed).float()


def test_an_external_environment_gives_the_rollouts_of_the_inner_one() -> None:
    """Same completions, log-probabilities, values and rewards as `collect`, whatever the padding; no KL."""
    env = Hidden()
    policy = float32_policy(env.inner)
    found = collect_external(env, policy, 200, generator=new_generator("cpu", 0))
    inner = collect(env.inner, policy, 512, generator=new_generator("cpu", 1))
    row_of = {}
    for row in range(len(inner)):
        prompt = inner.input_ids[row, : -inner.num_tokens][inner.attention_mask[row, : -inner.num_tokens] == 1]
        tokens = inner.tokens[row][inner.mask[row]]
        row_of[tuple(prompt.tolist()), tuple(tokens.tolist())] = row
    compared = set()
    for row in range(len(found)):
        length = int(found.mask[row].sum())
        first = found.input_ids[row, 0, :-1][found.attention_mask[row, 0, :-1] == 1]
        sequence = tuple(first.tolist()), tuple(found.tokens[row, :length].tolist())
        if sequence not in row_of:
            continue
        compared.add(sequence)
        for name in ("rewards", "log_probs", "values"):
            external, expected = getattr(found, name)[row], getattr(inner, name)[row_of[sequence]]
            torch.testing.assert_close(external[:length], expected[:length], rtol=0, atol=1e-5)
            assert not external[length:].any()
        assert found.scores[row] == pytest.approx(float(inner.rewards[row_of[sequence]].sum()), abs=1e-5)
    assert len(compared) >= 10
    assert found.attention_mask[..., :-1].any(dim=-1).all()  # padding steps have a token too
    evaluation = policy.evaluate_actions(found.input_ids, found.attention_mask, found.num_tokens)
    torch.testing.assert_close(evaluation.log_probs[found.mask], found.log_probs[found.mask], rtol=0, atol=1e-5)
    # control: a policy that attends to padding has other log-probabilities
    other = policy.evaluate_actions(found.input_ids, torch.ones_like(found.attention_mask), found.num_tokens)
    assert (other.log_probs[found.mask] - found.log_probs[found.mask]).abs().max() > 1e-2


def test_the_first_ratio_is_one_and_padding_has_no_gradient() -> None:
    """PPO's first minibatch has rho = 1; changing the tokens of padding steps does not change the loss."""
    env = Hidden()
    agent = PPO(float32_policy(env.inner), env, n_episodes=32, n_epochs=1, seed=0)
    rollout = agent.collect()
    advantages = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0))
    [(loss, info)] = agent.losses(Batch(rollout, advantages, rollout.rewards))
    assert float(info["val/ratio_error_max"]) < 1e-5
    rollout.input_ids[~rollout.mask] = 1
    [(again, _)] = agent.losses(Batch(rollout, advantages, rollout.rewards))
    assert float(again) == pytest.approx(float(loss), abs=1e-6)
    again.backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in agent.policy.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_a_truncated_episode_is_bootstrapped_and_a_terminated_one_is_not() -> None:
    """At a truncation, gamma V(s_T) is added to the last reward."""
    env = Hidden(truncate_at=2)
    policy = float32_policy(env.inner)
    with torch.no_grad():
        policy.value_head.bias += 10.0
    boot = collect_external(env, policy, 64, generator=new_generator("cpu", 0), gamma=0.5)
    none = collect_external(env, policy, 64, generator=new_generator("cpu", 0), gamma=0.0)
    truncated = ~boot.stopped
    assert truncated.any() and boot.stopped.any()
    assert torch.equal(boot.rewards[boot.stopped], none.rewards[boot.stopped])
    added = (boot.rewards - none.rewards)[truncated]
    assert not added[:, 0].any()
    with torch.no_grad():
        column = torch.zeros(int(truncated.sum()), 1, dtype=torch.long)
        ids = torch.cat([boot.input_ids[truncated][:, 1], column], dim=1)
        mask = torch.cat([boot.attention_mask[truncated][:, 1], column + 1], dim=1)
        torch.testing.assert_close(added[:, 1], 0.5 * policy.values(ids, mask, 1).squeeze(1), rtol=0, atol=1e-4)
    assert torch.equal(boot.scores, none.scores)  # the environment's own rewards


def test_without_a_critic_a_truncation_is_a_termination() -> None:
    """REINFORCE trains no V, so no V is added to a reward."""
    env = Hidden(truncate_at=2)
    policy = float32_policy(env.inner)
    with torch.no_grad():
        policy.value_head.bias += 10.0
    rollout = REINFORCE(policy, env, num_generations=1, baseline="mean", seed=0).collect()
    assert not rollout.stopped.all() and rollout.values is None
    torch.testing.assert_close(rollout.rewards.sum(dim=1), rollout.scores)
    boot = PPO(policy, env, seed=0).collect()  # control
    assert not torch.allclose(boot.rewards.sum(dim=1), boot.scores)


def test_masks_in_the_info_are_applied() -> None:
    """Masked actions are never sampled, and have probability 0 in the update too."""
    env = Masked()
    policy = float32_policy(env.inner)
    rollout = collect_external(env, policy, 64, generator=new_generator("cpu", 0))
    assert rollout.action_mask is not None
    allowed = rollout.action_mask.gather(2, rollout.tokens[..., None]).squeeze(2)
    assert allowed[rollout.mask].all() and not rollout.action_mask[rollout.mask].all()
    found = policy.evaluate_actions(
        rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
    ).log_probs
    torch.testing.assert_close(found[rollout.mask], rollout.log_probs[rollout.mask], rtol=0, atol=1e-5)
    after_one = torch.zeros_like(rollout.mask)
    after_one[:, 1:] = (rollout.tokens[:, :-1] == 1) & rollout.mask[:, 1:]
    assert torch.equal(~rollout.action_mask.all(dim=2) & rollout.mask, after_one)
    unmasked = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    assert (unmasked - rollout.log_probs)[after_one].abs().max() > 1e-2  # control
    agent = PPO(policy, env, n_episodes=16, seed=0).learn(20)
    assert all(parameter.isfinite().all() for parameter in agent.policy.parameters())


def test_masks_in_the_observation_are_applied() -> None:
    """In training and by `predict`, which has no info: the same as masks in the info."""
    env, with_mask = Masked(), MaskInObservation()
    policy = float32_policy(env.inner)
    rollout, expected = (collect_external(e, policy, 32, generator=new_generator("cpu", 0)) for e in (with_mask, env))
    assert expected.action_mask is not None and rollout.action_mask is not None
    assert torch.equal(rollout.action_mask, expected.action_mask) and torch.equal(rollout.tokens, expected.tokens)
    agent = PPO(policy, with_mask, seed=0)
    observation, _ = with_mask.reset(seed=0)
    only = np.arange(policy.vocab_size) == 2
    assert {int(agent.predict(observation | {"action_mask": only})[0]) for _ in range(20)} == {2}
    assert len({int(agent.predict(observation)[0]) for _ in range(50)}) > 1  # control


@pytest.mark.parametrize("agent", [PPO, ActorCritic, REINFORCE])
def test_every_agent_trains_saves_and_resumes(agent: Any, tmp_path: Path) -> None:
    """A resumed run equals an uninterrupted one; there are no KL metrics."""
    settings: dict[str, Any] = {"n_episodes": 8, "seed": 3}
    if agent is REINFORCE:
        settings |= {"num_generations": 1, "baseline": "mean"}
    updates: list[dict[str, float]] = []
    whole = agent(float32_policy(Hidden().inner), Hidden(), **settings)
    whole.learn(80, lambda agent, rollout, metrics: updates.append(metrics))
    assert all("objective/scores" in row and "objective/kl" not in row for row in updates)
    assert all(np.isfinite(value) for row in updates for value in row.values())
    stopped = agent(float32_policy(Hidden().inner), Hidden(), **settings).learn(40)
    stopped.save(tmp_path)
    resumed = agent.load(tmp_path, env=Hidden()).learn(80 - stopped.num_timesteps, reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps
    for one, other in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    action, _ = resumed.predict(Hidden().reset(seed=0)[0], deterministic=True)
    assert action in range(3)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Discrete(5), spaces.Discrete(3), "Dict of input_ids and attention_mask.*got Discrete"),
        (spaces.Dict(input_ids=spaces.MultiDiscrete([3, 3])), spaces.Discrete(3), "attention_mask"),
        (
            spaces.Dict(input_ids=spaces.Box(0, 1, (4,), np.float32), attention_mask=spaces.MultiBinary(4)),
            spaces.Discrete(3),
            "integers of one shape",
        ),
        (
            spaces.Dict(input_ids=spaces.MultiDiscrete([3] * 5), attention_mask=spaces.MultiBinary(4)),
            spaces.Discrete(3),
            "of one shape",
        ),
        (None, spaces.Discrete(4), r"must be Discrete\(3\), got Discrete\(4\)"),
        (None, spaces.Discrete(3, start=1), r"must be Discrete\(3\)"),
        (None, spaces.Box(0, 1, (3,)), "need a gym.ActionWrapper"),
        (
            spaces.Dict(input_ids=spaces.MultiDiscrete([9] * 4), attention_mask=spaces.MultiBinary(4)),
            spaces.Discrete(3),
            r"in 0 .. 2, the model's ids; the observation may have 0 .. 8",
        ),
        (
            spaces.Dict(input_ids=spaces.Box(-1, 2, (4,), np.int64), attention_mask=spaces.MultiBinary(4)),
            spaces.Discrete(3),
            r"may have -1 .. 2",
        ),
        (
            spaces.Dict(input_ids=spaces.MultiDiscrete([3] * 99), attention_mask=spaces.MultiBinary(99)),
            spaces.Discrete(3),
            "the observation has 99",
        ),
    ],
)
def test_spaces_that_do_not_fit_are_refused(observation: Any, action: Any, message: str) -> None:
    """Before any step; the error has the required space and the received one."""
    env = Hidden()
    policy = float32_policy(env.inner)
    env.observation_space = observation or env.observation_space
    env.action_space = action
    with pytest.raises(ValueError, match=message):
        PPO(policy, env)


def test_an_external_environment_without_tokens_is_refused() -> None:
    """By agents, since it has no token observations, and by for_env."""
    external = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="Agents need token observations"):
        PPO(random_policy(sparse()), external)
    with pytest.raises(TypeError, match="environment of textenv"):
        TransformerPolicy.for_env(external)


def test_the_row_of_an_observation() -> None:
    """Padding, which may be anywhere, is moved to the left; any id of the vocabulary may occur; a column is added."""
    policy = float32_policy(Hidden().inner)
    for padding in (0, 2):
        observation = {"input_ids": np.array([2, padding, 0, 1]), "attention_mask": np.array([1, 0, 1, 1])}
        ids, mask = _input_row(observation, policy)
        assert ids.tolist() == [padding, 2, 0, 1, 0] and mask.tolist() == [0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "info", "message"),
    [
        ({"attention_mask": np.zeros(4, dtype=np.int8)}, {}, "at least one token"),
        ({"input_ids": np.full(4, 3)}, {}, r"ids 0 .. 2 \(padding too\)"),
        ({"input_ids": np.full(4, -1)}, {}, r"ids 0 .. 2"),
        ({}, {"action_mask": np.zeros(3, dtype=np.int8)}, "allows no action"),
        ({}, {"action_mask": np.ones(4, dtype=np.int8)}, r"one value per action \(3\)"),
    ],
)
def test_observations_outside_the_spaces_are_refused(changes: Any, info: Any, message: str) -> None:
    """An observation or a mask outside the declared space is an error that contains it."""

    class Wrong(Hidden):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observation, _ = super().reset(seed=seed)
            return observation | changes, info

    env = Wrong()
    with pytest.raises(ValueError, match=message):
        PPO(float32_policy(env.inner), env, seed=0).learn(1)


@pytest.mark.parametrize("value", ["nan", "inf", "1e+39"])
def test_a_reward_that_is_not_finite_is_refused(value: str) -> None:
    """In float32, before an update, so the weights stay finite."""
    env = gym.wrappers.TransformReward(Hidden(), lambda reward: float(value))
    with pytest.raises(ValueError, match=f"finite number, got {re.escape(value)} for"):
        PPO(float32_policy(Hidden().inner), env, seed=0).learn(1)


def test_a_policy_that_is_not_finite_is_named() -> None:
    """Before an action is chosen; torch's own error would not say what to do. Control: the policy before."""
    env = Masked()
    policy = float32_policy(env.inner)
    agent = REINFORCE(policy, env, n_episodes=4, num_generations=1, baseline="mean", seed=0)
    agent.learn(1)
    with torch.no_grad():
        policy.model.lm_head.weight[:] = torch.nan
    with pytest.raises(Diverged, match=r"in update 1: .*not finite after 0 steps of an episode.*learning_rate"):
        agent.learn(1)


def test_settings_that_need_an_mdp_are_refused() -> None:
    """Groups, kl_target, the KL in the loss, continuations, batches; and `for_env` has no reference to start from."""
    env = Hidden()
    policy = float32_policy(env.inner)
    for settings in ({"num_generations": 2}, {"kl_target": 1.0}):
        with pytest.raises(ValueError, match="need an environment of textenv"):
            PPO(policy, env, **settings)
    with pytest.raises(ValueError, match="kl_in='loss' needs an environment of textenv"):
        PPO(policy, env, kl_in="loss")
    with pytest.raises(ValueError, match="credit='q' needs an environment of textenv"):
        REINFORCE(policy, env, credit="q", baseline=None, num_generations=1)
    with pytest.raises(TypeError, match="Agents also take a single environment of another library"):
        PPO(policy, gym.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(TypeError, match="Expected an environment of textenv"):
        TransformerPolicy.for_env(env)


def test_a_correction_needs_no_reference() -> None:
    """Log pi is computed again, the weights are 1 and the rewards as they were."""
    env = Hidden()
    agent = PPO(float32_policy(env.inner), env, sampler_correction="truncate", n_episodes=8, seed=0)
    rows: list[dict[str, float]] = []
    agent.learn(1, callback=lambda agent, rollout, metrics: rows.append(metrics))
    assert rows[0]["sampler/weight_avg"] == pytest.approx(1.0, abs=1e-5) and rows[0]["sampler/capped_ratio"] == 0.0


@pytest.mark.slow
def test_ppo_optimises_an_external_environment() -> None:
    """Its share of the way to the oracle's optimum is above 0.8; with flipped rewards it is negative."""
    shares = []
    for sign in (1.0, -1.0):
        env = gym.wrappers.TransformReward(Hidden(), lambda reward, sign=sign: sign * reward)  # type: ignore[misc]
        solution = exact.solve(env.unwrapped.inner)  # type: ignore[attr-defined]
        torch.manual_seed(0)
        shape = GPT2Config(vocab_size=3, n_embd=32, n_layer=1, n_head=2, n_positions=16)
        agent = PPO(TransformerPolicy(GPT2LMHeadModel(shape)), env, learning_rate=3e-3, seed=0)
        agent.learn(6_000)
        known = exact.evaluate(solution.tree, agent.policy)
        shares.append(solution.normalized_objective(known.objective))
    assert shares[0] > 0.8 > 0.0 > shares[1]
