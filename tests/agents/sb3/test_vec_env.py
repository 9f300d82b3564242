"""`TextVecEnv` with Stable-Baselines3, unmodified: its steps, and the setups that it refuses."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from agents.sb3 import CausalLMPolicy, TextVecEnv
from tests.helpers.policies import random_policy
from tests.helpers.sb3 import TOY, vec
from textenv import get_mdp
from textenv.wrappers import FlatTokens


def test_it_equals_a_loop_over_single_environments() -> None:
    """In each row and its infos, at ends too, `TextVecEnv` equals Stable-Baselines3's `DummyVecEnv`."""
    envs = vec(num_envs=3, **TOY)
    loop = DummyVecEnv([lambda: gym.make("textenv/Toy-v0", **TOY) for _ in range(3)])
    envs.seed(5)
    loop.seed(5)
    ours, theirs = envs.reset(), loop.reset()
    rng = np.random.default_rng(0)
    for _ in range(25):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
        actions = rng.integers(3, size=3)
        ours, rewards, dones, infos = envs.step(actions)
        theirs, their_rewards, their_dones, their_infos = loop.step(actions)
        np.testing.assert_allclose(rewards, their_rewards, atol=1e-6)
        np.testing.assert_array_equal(dones, their_dones)
        for info, other, reward in zip(infos, their_infos, rewards, strict=True):
            assert info["TimeLimit.truncated"] is other["TimeLimit.truncated"] is False
            assert {"action_mask", "ref_log_prob", "reward_terms"} < set(info) == set(other)
            np.testing.assert_equal(info, other)  # compares nested dicts and arrays too
            assert sum(info["reward_terms"].values()) == pytest.approx(reward, abs=1e-6)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_are_refused(mode: str) -> None:
    """A dead step would be stored as a transition; the error has the required mode."""
    with pytest.raises(ValueError, match=r"autoreset_mode='SameStep'.*dead step"):
        TextVecEnv(gym.make_vec("textenv/Toy-v0", num_envs=2, autoreset_mode=mode))
    with pytest.raises(TypeError, match=r"gym.make_vec\('textenv"):
        TextVecEnv(gym.make("textenv/Toy-v0"))


def test_setups_with_wrong_rewards_are_refused() -> None:
    """Wrappers that would be bypassed, a bound policy whose KL would count twice, options, another architecture."""
    inner = gym.make_vec("textenv/Toy-v0", num_envs=2, autoreset_mode="SameStep", **TOY)
    with pytest.raises(TypeError, match="without wrappers, which it would bypass, got TransformReward"):
        TextVecEnv(gym.wrappers.vector.TransformReward(inner, lambda reward: reward + 7))
    envs = vec(**TOY)
    language_model = random_policy(envs).float()
    agent = PPO(CausalLMPolicy, envs, n_steps=8, policy_kwargs={"language_model": language_model})
    envs.envs.bind_policy(language_model)
    with pytest.raises(ValueError, match=r"bind_policy\(None\).*bind a single environment"):
        agent.learn(16)
    envs.envs.bind_policy(None)
    envs.set_options({"prompt": "a"})
    with pytest.raises(ValueError, match="takes no options"):
        envs.reset()


@pytest.mark.parametrize(
    "name",
    ["net_arch", "features_extractor_class", "features_extractor_kwargs", "share_features_extractor", "ortho_init"],
)
def test_the_architecture_cannot_be_chosen(name: str) -> None:
    """Each argument of Stable-Baselines3 that would change it. Control: `optimizer_kwargs`, which would not."""
    language_model = random_policy(vec(**TOY)).float()
    with pytest.raises(TypeError, match=f"leave out {name}"):
        PPO(CausalLMPolicy, vec(**TOY), policy_kwargs={"language_model": language_model, name: {}})
    PPO(CausalLMPolicy, vec(**TOY), policy_kwargs={"language_model": language_model, "optimizer_kwargs": {}})


@pytest.mark.parametrize("masks", [False, True])
def test_observations_are_in_their_space(masks: bool) -> None:
    """Of every row and step, and at ends; a mask has values in 0 .. 1. Control: numbers outside are not."""
    envs = TextVecEnv(vec("textenv/TajMahal-v0").envs, mask_in_observation=masks)
    space, observation, ends = envs.observation_space, envs.reset(), 0
    for _ in range(12):
        rows = [{name: values[row] for name, values in observation.items()} for row in range(envs.num_envs)]
        assert all(space.contains(row) for row in rows)
        allowed = envs.envs.action_masks()
        assert not masks or [row["action_mask"].tolist() for row in rows] == allowed.astype(int).tolist()
        observation, _, dones, infos = envs.step(allowed.argmax(axis=1))
        assert all(space.contains(infos[row]["terminal_observation"]) for row in np.flatnonzero(dones))
        ends += int(dones.sum())
    assert ends > 0 and set(space.spaces) == {"input_ids", "attention_mask", *(["action_mask"] if masks else [])}
    for name in space.spaces:
        assert not space.contains(rows[0] | {name: np.full_like(rows[0][name], -1)})
        assert name == "input_ids" or not space.contains(rows[0] | {name: np.full_like(rows[0][name], 2)})


def test_the_rows_are_one_environment() -> None:
    """An attribute is set for all rows or none; the MDP is found through wrappers of Stable-Baselines3."""
    envs = vec(**TOY)
    with pytest.raises(ValueError, match="num_things is set for all of them"):
        envs.set_attr("num_things", 3, indices=[0])
    envs.set_attr("num_things", 3)
    assert envs.get_attr("num_things", indices=[1]) == [3] and envs.get_attr("num_things") == [3] * 4
    assert envs.env_is_wrapped(VecMonitor, indices=[1, 2]) == [False] * 2
    assert envs.env_is_wrapped(VecMonitor) == [False] * 4
    wrapped = VecMonitor(envs)
    assert wrapped.unwrapped is envs and get_mdp(wrapped) is envs.mdp and wrapped.unwrapped.prompts


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
@pytest.mark.parametrize("flat", [False, True])
def test_plain_networks_run_on_dict_and_on_flat_observations(algorithm: Any, flat: bool) -> None:
    """Its own policies take the `Dict`, and with `FlatTokens` a `MultiDiscrete`, which they one-hot encode."""
    envs = DummyVecEnv([lambda: FlatTokens(gym.make("textenv/Toy-v0", **TOY))]) if flat else vec(num_envs=1, **TOY)
    options: dict[str, Any] = {"learning_starts": 20} if algorithm is DQN else {"n_steps": 16}
    agent = algorithm("MlpPolicy" if flat else "MultiInputPolicy", VecMonitor(envs), seed=0, **options)
    agent.learn(64)
    assert agent.num_timesteps >= 64 and len(agent.ep_info_buffer) > 5


@pytest.mark.parametrize("arrange", [lambda envs: envs.set_options({"prompt": "a"}), lambda envs: envs.seed(-1)])
def test_a_refused_reset_leaves_nothing(arrange: Any) -> None:
    """Neither its options nor its seeds: the next reset is an ordinary one."""
    envs, twin = vec(**TOY), vec(**TOY)
    arrange(envs)
    with pytest.raises(ValueError):
        envs.reset()
    for each in (envs, twin):
        each.seed(3)
    for name, values in envs.reset().items():
        np.testing.assert_array_equal(values, twin.reset()[name])
        twin.seed(3)
