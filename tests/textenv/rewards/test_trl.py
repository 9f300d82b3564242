"""Rewards written for TRL, unchanged (`make trl`: it needs a virtual environment of its own)."""

from __future__ import annotations

import asyncio
import re
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.helpers.completions import score_lists

pytest.importorskip("trl")

from trl import GRPOTrainer, rewards

from tests.helpers.tokenizers import byte_level
from textenv import TextEnv, TextMDP
from textenv.data import ConversationText
from textenv.rewards import RewardError, TrainerState, WeightedReward
from textenv.testing import play

THIRD, HALF = r"\boxed{\frac{1}{3}}", r"\boxed{\frac{1}{2}}"
CHAT = [{"role": "user", "content": "hello"}]


def score(function: Any, completion: str, prompt: Any = CHAT, **columns: Any) -> float | None:
    """The score of a completion in an environment whose prompt has these fields; None where it has none."""
    # the second function scores what the first one does not
    rows = [{"prompt": prompt, **columns}]
    mdp = TextMDP(byte_level(), rows, [function, lambda prompts, **_: [100.0] * len(prompts)], max_new_tokens=200)
    found = play(TextEnv(mdp), 0, completion).score
    assert found is not None
    return None if found == 100.0 and function(**arguments(mdp, completion))[0] is None else found - 100.0


def arguments(mdp: TextMDP, completion: str) -> dict[str, Any]:
    """What the first prompt's reward gets, without the trainer's arguments."""
    ids = [*mdp.encode_completion(completion).tolist(), mdp.eos_token_ids[0]]
    one = np.array([0])
    return mdp.finished(one, mdp.prompt_texts[one], np.array([ids]), np.array([len(ids)])).arguments()


# -- the examples of trl.rewards' documentation ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>\nThis is my reasoning.\n</think>\nThis is my answer.", 1.0),
        ("<think>\nThis is my reasoning.\nThis is my answer.", 0.0),
    ],
)
def test_think_format_reward(completion: str, expected: float) -> None:
    """Reads the messages of conversations."""
    assert score(rewards.think_format_reward, completion) == expected


@pytest.mark.parametrize(("answer", "expected"), [(THIRD, 1.0), (HALF, 0.0)])
def test_accuracy_reward(answer: str, expected: float) -> None:
    """Reads a column and logs columns; a solution that cannot be parsed has no score."""
    pytest.importorskip("math_verify")
    completion = f"My answer is {answer}"
    assert score(rewards.accuracy_reward, completion, solution=r"\frac{1}{3}") == expected
    assert score(rewards.accuracy_reward, completion, solution="no formula") is None
    mdp = TextMDP(byte_level(), [{"prompt": CHAT, "solution": r"\frac{1}{3}"}], rewards.accuracy_reward)
    ids = mdp.encode_completion(completion)[None]
    finished = mdp.finished(np.array([0]), mdp.prompt_texts, ids, np.array([ids.shape[1]]))
    assert mdp.score(finished).tolist() == [expected]
    assert finished.extra["solution"] == [r"\frac{1}{3}"] and set(finished.extra) > {"gold_parsed", "answer_parsed"}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (rf"<think> Reasoning content </think> The final answer is {THIRD}", 1.0),
        (rf"<think> Reasoning content </think> The final answer is {HALF}", 0.0),
        (rf"<think> Reasoning content with partial answers {THIRD} but no final answer", 0.0),
    ],
)
def test_reasoning_accuracy_reward(completion: str, expected: float) -> None:
    """The part after the reasoning counts."""
    pytest.importorskip("math_verify")
    assert score(rewards.reasoning_accuracy_reward, completion, solution=r"\frac{1}{3}") == expected


@pytest.mark.parametrize(("answer", "sign"), [(THIRD, 1), (HALF, -1)])
def test_get_cosine_scaled_reward(answer: str, sign: int) -> None:
    """Reads the token ids: half of `max_len` tokens, the end token included, score 0.75."""
    pytest.importorskip("math_verify")
    length = len(byte_level().encode(answer, add_special_tokens=False)) + 1
    reward = rewards.get_cosine_scaled_reward(max_len=2 * length)
    assert score(reward, answer, solution=r"\frac{1}{3}") == pytest.approx(sign * 0.75)


@pytest.mark.parametrize("prompt", ["a text", CHAT])
def test_rewards_of_token_ids(prompt: Any) -> None:
    """They do not read the completions: texts and conversations alike."""
    repetition = rewards.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    assert score(repetition, "aaaaa", prompt) == pytest.approx(-0.6)  # of 5 bigrams, one with the end token, 2 differ
    assert score(repetition, "abcd", prompt) == 0.0
    overlong = rewards.get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    assert score(overlong, "x" * 89, prompt) == pytest.approx(-0.5)
    assert score(overlong, "x" * 10, prompt) == 0.0


# -- the examples of the trainer's documentation -----------------------------------------------------------------------


def longer_ids(completion_ids: Any, **kwargs: Any) -> list[float]:
    """Rewards longer completions, in tokens."""
    return [float(len(ids)) for ids in completion_ids]


def longer_texts(completions: Any, **kwargs: Any) -> list[float]:
    """Rewards longer completions, in characters."""
    return [float(len(completion)) for completion in completions]


