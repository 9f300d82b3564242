"""Bad steps and resets are refused with a message that names the rule, the value and the cure, and change nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import assert_same, count_words, forgetful, make, random_reference, words
from textenv import InvalidAction, TextEnv, TextMDP, TextVectorEnv, exact
from textenv.references import TableReference

SPARSE = TableReference(np.array([-np.inf, np.log(0.5), np.log(0.5), -np.inf]))


# -- bad actions -------------------------------------------------------------------------------------------------------


BAD_ACTIONS: list[tuple[Any, str]] = [
    (4, r"token id must be in 0 \.\. 3, got 4"),
    (-1, r"token id must be in 0 \.\. 3, got -1"),
    (1.0, r"integer token ids, got .*1\..*float"),
    (True, "integer token ids, got .*bool"),
    ([1], r"one token id, got \[1\]"),
    (np.array([1, 2]), r"one token id, got array\(\[1, 2\]\)"),
    ("a", "integer token ids, got .*'a'"),
    (None, "integer token ids, got .*None"),
    (3, r"Token 3 \('c'\) is masked after 'a' \('b a b'\).*probability 0.*action_mask"),
]


@pytest.mark.parametrize(("action", "message"), BAD_ACTIONS)
def test_a_refused_action_changes_nothing(action: Any, message: str) -> None:
    """The error names the rule that a bad action breaks; the episode continues as if it had not been taken."""
    arguments = words(reference=SPARSE, max_new_tokens=3)
    env, twin = make(arguments), make(arguments)
    for each in (env, twin):
        each.reset(seed=0, options={"prompt": "b a b"})
        each.step(1)
    with pytest.raises(InvalidAction, match=message):
        env.step(action)
    for _ in range(2):
        assert_same(env.step(2), twin.step(2))
    assert_same(env.reset(), twin.reset())


BAD_BATCHES: list[tuple[Any, str]] = [
    ([1, 4], r"token id must be in 0 \.\. 3, got 4"),
    ([1, -1], r"token id must be in 0 \.\. 3, got -1"),
    ([1.0, 1.0], r"2 integer token ids, got .*float64"),
    ([1], r"2 integer token ids, got .*\(1,\)"),
    ([[1, 1], [1, 1]], r"(?s)2 integer token ids, got .*\(2, 2\)"),
    (1, r"2 integer token ids, got .*\(\)"),
    ([1, 1, 1], r"2 integer token ids, got .*\(3,\)"),
    ([1, 3], r"Token 3 \('c'\) is masked after '.*' \('b a b'\).*probability 0.*action_mask"),
]


@pytest.mark.parametrize("one_is_finished", [False, True])
@pytest.mark.parametrize(("actions", "message"), BAD_BATCHES)
def test_a_refused_batch_changes_nothing(actions: Any, message: str, one_is_finished: bool) -> None:
    """One bad action refuses the whole batch: no row changes, also where row 0 is to be reset."""
    reference = TableReference(np.array([np.log(0.2), np.log(0.4), np.log(0.4), -np.inf]))
    arguments = words(prompts=["b a b"], reference=reference, max_new_tokens=4)
    envs, twin = TextVectorEnv(TextMDP(**arguments), 2), TextVectorEnv(TextMDP(**arguments), 2)
    for each in (envs, twin):
        each.reset(seed=0)
        each.step(np.array([0 if one_is_finished else 1, 1]))
    with pytest.raises(InvalidAction, match=message):
        envs.step(np.array(actions))
    for _ in range(4):
        assert_same(envs.step(np.array([2, 2])), twin.step(np.array([2, 2])))


# -- bad rewards, shaping terms and policies ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda n: [0.0] * (n - 1) + [float("nan")],
            "'judge' must return finite .*nan, for the completion 'a b' after the prompt 'b a b'",
        ),
        (lambda n: [float("inf")] * n, "'judge' must return finite numbers, got inf"),
        (lambda n: [None] * n, "returned None for the completion 'a b' after the prompt 'b a b'.*at least one"),
        (lambda n: [1.0] * (n + 1), r"'judge' must return one score per completion: 1, got 2"),
        (lambda n: [], "'judge' must return one score per completion: 1, got 0"),
    ],
)
@pytest.mark.parametrize("role", ["reward", "gold_reward"])
def test_a_broken_reward_changes_nothing(score: Any, message: str, role: str) -> None:
    """The values of reward and gold reward are checked; after the error the same step can be taken again."""
    broken = [True]

    def judge(prompts: Any, completions: Any, **_: Any) -> Any:
        return score(len(prompts)) if broken else count_words(prompts, completions, None)

    env = TextEnv(TextMDP(**words(kl_coef=0.0) | {"reward": count_words, role: judge}))
    env.reset(seed=0, options={"prompt": "b a b"})
    env.step(1)
    env.step(2)
    with pytest.raises(ValueError, match=message):
        env.step(0)
    broken.clear()
    _, reward, terminated, _, info = env.step(0)
    assert (reward, terminated, info["completion"]) == (2.0, True, "a b")
    assert info.get("gold_score") == (2.0 if role == "gold_reward" else None)


@pytest.mark.parametrize("wrong", [[float("nan")], []])
def test_a_broken_gold_reward_is_refused_by_the_oracle(wrong: list[float]) -> None:
    """Enumeration checks the gold reward as a step does; the same task without it is accepted."""

    def appraiser(prompts: Any, **_: Any) -> list[float]:
        return wrong * len(prompts)

    with pytest.raises(
        ValueError, match=r"'appraiser' must return (finite numbers, got nan|one score per completion: \d+, got 0)"
    ):
        exact.solve(make(words(gold_reward=appraiser)))
    exact.solve(make(words()))


def test_a_reward_without_a_return_is_refused() -> None:
    """The error names the reward function."""
    env = make(words(reward=forgetful))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'forgetful' must return one score per completion, got None: no return\?"):
        env.step(0)


def scalar(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """One number for all completions."""
    return 0.5


def strings(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """Strings instead of numbers."""
    return ["good"] * len(prompts)


def columns_of_scores(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """An array [B, 1]."""
    return np.zeros((len(prompts), 1))


@pytest.mark.parametrize("reward", [scalar, strings, columns_of_scores])
def test_a_reward_of_another_form_is_refused(reward: Any) -> None:
    """The error names the reward function and the returned value."""
    env = make(words(reward=reward))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"{reward.__name__!r} must return a list of numbers or None, .* got"):
        env.step(0)


@pytest.mark.parametrize("broken", [np.array([[np.nan]]), np.zeros(1), np.zeros((1, 2))])
def test_a_broken_shaping_term_is_refused(broken: np.ndarray) -> None:
    """The error names the shaping term."""

    def crooked(transitions: Any) -> np.ndarray:
        return broken

    env = make(words(shaping=[crooked]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'crooked' must return finite numbers, \[B, T\]"):
        env.step(1)


def test_a_wrapper_that_changes_the_reward_is_refused_by_the_oracle() -> None:
    """The oracle reads the MDP, where such a wrapper has no effect; other wrappers are accepted."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(TypeError, match="TransformReward may change .* rewards.*reward="):
        exact.solve(gym.wrappers.TransformReward(env, lambda reward: reward - 100.0))
    assert exact.solve(gym.wrappers.RecordEpisodeStatistics(env)).objective == exact.solve(env).objective


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda ids, mask: 1 / 0, "division by zero"),
        (lambda ids, mask: np.zeros((len(ids), 5)), r"(?i)logits.*\(1, 5\)"),
        (lambda ids, mask: np.zeros((len(ids), 1)), r"(?i)logits.*\(1, 1\)"),  # not one logit for every token
        (lambda ids, mask: np.full((len(ids), 4), np.nan), r"(?i)logits.*nan"),
    ],
)
def test_a_broken_policy_changes_nothing(policy: Any, message: str) -> None:
    """A bound policy that raises, or whose logits are no distribution over V tokens, leaves the episode unchanged."""
    env = make(words(kl_coef=1.0))
    env.reset(seed=0)
    env.unwrapped.bind_policy(policy)
    with pytest.raises((ZeroDivisionError, ValueError), match=message):
        env.step(1)
    env.unwrapped.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
    _, reward, _, _, _ = env.step(1)
    assert reward == pytest.approx(0.0)  # uniform against uniform


