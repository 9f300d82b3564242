"""Which wrappers fit on each other, and which of them the oracle and agents refuse."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from textenv import exact, get_mdp
from textenv.wrappers import CompletionAction, FlatTokens, MaskInObservation


class DoubleReward(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that a user wrote, which is none of Gymnasium's."""

    def step(self, action: Any) -> Any:
        """Doubles the reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 2 * float(reward), terminated, truncated, info


def time_limit(env: Any) -> Any:
    """Truncates after two tokens."""
    return gym.wrappers.TimeLimit(env, max_episode_steps=2)


CHANGES = [CompletionAction, FlatTokens, MaskInObservation, DoubleReward, gym.wrappers.NormalizeReward, time_limit]


@pytest.mark.parametrize("wrap", CHANGES)
def test_wrappers_that_change_the_mdp_are_refused(wrap: Any) -> None:
    """The oracle and agents use the MDP without the wrapper; wrappers that only record are accepted."""
    env = wrap(gym.make("textenv/Toy-v0"))
    with pytest.raises(TypeError, match=f"{type(env).__name__} may change observations, actions or rewards"):
        exact.solve(env)
    assert get_mdp(gym.wrappers.RecordEpisodeStatistics(gym.make("textenv/Toy-v0")))


def test_vector_wrappers_are_refused_too() -> None:
    """Gymnasium's vector wrappers that change rewards; those that only record are accepted."""
    envs = gym.make_vec("textenv/Toy-v0", num_envs=2)
    with pytest.raises(TypeError, match="NormalizeReward may change"):
        get_mdp(gym.wrappers.vector.NormalizeReward(envs))
    assert get_mdp(gym.wrappers.vector.RecordEpisodeStatistics(envs))


@pytest.mark.parametrize("wrapper", [FlatTokens, CompletionAction])
def test_other_environments_are_refused(wrapper: Any) -> None:
    """The wrappers require a text environment."""
    with pytest.raises(TypeError, match=r"single environment.*got CartPoleEnv"):
        wrapper(gym.make("CartPole-v1"))


def test_wrappers_that_do_not_fit_on_each_other_are_refused() -> None:
    """Where the inner wrapper removed what the outer one changes, or added what the outer one would drop."""
    toy = gym.make("textenv/Toy-v0")
    for inner in (CompletionAction(toy), FlatTokens(toy), MaskInObservation(toy)):
        with pytest.raises(ValueError, match="FlatTokens needs a Dict of input_ids and attention_mask"):
            FlatTokens(inner)
    with pytest.raises(ValueError, match="CompletionAction needs an environment whose actions are tokens"):
        CompletionAction(CompletionAction(toy))


def test_a_sync_vector_env_is_refused_with_advice() -> None:
    """`gym.make_vec` with a vectorization_mode makes Gymnasium's own vector environment."""
    with pytest.raises(TypeError, match="gym.make_vec without a vectorization_mode.*got SyncVectorEnv"):
        exact.solve(gym.make_vec("textenv/Toy-v0", num_envs=2, vectorization_mode="sync"))
