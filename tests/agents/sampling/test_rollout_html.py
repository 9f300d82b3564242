"""A rollout in a notebook: the first completions, whatever its size; numbers are the rollout's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch

from agents.sampling import Rollout, collect, collect_external, new_generator
from tests.helpers.html import Page
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words


def sampled(n: int) -> Rollout:
    """Completions of TajMahal."""
    env = gym.make("textenv/TajMahal-v0")
    return collect(env, random_policy(env, scale=0.1), n, generator=new_generator("cpu", 0))


def test_each_token_has_its_numbers() -> None:
    """r_t, log pi, log pi_ref and V in the tooltip of each, score and return below."""
    rollout = sampled(3)
    page = Page(rollout._repr_html_())
    tokens = iter(page.tokens)
    for row in range(3):
        for t in torch.nonzero(rollout.mask[row])[:, 0].tolist():
            text, lines, _ = next(tokens)
            assert [text] == rollout.tokenizer.convert_ids_to_tokens([int(rollout.tokens[row, t])])
            shown = [float(line.rsplit(" ", 1)[1]) for line in lines[1:]]
            assert rollout.values is not None
            columns = (rollout.rewards, rollout.log_probs, rollout.ref_log_probs, rollout.values)
            assert shown == pytest.approx([float(x[row, t]) for x in columns], rel=1e-4, abs=1e-6)
        assert str(rollout.prompts[row]) in page.text and f"score {float(rollout.scores[row]):.4g}" in page.text
    assert next(tokens, None) is None
    assert f"3 completions, {int(rollout.mask.sum())} tokens, mean score" in page.text


def test_ten_thousand_completions_are_a_few() -> None:
    """As many bytes as for few, and the number of the others; so are long completions and prompts."""
    small = sampled(10)
    large = small[torch.arange(10).repeat(1000)]
    page = Page(large._repr_html_())
    assert "10,000 completions" in page.text and page.text.endswith("… 9,995 more completions")
    assert len(large._repr_html_()) < 1.05 * len(small._repr_html_()) < 30_000


def test_markup_and_skipped_completions() -> None:
    """Prompts are escaped; a completion whose reward failed says so; without a tokenizer tokens have their ids."""

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]]) -> list[float | None]:
        return [None, 1.0]

    task = words(reward=reward, on_reward_error="skip", reward_tries=1, reward_wait=0.0)
    env = make(task)
    with pytest.warns(UserWarning, match="skipped"):
        rollout = collect(env, random_policy(env, scale=0.1), 2, generator=new_generator("cpu", 0))
    rollout.prompts[0] = "<script>"
    page = Page(rollout._repr_html_())
    assert "<script> skipped: its reward failed" in page.text and "1 skipped" in page.text
    rollout.tokenizer = None
    assert all(text.startswith("<id ") for text, *_ in Page(rollout._repr_html_()).tokens)
    nothing = Page(rollout.without_strings()[:1]._repr_html_())
    assert nothing.tokens == [] and "1 skipped" in nothing.text


class Foreign(gym.Env[Any, Any]):
    """A toy disguised as an environment of another library."""

    def __init__(self) -> None:
        self.inner: Any = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3).unwrapped
        self.observation_space, self.action_space = self.inner.observation_space, gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed)[0], {}

    def step(self, action: Any) -> Any:
        return *self.inner.step(action)[:4], {}


def test_an_environment_of_another_library_has_no_reference() -> None:
    """No prompt, no log-ratio, and ids for tokens."""
    env = Foreign()
    rollout = collect_external(env, random_policy(env.inner, scale=0.1), 4, generator=new_generator("cpu", 0))
    page = Page(rollout._repr_html_())
    assert len(page.tokens) == int(rollout.mask.sum()) and page.tokens[0][0].startswith("<id ")
    assert "nan" not in page.text and "log-ratio" not in page.text and "None" not in page.text