def test_a_policy_that_is_not_callable_is_refused() -> None:
    """The error comes when it is bound, not at the first step."""
    for env in (gym.make("textenv/Toy-v0"), gym.make_vec("textenv/Toy-v0", num_envs=2)):
        with pytest.raises(TypeError, match="A policy must be a function .* got 3"):
            env.unwrapped.bind_policy(3)


# -- steps before the start and after the end --------------------------------------------------------------------------


def test_step_needs_a_reset() -> None:
    """A step before reset, and one after the end, are refused; the error names reset, which then works."""
    for env in (make(words()), TextEnv(TextMDP(**words()))):
        with pytest.raises(gym.error.ResetNeeded, match=r"reset"):
            env.step(1)
        env.reset(seed=0)
        env.step(0)
        with pytest.raises(gym.error.ResetNeeded, match=r"ended\): call reset\(\)"):
            env.step(1)
        env.reset()
        env.step(1)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_batch_needs_a_reset(mode: str) -> None:
    """A vector environment refuses to step before reset."""
    envs = TextVectorEnv(TextMDP(**words()), 2, autoreset_mode=mode)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        envs.step(np.array([1, 1]))
    envs.reset()
    envs.step(np.array([1, 1]))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_row_that_was_never_reset_is_refused(mode: str) -> None:
    """If the first reset leaves a row out, stepping is refused; otherwise that row would never get a reward."""
    envs = TextVectorEnv(TextMDP(**words()), 2, autoreset_mode=mode)
    with pytest.raises((gym.error.ResetNeeded, ValueError), match="reset"):
        envs.reset(seed=0, options={"reset_mask": np.array([True, False])})
        envs.step(np.array([1, 1]))


