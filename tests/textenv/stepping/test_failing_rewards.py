"""A step whose reward fails is refused and changes nothing; tried again, it is the step that it would have been."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import RandomPolicy, assert_same, letter_values, make, random_reference, tasks, words
from textenv import TextMDP, TextVectorEnv
from textenv.rewards import RewardError
from textenv.wrappers import CompletionAction


class Flaky:
    """`letter_values`, which fails for as many calls as are `due`; with `arrays` it has `score_tokens` too."""

    __name__ = "flaky"

    def __init__(self, arrays: bool = False) -> None:
        self.due = 0
        self.failures = 0
        if arrays:
            self.score_tokens = self._from_arrays

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        """Scores completions."""
        return self._fail(len(prompts)) or letter_values(prompts, completions, completion_ids)

    def _from_arrays(self, prompt: Any, tokens: Any, length: Any) -> Any:
        ids = [row[:n] for row, n in zip(tokens.tolist(), length.tolist(), strict=True)]
        return self._fail(len(prompt)) or np.array(letter_values([words()["prompts"][i] for i in prompt], [], ids))

    def _fail(self, count: int) -> Any:
        """Raises, exits or returns a nan in turn, while calls are due to fail."""
        if self.due == 0:
            return None
        self.due -= 1
        self.failures += 1
        if self.failures % 3 == 0:
            raise SystemExit
        if self.failures % 3 == 1:
            raise ConnectionError
        return [float("nan")] * count


def generators(env: Any) -> Any:
    """What random numbers of an environment depend on."""
    episodes = env.unwrapped.episodes
    streams = {name: np.array(value) for name, value in vars(episodes.streams).items()}
    return streams | {"generator": env.unwrapped.np_random.bit_generator.state["state"]["state"] % 2**62}


def snapshot(env: Any) -> Any:
    """The state of an environment, with its generators."""
    env = env.unwrapped
    episodes = env.episodes
    inner = {} if not hasattr(episodes, "kl") else {"kl": episodes.kl.copy()}
    return (
        generators(env)
        | inner
        | {
            "state": {name: np.array(value) for name, value in vars(episodes.state).items()},
            "live": episodes.live.copy(),
            "ref_log_probs": np.array(episodes.ref_log_probs),
            "mask": env.action_masks(),
        }
    )


def allowed(mask: Any, rng: np.random.Generator) -> Any:
    """An allowed action of each row."""
    rows = np.atleast_2d(mask)
    actions = np.array([rng.choice(np.flatnonzero(row)) for row in rows])
    return actions if np.ndim(mask) == 2 else actions[0]


KINDS = ("single", "NextStep", "SameStep", "Disabled")


def environment(kind: str, arguments: dict[str, Any], policy: Any) -> Any:
    """A single environment, or a batch of three with an autoreset mode."""
    if kind == "single":
        return make(arguments, policy=policy)
    return TextVectorEnv(TextMDP(**arguments), 3, autoreset_mode=kind, policy=policy)


def play(env: Any, kind: str, reward: Flaky, due: list[int], seed: int) -> Iterator[Any]:
    """What each of some steps returns; step i is refused `due[i]` times before, if it calls the reward."""
    rng = np.random.default_rng(seed)
    yield env.reset(seed=seed)
    for failures in due:
        actions = allowed(env.unwrapped.action_masks(), rng)
        for _ in range(failures):
            before, reward.due = snapshot(env), 1
            try:
                step = env.step(actions)
            except RewardError:
                assert_same(snapshot(env), before)
            else:  # no completion ended
                reward.due = 0
                break
        else:
            step = env.step(actions)
        yield step
        ended = step[2]
        if np.any(ended) and kind == "single":
            yield env.reset()
        elif np.any(ended) and kind == "Disabled":
            yield env.reset(options={"reset_mask": np.asarray(ended)})


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    arguments=tasks(max_tokens=3),
    role=st.sampled_from(["reward", "gold_reward"]),
    arrays=st.booleans(),
    bound=st.booleans(),
    on_error=st.sampled_from(["raise", "retry", "skip"]),
    due=st.lists(st.integers(0, 2), min_size=6, max_size=12),
    seed=st.integers(0, 99),
)
def test_a_refused_step_changes_nothing(
    kind: str,
    arguments: dict[str, Any],
    role: str,
    arrays: bool,
    bound: bool,
    on_error: str,
    due: list[int],
    seed: int,
) -> None:
    """State, generators and what follows are those of an environment whose reward never failed, in every mode."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed) if bound else None
    arguments = arguments | {"prompts": words()["prompts"], "on_reward_error": on_error, "reward_tries": 1}
    played = []
    for refusals in (due, [0] * len(due)):
        reward = Flaky(arrays)
        env = environment(kind, arguments | {role: reward}, policy)
        played.append(list(play(env, kind, reward, refusals, seed)))
    assert_same(*played)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_refused(kind: str) -> None:
    """Control: the failures above reach the environment, also where skipping is allowed elsewhere."""
    for on_error in ("raise", "retry", "skip"):
        reward = Flaky()
        env = environment(kind, words(reward=reward, on_reward_error=on_error, reward_tries=2, reward_wait=0.0), None)
        env.reset(seed=0)
        reward.due = 99
        before = snapshot(env)
        with pytest.raises(RewardError, match="'flaky'"):
            env.step(0 if kind == "single" else np.zeros(3, dtype=np.int64))
        assert_same(snapshot(env), before)
        reward.due = 0
        env.step(0 if kind == "single" else np.zeros(3, dtype=np.int64))
        with pytest.raises(AssertionError):  # the comparison sees a step
            assert_same(snapshot(env), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_a_step_is_tried_again_within_the_environment(kind: str, on_error: str) -> None:
    """The agent does not notice a call that fails once."""
    reward = Flaky()
    env = environment(kind, words(reward=reward, on_reward_error=on_error, reward_tries=3, reward_wait=0.0), None)
    env.reset(seed=0)
    reward.due = 2
    env.step(0 if kind == "single" else np.zeros(3, dtype=np.int64))
    assert reward.failures == 2


def test_a_table_of_a_failing_reward_is_not_made() -> None:
    """A batch tabulates a task when it is made. If its reward fails there, it fails in the step that needs it."""
    reward = Flaky(arrays=True)
    reward.due = 10**6
    envs = TextVectorEnv(TextMDP(**words(reward=reward)), 2)
    envs.reset(seed=0)
    before = snapshot(envs)
    with pytest.raises(RewardError, match="'flaky'"):
        envs.step(np.array([0, 1]))
    assert_same(snapshot(envs), before)
    reward.due = 0
    twin = TextVectorEnv(TextMDP(**words(reward=Flaky(arrays=True))), 2)
    assert type(twin.episodes.backend) is not type(envs.episodes.backend)
    twin.reset(seed=0)
    assert_same(envs.step(np.array([0, 1])), twin.step(np.array([0, 1])))


def test_a_refused_completion_changes_nothing() -> None:
    """Of `CompletionAction`, which steps through its tokens: the same completion can be taken again."""
    reward = Flaky()
    arguments = words(reward=reward, reference=random_reference(4, 1, sparse=False))
    env = CompletionAction(gym.wrappers.TimeLimit(make(arguments), 5))
    twin = CompletionAction(gym.wrappers.TimeLimit(make(arguments), 5))
    for each in (env, twin):
        each.reset(seed=3)
    reward.due, before = 1, snapshot(env)
    with pytest.raises(RewardError):
        env.step("a b")
    assert_same(snapshot(env), before)
    assert_same(env.step("a b"), twin.step("a b"))
