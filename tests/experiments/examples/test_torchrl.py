"""TorchRL's environments over ours (`make torchrl`: TorchRL is heavy, so it has a virtual environment of its own)."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("torchrl")

from torchrl.envs import ActionMask, GymEnv, GymWrapper, TransformedEnv
from torchrl.envs.utils import check_env_specs

import textenv  # noqa: F401, registers the environments
from textenv.testing import play
from textenv.wrappers import FlatTokens, MaskInObservation, TerminateIllegal

TAJ_MAHAL = "textenv/TajMahal-v0"


def masked() -> Any:
    """TajMahal with its masks, as TorchRL takes them: in the observation, applied by a transform."""
    return TransformedEnv(GymWrapper(MaskInObservation(gym.make(TAJ_MAHAL))), ActionMask())


def unmasked() -> Any:
    """TajMahal for an agent without masks."""
    return GymWrapper(TerminateIllegal(gym.make(TAJ_MAHAL), -1.0))


ENVIRONMENTS = {
    "GymEnv": lambda: GymEnv("textenv/Toy-v0"),
    "categorical": lambda: GymEnv("textenv/Toy-v0", categorical_action_encoding=True),
    "masked": masked,
    "unmasked": unmasked,
    "unmasked, batched": lambda: GymWrapper(
        TerminateIllegal(gym.make_vec(TAJ_MAHAL, num_envs=2, autoreset_mode="Disabled"), -1.0)
    ),
    "flat": lambda: GymWrapper(FlatTokens(TerminateIllegal(gym.make(TAJ_MAHAL), -1.0))),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_specs_are_those_of_a_rollout(name: str) -> None:
    """TorchRL's own check."""
    check_env_specs(ENVIRONMENTS[name]())


class WrongShape(gym.ObservationWrapper[Any, Any, Any]):
    """Returns one column more than the space has."""

    def observation(self, observation: Any) -> Any:
        """A longer observation."""
        return {name: np.append(values, values[:1]) for name, values in observation.items()}


def test_the_check_refuses_another_shape() -> None:
    """Negative control."""
    with pytest.raises(Exception, match=r"shape|size|spec"):
        check_env_specs(GymWrapper(WrongShape(gym.make("textenv/Toy-v0"))))


def test_a_rollout_has_the_environments_rewards() -> None:
    """Of each completion: the rewards of the same tokens, played; no masked token is taken."""
    env, plain = masked(), gym.make(TAJ_MAHAL)
    width = plain.unwrapped.mdp.prompt_width  # type: ignore[attr-defined]
    for seed in range(5):
        env.set_seed(seed)
        steps = env.rollout(20)
        ids, attention = steps["input_ids"][0, :width], steps["attention_mask"][0, :width]
        episode = play(plain, ids[attention == 1].tolist(), steps["action"].long().argmax(dim=-1).tolist())
        assert bool(steps["next", "terminated"][-1]) and not steps["next", "truncated"].any()
        np.testing.assert_allclose(steps["next", "reward"].flatten().numpy(), episode.rewards, rtol=1e-6)


def test_a_masked_token_ends_the_episode() -> None:
    """With the reward of the wrapper, in a rollout that goes on after it."""
    steps = unmasked().rollout(200, break_when_any_done=False)
    rewards, ends = steps["next", "reward"].flatten(), steps["next", "terminated"].flatten()
    assert len(rewards) == 200 and (ends[rewards == -1.0]).all() and (rewards == -1.0).sum() > 5