def test_disabled_autoreset_refuses_a_step_past_the_end() -> None:
    """With autoreset DISABLED the error names the finished rows and the cure; the other rows are unchanged."""
    arguments = words(max_new_tokens=3)
    envs, twin = (TextVectorEnv(TextMDP(**arguments), 3, autoreset_mode="Disabled") for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=0)
        each.step(np.array([1, 0, 0]))
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[1, 2\] have ended.*'reset_mask': terminated"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([False, True, False])})  # one of the two; the other still needs it
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[2\] have ended"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    twin.reset(options={"reset_mask": np.array([False, True, True])})
    assert_same(envs.step(np.array([1, 2, 3])), twin.step(np.array([1, 2, 3])))


# -- bad resets --------------------------------------------------------------------------------------------------------


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"promt": "a"}, r"options are 'prompt' and 'completion', got \['promt'\]"),
    ({"prompt": 4}, r"index must be in 0 \.\. 3, got 4"),
    ({"prompt": -1}, r"index must be in 0 \.\. 3, got -1"),
    ({"prompt": "a zebra"}, "'zebra' is not in the vocabulary"),
    ({"prompt": ""}, "at least one token, got ''"),
    ({"prompt": []}, r"1 to 3 tokens here, got 0"),
    ({"prompt": "a b a b"}, r"1 to 3 tokens here, got 4 in 'a b a b'.*larger max_prompt_length"),
    ({"prompt": [1, 4]}, r"ids must be in 0 \.\. 3, got \[1, 4\]"),
    ({"prompt": [1.5]}, r"text or a list of token ids, got \[1.5\]"),
    ({"prompt": 0, "completion": "a b a"}, r"leave a token to sample: fewer than max_new_tokens = 3.*got \[1, 2, 1\]"),
    ({"prompt": 0, "completion": [1, 0]}, r"leave a token to sample.*no EOS token, got \[1, 0\]"),
    ({"prompt": 0, "completion": [[1]]}, r"text or a list of token ids, got \[\[1\]\]"),
    ({"prompt": 0, "completion": [9]}, r"ids must be in 0 \.\. 3, got \[9\]"),
    ({"prompt": 0, "completion": "zebra"}, "'zebra' is not in the vocabulary"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("batched", [False, True])
def test_a_refused_reset_changes_nothing(options: dict[str, Any], message: str, batched: bool) -> None:
    """The error names the rule; the episode in progress and the stream of prompts are unchanged."""
    arguments = words(reference=random_reference(4, 2, sparse=False), max_new_tokens=3)
    if batched:
        env, twin = (TextVectorEnv(TextMDP(**arguments), 2) for _ in range(2))
    else:
        env, twin = make(arguments), make(arguments)
    action: Any = np.array([2, 2]) if batched else 2
    for each in (env, twin):
        each.reset(seed=0)
        each.step(action)
    with pytest.raises(ValueError, match=message):
        env.reset(options=options)
    assert_same(env.step(action), twin.step(action))
    assert_same(env.reset(), twin.reset())


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([True, False], r"bool array of shape \(2,\), got \[True, False\]"),
        (np.array([1, 0]), r"bool array of shape \(2,\), got array\(\[1, 0\]\)"),
        (np.array([True]), r"bool array of shape \(2,\), got array\(\[ True\]\)"),
        (np.array([False, False]), "True in at least one row"),
    ],
)
def test_a_bad_reset_mask_changes_nothing(mask: Any, message: str) -> None:
    """A reset_mask of another type or shape, or one without a row, is refused."""
    envs, twin = (TextVectorEnv(TextMDP(**words()), 2, autoreset_mode="Disabled") for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        envs.reset(options={"reset_mask": mask})
    assert_same(envs.step(np.array([1, 2])), twin.step(np.array([1, 2])))


def test_a_list_of_seeds_with_too_many_is_refused() -> None:
    """The error names the number of rows."""
    with pytest.raises(ValueError, match="one per row: 2, got 3"):
        TextVectorEnv(TextMDP(**words()), 2).reset(seed=[1, 2, 3])


def test_a_list_of_seeds_may_leave_rows_out_by_none() -> None:
    """Too few seeds are refused; None leaves a row's stream of prompts as it is."""
    envs = gym.make_vec("textenv/TajMahal-v0", num_envs=3)
    with pytest.raises(ValueError, match="one per row: 3, got 2"):
        envs.reset(seed=[1, 2])
    envs.reset(seed=[5, 6, 7])
    second, _ = envs.reset()
    envs.reset(seed=[5, 6, 7])
    third, _ = envs.reset(seed=[5, None, None])
    again, _ = gym.make("textenv/TajMahal-v0").reset(seed=5)
    assert_same(third["input_ids"][0], again["input_ids"])
    assert_same(third["input_ids"][1:], second["input_ids"][1:])


def test_a_refused_vector_reset_advances_no_stream() -> None:
    """The following prompts are those without the refused reset."""
    envs, twin = (gym.make_vec("textenv/TajMahal-v0", num_envs=4) for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=3)
    with pytest.raises(ValueError, match="zzz"):
        envs.reset(seed=5, options={"prompt": "zzz"})
    assert_same(envs.reset()[0], twin.reset()[0])


def test_a_refused_first_reset_leaves_the_seed_random() -> None:
    """Environments whose first, unseeded reset was refused do not all draw the same prompts afterwards."""

    def prompts(maker: Any) -> str:
        env = maker("textenv/Toy-v0", num_prompts=64, vocab_size=9)
        with pytest.raises(ValueError, match="zzz"):
            env.unwrapped.reset(options={"prompt": "zzz"})
        return str([env.unwrapped.reset()[0]["input_ids"].tolist() for _ in range(12)])

    for maker in (gym.make, gym.make_vec):
        assert len({prompts(maker) for _ in range(3)}) == 3  # equal by chance once in 64^12
