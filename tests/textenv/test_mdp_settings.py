"""Each argument of `TextMDP` changes an episode as its docstring says: r_t by definition, in plain Python."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from tests.helpers.classifiers import word_tokenizer
from tests.helpers.tasks import RandomPolicy, count_words, golden, letter_values, log_softmax, make, words
from textenv import TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.rewards import RewardError
from textenv.shaping import length_penalty

PROBABILITIES = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.4, 0.1], [0.3, 0.1, 0.1, 0.5]])
TABLE = TableReference(np.log(PROBABILITIES), np.array([[0, 1, 2, 3]] * 4))  # the state is the last token
BASE: dict[str, Any] = {
    "tokenizer": WordTokenizer("a b c"),
    "prompts": ["a", "b a b"],
    "reward": [letter_values, count_words],
    "reference": TABLE,
    "max_new_tokens": 3,
    "kl_coef": 0.5,
}
CHANGES: dict[str, list[Any]] = {
    "tokenizer": [WordTokenizer("b a c")],  # the same words with other ids
    "prompts": [["c", "b a b"]],
    "reward": [count_words, letter_values],
    "reference": [None],
    "max_new_tokens": [1, 2, 4],
    "kl_coef": [0.0, 2.0],
    "reward_weights": [[2.0, -0.5], [0.0, 1.0]],
    "shaping": [length_penalty(0.25), [length_penalty(0.25)]],
    "gold_reward": [golden],
    "eos_token_id": [2, [0, 3]],
    "max_prompt_length": [5],
}
POLICY = RandomPolicy(4)


def score_of(function: Any, prompt: str, completion: str, ids: list[int]) -> float:
    """What one reward function returns for one completion."""
    return float(function(prompts=[prompt], completions=[completion], completion_ids=[ids])[0])


def episode(arguments: dict[str, Any], prompt: int, tokens: list[int], bound: bool) -> dict[str, Any]:
    """An episode by definition: tokens until the end, r_t, score, gold score, and the columns of the observation."""
    text = arguments["prompts"][prompt]
    vocabulary = arguments["tokenizer"].tokens
    ends = arguments.get("eos_token_id", 0)
    ends = [ends] if isinstance(ends, int) else ends
    length = next((t + 1 for t, token in enumerate(tokens) if token in ends), len(tokens))
    tokens = tokens[: min(length, arguments["max_new_tokens"])]
    completion = " ".join(vocabulary[token] for token in tokens if token != 0)
    functions = arguments["reward"] if isinstance(arguments["reward"], list) else [arguments["reward"]]
    weights = arguments.get("reward_weights", [1.0] * len(functions))
    scores = [w * score_of(f, text, completion, tokens) for w, f in zip(weights, functions, strict=True)]
    rewards, kl, state = [], 0.0, [vocabulary.index(word) for word in text.split()]
    for t, token in enumerate(tokens):
        table = PROBABILITIES[0]
        for given in state:  # the table's state after the sequence: its start is row 0
            table = PROBABILITIES[given]
        log_ref = math.log(0.25 if arguments["reference"] is None else table[token])
        log_pi = log_softmax(POLICY(np.array([state]), np.ones((1, len(state))))[0], np.ones(4, dtype=np.bool_))[token]
        kl += log_pi - log_ref
        reward = -arguments["kl_coef"] * (log_pi * bound - log_ref)
        reward += sum(scores) if t == len(tokens) - 1 else 0.0
        reward -= 0.25 if "shaping" in arguments else 0.0
        rewards.append(reward)
        state.append(token)
    width = arguments.get("max_prompt_length", max(len(p.split()) for p in arguments["prompts"]))
    own = [vocabulary.index(word) for word in text.split()]
    return {
        "rewards": rewards,
        "score": sum(scores),
        "gold_score": score_of(golden, text, completion, tokens) if "gold_reward" in arguments else None,
        "kl": kl if bound else None,
        "finish_reason": "stop" if tokens[-1] in ends else "length",
        "completion": completion,
        "input_ids": [0] * (width - len(own)) + own + tokens + [0] * (arguments["max_new_tokens"] - len(tokens)),
    }


def stepped(arguments: dict[str, Any], prompt: int, tokens: list[int], bound: bool, vector: bool) -> dict[str, Any]:
    """The same from the environment, by single steps; of a batch the second of two rows."""
    policy = POLICY if bound else None
    env: Any = TextVectorEnv(TextMDP(**arguments), 2, policy=policy) if vector else make(arguments, policy=policy)
    env.reset(options={"prompt": prompt})
    rewards: list[float] = []
    for token in tokens:
        observation, reward, terminated, _, info = env.step(np.array([token, token]) if vector else token)
        if vector:
            observation = {name: array[1] for name, array in observation.items()}
            reward, terminated = reward[1], terminated[1]
            info = {name: values[1] for name, values in info.items() if not isinstance(values, dict)}
        rewards.append(float(reward))
        if terminated:
            break
    names = ("score", "gold_score", "kl", "finish_reason", "completion")
    last = {name: info[name] if f"_{name}" not in info or info[f"_{name}"] else None for name in names if name in info}
    ids = observation["input_ids"] * observation["attention_mask"]
    return {"rewards": rewards, "input_ids": ids.tolist()} | {name: last.get(name) for name in names}


EPISODES = [(0, [1, 2, 3, 1]), (1, [3, 0, 1, 1]), (0, [2, 1, 0, 0]), (1, [1, 1, 2, 3])]


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in CHANGES.items() for value in values])
def test_an_argument_changes_the_episodes_as_defined(name: str, value: Any, bound: bool, vector: bool) -> None:
    """With and (control) without the argument every episode is its definition; they differ somewhere."""
    found = []
    for arguments in (BASE, BASE | {name: value}):
        for prompt, tokens in EPISODES:
            expected = episode(arguments, prompt, tokens, bound)
            result = stepped(arguments, prompt, tokens, bound, vector)
            assert result.pop("rewards") == pytest.approx(expected["rewards"], abs=1e-6)
            for key in ("score", "gold_score", "kl"):
                assert result.pop(key) == pytest.approx(expected[key], abs=1e-6), key
            assert result == {key: expected[key] for key in result}
        found.append([episode(arguments, *each, bound) for each in EPISODES])
    assert found[0] != found[1]


@pytest.mark.parametrize("role", ["reward", "gold_reward"])
@pytest.mark.parametrize(
    ("on_error", "tries", "fails", "calls"),
    [("raise", 3, 1, 1), ("retry", 3, 2, 3), ("retry", 2, 2, 2), ("skip", 3, 2, 3), ("retry", 3, 0, 1)],
)
def test_a_reward_that_fails_is_called_again(
    role: str, on_error: str, tries: int, fails: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to reward_tries calls, reward_wait seconds apart, with any on_reward_error but raise."""
    waits, called = list[float](), list[int]()
    monkeypatch.setattr("time.sleep", waits.append)

    def flaky(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        called.append(len(prompts))
        if len(called) <= fails:
            raise ConnectionError("no answer")
        return [7.0] * len(prompts)

    arguments = BASE | {role: flaky, "on_reward_error": on_error, "reward_tries": tries, "reward_wait": 0.25}
    env = make(arguments)
    env.reset(options={"prompt": 0})
    if fails >= calls:
        with pytest.raises(RewardError, match="flaky.*no answer"):
            env.step(0)
    else:
        *_, info = env.step(0)
        assert info["score" if role == "reward" else "gold_score"] == 7.0
    assert called == [1] * calls and waits == [0.25] * (calls - 1)


def test_the_spelling_of_a_special_token_is_the_token_only_on_request() -> None:
    """In the prompts of the task and in those of `reset`. This tokenizer has no other tokens for the spelling."""
    tokenizer = word_tokenizer(eos_token="[END]")
    for allowed in (False, True):
        arguments = BASE | {"tokenizer": tokenizer, "reference": None, "special_tokens_in_prompts": allowed}
        env = make(arguments)
        if allowed:
            assert env.reset(options={"prompt": "b [END]"})[0]["input_ids"][:3].tolist()[-2:] == [2, 0]
            assert make(arguments | {"prompts": ["a [END]"]}).unwrapped.mdp.prompts.input_ids.tolist() == [[1, 0]]
            continue
        with pytest.raises(ValueError, match="special_tokens_in_prompts"):
            env.reset(options={"prompt": "b [END]"})
        with pytest.raises(ValueError, match="special_tokens_in_prompts"):
            make(arguments | {"prompts": ["a [END]"]})


def test_every_argument_has_a_test() -> None:
    """A new argument of `TextMDP` needs a value in `CHANGES`, or a test of its own."""
    above = {"on_reward_error", "reward_tries", "reward_wait", "special_tokens_in_prompts"}
    above |= {"chat_template_kwargs"}  # tests/textenv/data/test_conversations.py
    assert inspect.signature(TextMDP).parameters.keys() - CHANGES.keys() - above == set()
    assert BASE.keys() < CHANGES.keys() and words().keys() <= BASE.keys()