def has_format(completions: Any, **kwargs: Any) -> list[float]:
    """Rewards a format, in conversations."""
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", text) else 0.0 for text in contents]


def is_ground_truth(completions: Any, ground_truth: Any, **kwargs: Any) -> list[float]:
    """Compares with a column."""
    found = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    texts = [match.group(1) if match else "" for match in found]
    return [1.0 if text == truth else 0.0 for text, truth in zip(texts, ground_truth, strict=True)]


def math_only(prompts: Any, completions: Any, task: Any, **kwargs: Any) -> list[float | None]:
    """Applies to prompts of one task."""
    return [1.0 if each == "math" else None for each in task]


def test_the_trainers_examples() -> None:
    """Standard and conversational, with columns, and several functions for several tasks."""
    assert score(longer_ids, " blue.", "The sky is") == 7  # six bytes and the end token
    assert score(longer_texts, " blue.", "The sky is") == 6
    assert score(has_format, "<think>1 and 2</think><answer>12</answer>") == 1
    assert score(has_format, "The sum of 3 and 1 is 4.") == 0
    assert score(is_ground_truth, r" It is \boxed{2}.", "2x + 3 = 7", ground_truth="2") == 1
    assert score(is_ground_truth, r" It is \boxed{6}.", "3x - 5 = 10", ground_truth="5") == 0
    assert score(math_only, "4", "What is 2+2?", task="math") == 1
    assert score(math_only, "4", "Write a function.", task="code") is None


# -- against TRL's own trainer -----------------------------------------------------------------------------------------


class Trainer(SimpleNamespace):
    """What `GRPOTrainer._calculate_rewards` reads of its trainer."""

    def __init__(self, functions: list[Any]) -> None:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        super().__init__(
            accelerator=SimpleNamespace(device="cpu", is_main_process=True),
            args=SimpleNamespace(report_to=[]),
            state=TrainerState(),
            environments=None,
            reward_funcs=functions,
            reward_processing_classes=[None] * len(functions),
            reward_func_names=[f"reward {i}" for i in range(len(functions))],
            async_loop=loop,
            metrics=[],
            extra=[],
        )
        self._log_metric = lambda *given: self.metrics.append(given)
        self._log_completion_extra = lambda *given: self.extra.append(given)


PROMPTS: dict[str, list[Any]] = {
    "texts": ["hello", "world", "hello world"],
    "conversations": [CHAT, [*CHAT, {"role": "assistant", "content": "hi"}, *CHAT], CHAT],
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_functions_get_what_the_trainer_hands_over(kind: str) -> None:
    """The same arguments by name and value, sync and async, and the same scores; the sum of them is ours."""
    seen: list[dict[str, Any]] = []

    def sync(**given: Any) -> list[float | None]:
        given["log_metric"]("words", 2.0)
        given["log_extra"]("seen", list(given["answer"]))
        seen.append(given)
        return [None if answer == "2" else 0.5 for answer in given["answer"]]

    async def later(completions: Any, trainer_state: Any, **given: Any) -> list[float]:
        await asyncio.sleep(0)
        seen.append({"completions": completions, "trainer_state": trainer_state, **given})
        return [float(trainer_state.global_step + len(completion)) for completion in completions]

    class Object:
        async def __call__(self, **given: Any) -> list[float]:
            return await later(**given)

    functions = [sync, later, Object()]
    texts, ids, answers = ["a", "bcd", ""], [[1], [2, 3, 4], [5]], ["1", "2", "3"]
    prompts = PROMPTS[kind]
    completions: list[Any] = texts
    if kind == "conversations":
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    trainer = Trainer(functions)
    inputs = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    theirs = GRPOTrainer._calculate_rewards(trainer, inputs, prompts, completions, ids)
    expected, seen = seen, []

    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]
    tokenizer = byte_level()
    mdp = TextMDP(tokenizer, rows, functions)
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    padded = np.array([row + [0] * (3 - len(row)) for row in tokens])
    finished = mdp.finished(np.arange(3), mdp.prompt_texts, padded, np.array([len(row) for row in tokens]))
    ours = mdp.score(finished)
    np.testing.assert_allclose(ours, theirs.nansum(dim=1).numpy())
    assert len(seen) == len(expected) == 3
    for mine, other in zip(seen, expected, strict=True):
        assert set(mine) == set(other)
        assert all(mine[name] == other[name] for name in ("prompts", "completions", "answer"))
        assert mine["completion_ids"] == tokens and other["completion_ids"] == ids
        assert callable(mine["log_metric"]) and callable(mine["log_extra"])
        assert mine["trainer_state"].global_step == other["trainer_state"].global_step
    assert mdp.training.take_metrics() == {name: (value, 1) for name, value in trainer.metrics}
    assert finished.extra == dict(trainer.extra)


def test_no_score_at_all_is_an_error() -> None:
    """TRL leaves such a completion out with a warning; here `on_reward_error="skip"` does."""
    abstains = WeightedReward(lambda prompts, **_: [None] * len(prompts))
    with pytest.raises(RewardError, match="Every reward function returned None"):
        score_lists(abstains, [ConversationText("x", CHAT)], ["a"], [[1]], {})
