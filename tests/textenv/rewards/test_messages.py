"""What reward functions get: texts for texts, messages for conversations, wherever the prompt came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.classifiers import random_classifier
from tests.helpers.completions import score_lists
from tests.helpers.tokenizers import byte_level
from textenv import TextEnv, TextMDP, TextVectorEnv
from textenv.rewards import RewardModel, WeightedReward, completion_text, vader
from textenv.testing import play

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
OTHER = [{"role": "user", "content": "world"}]
BEGUN = [*OTHER, {"role": "assistant", "content": "hello w"}]


class Recorder:
    """A reward of 1 that records what it gets."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> list[float]:
        """Scores each completion 1."""
        self.calls.append(arguments)
        return [1.0] * len(arguments["prompts"])


def task(reward: Any, prompts: Any, **arguments: Any) -> TextMDP:
    """A task on bytes."""
    return TextMDP(byte_level(), prompts, reward, max_new_tokens=12, max_prompt_length=200, **arguments)


@pytest.mark.parametrize(
    "rows",
    [
        [CHAT, BEGUN],
        [{"prompt": CHAT}, {"prompt": BEGUN}],
        [{"messages": CHAT}, {"messages": BEGUN}],
        [{"prompt": CHAT, "solution": "1"}, {"prompt": BEGUN, "solution": "2"}],
    ],
)
def test_a_conversation_is_scored_as_messages(rows: Any) -> None:
    """From the list, in each form, and from `reset`; the completion is one message of the assistant."""
    seen = Recorder()
    env = TextEnv(task(seen, rows))
    for prompt, messages in ((0, CHAT), (1, BEGUN), (OTHER, OTHER)):
        play(env, prompt, "world")
        call = seen.calls[-1]
        assert call["prompts"] == [messages]
        assert call["completions"] == [[{"role": "assistant", "content": "world"}]]
        assert env.unwrapped.mdp.decode(call["completion_ids"][0]) == "world"
    if "solution" in rows[0]:
        assert [call["solution"] for call in seen.calls] == [["1"], ["2"], [None]]


def test_texts_stay_texts() -> None:
    """Also the text that a template would write, and a prompt that is given as ids."""
    seen = Recorder()
    env = TextEnv(task(seen, ["hello", "world"]))
    for prompt in (0, "hello world", env.unwrapped.mdp.encode_completion("hello world").tolist()):
        play(env, prompt, "world")
        (prompts,), (completions,) = seen.calls[-1]["prompts"], seen.calls[-1]["completions"]
        assert type(prompts) is str and type(completions) is str and completions == "world"


def test_messages_are_the_functions_own() -> None:
    """A function that changes its messages changes neither the next function's nor the task's."""

    def spoils(prompts: Any, completions: Any, **_: Any) -> list[float]:
        before = [len(prompt) for prompt in prompts]
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt[0]["content"] = completion[0]["content"] = "spoilt"
            prompt.append({"role": "user", "content": "more"})
        return [float(count) for count in before]

    seen = Recorder()
    env = TextEnv(task([spoils, seen, spoils], [CHAT]))
    for _ in range(2):
        assert play(env, 0, "world").score == 2 + 1 + 2
        assert seen.calls.pop()["prompts"] == [CHAT]


def test_a_batch_is_scored_as_its_rows_alone() -> None:
    """Rows of a `TextVectorEnv` get the messages of their own prompts."""
    seen = Recorder()
    envs = TextVectorEnv(task(seen, [CHAT, OTHER]), 6)
    envs.reset(seed=0)
    drawn = envs.episodes.state.prompt.tolist()
    assert set(drawn) == {0, 1}
    envs.step(np.full(6, envs.mdp.eos_token_ids[0]))
    assert seen.calls[-1]["prompts"] == [[CHAT, OTHER][index] for index in drawn]
    assert seen.calls[-1]["completions"] == [[{"role": "assistant", "content": ""}]] * 6


def test_the_built_in_rewards_take_messages() -> None:
    """VADER and a reward model score a conversation's completion as they score a text; sums of them too."""
    pytest.importorskip("vaderSentiment")
    text, message = "this is wonderful", [{"role": "assistant", "content": "this is wonderful"}]
    assert vader(["x"], [text], [[1]]) == vader([OTHER], [message], [[1]]) != [0.0]
    assert completion_text(message) == completion_text(text) == text
    tokenizer = byte_level()
    model = RewardModel(random_classifier("llama", vocab_size=len(tokenizer), max_position_embeddings=200), tokenizer)
    env = TextEnv(task([model, vader], [CHAT], reward_weights=[1.0, 2.0]))
    expected = model([CHAT], [message])[0] + 2 * vader([CHAT], [message], [[1]])[0]
    tokens = env.unwrapped.mdp.encode_completion(text).tolist()
    scored = score_lists(WeightedReward([model, vader], [1.0, 2.0]), [CHAT], [message], [tokens], {})
    assert scored[0] == pytest.approx(expected)
    assert expected != pytest.approx(
        score_lists(WeightedReward([model, vader], [1.0, 2.0]), [OTHER], [message], [tokens], {})[0]
    )
    assert play(env, 0, "wonderful").score == pytest.approx(
        model([CHAT], ["wonderful"])[0] + 2 * vader([CHAT], ["wonderful"], [[1]])[0]
    )


def test_an_error_shows_the_texts() -> None:
    """The message of a reward that fails on a conversation has prompt and completion as text."""

    def reads_text(completions: Any, **_: Any) -> list[float]:
        return [float(len(completion.split())) for completion in completions]

    with pytest.raises(ValueError, match=r"AttributeError: 'list' object has no attribute 'split'.*'world'.*hello"):
        play(TextEnv(task(reads_text, [CHAT])), 0, "world")
