"""Bad input is refused with a message that names the rule, the value and the cure, and changes nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.sampling import collect
from tests.helpers.policies import random_policy
from tests.helpers.tasks import assert_same, count_words, forgetful, make, random_reference, stories, words, zero
from textenv import InvalidAction, TextEnv, TextMDP, TextVectorEnv, exact
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty
from textenv.testing import play

SPARSE = TableReference(np.array([-np.inf, np.log(0.5), np.log(0.5), -np.inf]))


# -- a task that cannot be made ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "at least one prompt.* none"),
        ({"prompts": ["a", ""]}, "at least one token, got ''.*drop it"),
        ({"prompts": ["a", "  "]}, "at least one token, got '  '.*drop it"),
        ({"prompts": ["a", 7]}, "must be a string, or messages.*, got 7"),
        ({"prompts": [{"prompt": "a", "x": 1}, {"prompt": "b"}]}, "prompt 1: .*first one's fields.*'x'.*got .*'b'"),
        ({"prompts": [{"text": "a"}]}, "field 'prompt'.*got .*'text'"),
        ({"prompts": [{"prompt": "a", "completions": "b"}]}, "'completions' is an argument of every reward; rename"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1, got 2.5"),
        (
            {"prompts": ["a", "a b a"], "max_prompt_length": 2},
            "'a b a' has 3 tokens.* 2 .*max_prompt_length",
        ),
        ({"prompts": ["a", "a aple"]}, "'aple' is not in the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ({"kl_coef": -0.1}, r"kl_coef \(beta\).*>= 0, got -0.1; 0 switches"),
        ({"kl_coef": float("nan")}, "kl_coef.*finite.*got nan"),
        ({"kl_coef": float("inf")}, "kl_coef.*finite.*got inf"),
        ({"eos_token_id": 4}, r"eos_token_id must be in 0 \.\. 3, got 4"),
        ({"reference": random_reference(5, 0, False)}, "vocabulary of 5 tokens, the tokenizer one of 4.*same"),
        ({"reward": [zero, zero], "reward_weights": [1.0]}, r"one finite number a function \(2\), got \[1.0\]"),
        ({"reward_weights": [float("nan")]}, "one finite number a function .*nan"),
        ({"shaping": [length_penalty(1.0), length_penalty(2.0)]}, "__name__ of its own.*'length', 'length'"),
    ],
)
def test_a_task_that_cannot_be_made(arguments: dict[str, Any], message: str) -> None:
    """Each broken argument is refused when the environment is made, single or batched."""
    for maker in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=message):
            maker("textenv/Text-v0", **words(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "count"}, "reward must be a function.*got 'count'"),
        ({"reward": []}, r"reward must be a function.*got \[\]"),
        ({"gold_reward": "count"}, "^gold_reward must be a function.*got 'count'"),
        ({"gold_reward": []}, r"^gold_reward must be a function.*got \[\]"),
        ({"reference": 3}, "reference must be None.*log_probs.*causal language model.*got int"),
    ],
)
def test_an_argument_of_the_wrong_type(arguments: dict[str, Any], message: str) -> None:
    """What is not a reward or not a reference is a TypeError that says what would be one."""
    with pytest.raises(TypeError, match=message):
        TextMDP(**words(**arguments))


def test_text_brings_nothing_of_its_own() -> None:
    """Text-v0 without arguments lists what it needs."""
    with pytest.raises(ValueError, match=r"pass tokenizer, prompts, reward to gym\.make"):
        gym.make("textenv/Text-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"vocab_size": 2}, "vocab_size >= 3.*got 2, 4, 2"), ({"num_prompts": 0}, "num_prompts >= 1, got 6, 4, 0")],
)
def test_a_toy_that_cannot_be_drawn(arguments: dict[str, Any], message: str) -> None:
    """Toy-v0 names its limits."""
    with pytest.raises(ValueError, match=message):
        gym.make("textenv/Toy-v0", **arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "not valid JSON"),
        ('{"text": "a"}', "object with the string field 'prompt'"),
        ('{"prompt": 3}', "object with the string field 'prompt'"),
        ('["a"]', "object with the string field 'prompt'"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, line: str, message: str) -> None:
    """A broken line of a prompt file is refused with file, line number and content; without it the file is read."""
    path = tmp_path / "prompts.jsonl"
    good = '{"prompt": "a"}\n\n{"prompt": "b a"}\n'
    path.write_text(good + line + "\n")
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:4: .*{message}") as error:
        TextMDP(**words(prompts=path))
    assert repr(line)[1:-1] in str(error.value)
    path.write_text(good)
    assert TextMDP(**words(prompts=str(path))).prompts.texts == ["a", "b a"]
    (tmp_path / "prompts.txt").write_text("a\n\n  b a \n")
    assert TextMDP(**words(prompts=tmp_path / "prompts.txt")).prompts.texts == ["a", "b a"]


def test_a_missing_or_empty_prompt_file(tmp_path: Path) -> None:
    """A file that is not there, and one without a prompt, are named."""
    with pytest.raises(ValueError, match=r"The file '.*nowhere\.txt' does not exist"):
        TextMDP(**words(prompts=str(tmp_path / "nowhere.txt")))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"at least one prompt, got none from '.*empty\.txt'"):
        TextMDP(**words(prompts=tmp_path / "empty.txt"))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: WordTokenizer("agra india").encode("agra indai"), "'indai' is not.*3 tokens. Did you mean 'india'"),
        (lambda: WordTokenizer([]), "at least one word"),
        (lambda: WordTokenizer(["a b"]), "empty or contain spaces, got 'a b'"),
        (lambda: WordTokenizer("a <eos>"), "'<eos>' must not be one of the words"),
        (lambda: TableReference(np.log([[0.5, 0.25], [0.5, 0.5]])), "sum to 1; row 0 sums to 0.75"),
        (lambda: TableReference(np.log([[0.5, 0.5], [0.9, 0.2]])), "sum to 1; row 1 sums to 1.1"),
        (lambda: TableReference(np.log(np.full((3, 2), 0.5))), r"1 row or one row a token, got shape \(3, 2\)"),
        (lambda: TableReference(np.log([[0.5, 0.5]]), [[0, 1]]), r"next_state.*values in 0 \.\. 0, got .* 0 \.\. 1"),
        (
            lambda: TableReference.from_completions(WordTokenizer("a b"), {"a": {"b": -1.0, "a": 2.0}}),
            "must not be negative, got -1.0 for 'b'",
        ),
        (lambda: TextVectorEnv(TextMDP(**words()), 0), "num_envs must be at least 1, got 0"),
        (
            lambda: TextEnv(TextMDP(**words()), render_mode="rgb"),
            "render_mode must be .*'ansi'.* got 'rgb'",
        ),
        (lambda: play(make(words()), 0, "a a a a"), "4 tokens, more than max_new_tokens = 3"),
        (lambda: play(make(words()), 0, [0, 1]), "goes on after its end: token 0"),
        (lambda: play(make(words()), 0, []), "nothing to play"),
    ],
)
def test_a_part_that_cannot_be_made(make_it: Any, message: str) -> None:
    """Tokenizer, table, environment and play name the rule and the value."""
    with pytest.raises(ValueError, match=message):
        make_it()


def test_a_model_must_have_the_tokenizers_vocabulary(assets: Path) -> None:
    """A language model with fewer logits than the tokenizer has tokens is refused, and so is a context too short."""
    arguments = stories(assets)
    large = WordTokenizer([f"w{i}" for i in range(600)])
    with pytest.raises(ValueError, match=r"vocabulary of 512 tokens, the tokenizer one of 601.*same"):
        TextMDP(**arguments | {"tokenizer": large, "prompts": ["w1"]})
    with pytest.raises(ValueError, match=r"\d+ \+ 510 tokens, more than the reference's context of 512; shorten"):
        TextMDP(**arguments | {"max_new_tokens": 510})


# -- a step that is refused changes nothing ----------------------------------------------------------------------------


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
    """A bad action says what is wrong with it, and the text goes on as if it had not been tried."""
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


@pytest.mark.parametrize("one_has_ended", [False, True])
@pytest.mark.parametrize(("actions", "message"), BAD_BATCHES)
def test_a_refused_batch_changes_nothing(actions: Any, message: str, one_has_ended: bool) -> None:
    """One bad action in a batch refuses the batch: no row moves, also where row 0 waits for its next text."""
    reference = TableReference(np.array([np.log(0.2), np.log(0.4), np.log(0.4), -np.inf]))
    arguments = words(prompts=["b a b"], reference=reference, max_new_tokens=4)
    envs, twin = TextVectorEnv(TextMDP(**arguments), 2), TextVectorEnv(TextMDP(**arguments), 2)
    for each in (envs, twin):
        each.reset(seed=0)
        each.step(np.array([0 if one_has_ended else 1, 1]))
    with pytest.raises(InvalidAction, match=message):
        envs.step(np.array(actions))
    for _ in range(4):
        assert_same(envs.step(np.array([2, 2])), twin.step(np.array([2, 2])))


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            lambda n: [0.0] * (n - 1) + [float("nan")],
            "'judge' must return finite .*nan for 'a b' after 'b a b'",
        ),
        (lambda n: [float("inf")] * n, "'judge' must return finite numbers, got inf"),
        (lambda n: [None] * n, "returned None for 'a b' after 'b a b'.*at least one"),
        (lambda n: [1.0] * (n + 1), r"'judge' must return one score a text: 1, got 2"),
        (lambda n: [], "'judge' must return one score a text: 1, got 0"),
    ],
)
@pytest.mark.parametrize("role", ["reward", "gold_reward"])
def test_a_broken_reward_changes_nothing(score: Any, message: str, role: str) -> None:
    """What a reward function returns is checked, gold or not, and the step that met the error can be taken again."""
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


@pytest.mark.parametrize("call", [exact.solve, lambda env: collect(env, random_policy(env), 4)])
@pytest.mark.parametrize("wrong", [[float("nan")], []])
def test_a_broken_gold_reward_is_named_by_the_fast_ways_too(call: Any, wrong: list[float]) -> None:
    """Enumerating and collecting check the gold reward as a step does; the same task without it is fine."""

    def appraiser(prompts: Any, **_: Any) -> list[float]:
        return wrong * len(prompts)

    with pytest.raises(
        ValueError, match=r"'appraiser' must return (finite numbers, got nan|one score a text: \d+, got 0)"
    ):
        call(make(words(gold_reward=appraiser)))
    call(make(words()))


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
    """A bound policy that raises, or whose logits are no distribution over V tokens, leaves the text where it was."""
    env = make(words(kl_coef=1.0))
    env.reset(seed=0)
    env.unwrapped.bind_policy(policy)
    with pytest.raises((ZeroDivisionError, ValueError), match=message):
        env.step(1)
    env.unwrapped.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
    _, reward, _, _, _ = env.step(1)
    assert reward == pytest.approx(0.0)  # uniform against uniform


def test_a_prompt_that_the_reference_cannot_answer() -> None:
    """A prompt after which everything is masked is named, instead of an optimum of nan."""
    tokenizer = WordTokenizer("a b c")
    reference = TableReference.from_completions(tokenizer, {"a": {"b": 1.0}})
    with pytest.raises(ValueError, match="'c a'"):
        exact.solve(TextMDP(tokenizer, ["a", "c a"], zero, reference, max_new_tokens=3))


# -- before the start, after the end -----------------------------------------------------------------------------------


def test_step_needs_a_text() -> None:
    """Stepping before reset, and after the end, is refused with the cure; reset then works."""
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
def test_a_batch_needs_texts(mode: str) -> None:
    """A vector environment refuses to step before reset."""
    envs = TextVectorEnv(TextMDP(**words()), 2, autoreset_mode=mode)
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        envs.step(np.array([1, 1]))
    envs.reset()
    envs.step(np.array([1, 1]))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_row_that_never_began_is_noticed(mode: str) -> None:
    """Where the first reset left a row out, stepping is refused instead of paying that row nothing for ever."""
    envs = TextVectorEnv(TextMDP(**words()), 2, autoreset_mode=mode)
    with pytest.raises((gym.error.ResetNeeded, ValueError), match="reset"):
        envs.reset(seed=0, options={"reset_mask": np.array([True, False])})
        envs.step(np.array([1, 1]))


def test_disabled_autoreset_is_not_stepped_past_an_end() -> None:
    """With autoreset DISABLED a step past an end names the rows and the cure; after it the other rows are unharmed."""
    arguments = words(max_new_tokens=3)
    envs, twin = (TextVectorEnv(TextMDP(**arguments), 3, autoreset_mode="Disabled") for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=0)
        each.step(np.array([1, 0, 0]))
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[1, 2\] have ended.*'reset_mask': terminated"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([False, True, False])})  # one of the two: the other is still waiting
    with pytest.raises(gym.error.ResetNeeded, match=r"rows \[2\] have ended"):
        envs.step(np.array([1, 1, 1]))
    envs.reset(options={"reset_mask": np.array([False, False, True])})
    twin.reset(options={"reset_mask": np.array([False, True, True])})
    assert_same(envs.step(np.array([1, 2, 3])), twin.step(np.array([1, 2, 3])))


# -- a reset that is refused -------------------------------------------------------------------------------------------


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
    ({"prompt": 0, "completion": "a b a"}, r"leave something to write: fewer than max_new_tokens = 3.*got \[1, 2, 1\]"),
    ({"prompt": 0, "completion": [1, 0]}, r"leave something to write.*no end token, got \[1, 0\]"),
    ({"prompt": 0, "completion": [[1]]}, r"text or a list of token ids, got \[\[1\]\]"),
    ({"prompt": 0, "completion": [9]}, r"ids must be in 0 \.\. 3, got \[9\]"),
    ({"prompt": 0, "completion": "zebra"}, "'zebra' is not in the vocabulary"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("batched", [False, True])
def test_a_refused_reset_changes_nothing(options: dict[str, Any], message: str, batched: bool) -> None:
    """Bad reset options say what is wrong, and the text in progress and the stream of prompts stay as they were."""
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


def test_a_list_of_seeds_must_have_one_a_row() -> None:
    """A list of seeds that does not fit is refused."""
    with pytest.raises(ValueError, match="one a row: 2, got 3"):
        TextVectorEnv(TextMDP(**words()), 2).reset(seed=[1, 2, 3])


def test_messages_end_well() -> None:
    """Messages are sentences: a value that is refused stands in them once, without line breaks."""
    with pytest.raises(ValueError) as error:
        TextMDP(**words(kl_coef=-3.25))
    assert len(re.findall(re.escape("-3.25"), str(error.value))) == 1 and "\n" not in str(error.value)


def test_a_reward_that_forgets_to_return() -> None:
    """It is named, and the environment stays where it was."""
    env = make(words(reward=forgetful))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'forgetful' must return one score a text, got None: no return\?"):
        env.step(0)


def test_a_list_of_seeds_needs_one_a_row() -> None:
    """Too few are refused; None leaves a row's stream as it is."""
    envs = gym.make_vec("textenv/TajMahal-v0", num_envs=3)
    with pytest.raises(ValueError, match="one a row: 3, got 2"):
        envs.reset(seed=[1, 2])
    envs.reset(seed=[5, 6, 7])
    second, _ = envs.reset()
    envs.reset(seed=[5, 6, 7])
    third, _ = envs.reset(seed=[5, None, None])
    again, _ = gym.make("textenv/TajMahal-v0").reset(seed=5)
    assert_same(third["input_ids"][0], again["input_ids"])
    assert_same(third["input_ids"][1:], second["input_ids"][1:])


@pytest.mark.parametrize("call", [exact.solve, lambda env: collect(env, None)])
def test_a_wrapper_that_changes_the_reward_is_not_passed_over(call: Any) -> None:
    """A wrapper that agents and oracle, which read the process, would not see is refused; others are not."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(TypeError, match="TransformReward may change what .* pays.*reward="):
        call(gym.wrappers.TransformReward(env, lambda reward: reward - 100.0))
    assert exact.solve(gym.wrappers.RecordEpisodeStatistics(env)).objective == exact.solve(env).objective


@pytest.mark.parametrize("broken", [np.array([[np.nan]]), np.zeros(1), np.zeros((1, 2))])
def test_a_shaping_term_that_returns_nonsense(broken: np.ndarray) -> None:
    """It is named; nothing is paid."""

    def crooked(transitions: Any) -> np.ndarray:
        return broken

    env = make(words(shaping=[crooked]))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"'crooked' must return finite numbers, \[B, T\]"):
        env.step(1)


def test_a_shaping_term_may_not_take_the_place_of_the_kl() -> None:
    """The names of the reward's own terms are taken."""

    def kl_policy(transitions: Any) -> np.ndarray:
        return np.zeros(transitions.tokens.shape)

    with pytest.raises(ValueError, match="other than score, kl_reference and kl_policy"):
        TextMDP(**words(shaping=[kl_policy]))


def test_play_is_for_a_single_environment() -> None:
    """A batched one is refused by name."""
    with pytest.raises(TypeError, match=r"gym\.make.*TextVectorEnv"):
        play(gym.make_vec("textenv/Toy-v0", num_envs=2), "a", "b")  # type: ignore[arg-type]


def test_another_vocabulary_is_not_taken_for_padding(assets: Path) -> None:
    """A model with many more tokens than the tokenizer is another vocabulary; with a few more it is padded."""
    few = WordTokenizer("is it yes no")
    with pytest.raises(ValueError, match="vocabulary of 512 tokens, the tokenizer one of 5.*token for token"):
        TextMDP(few, ["is it"], zero, assets / "stories260k")
    many = WordTokenizer([f"w{i}" for i in range(500)])
    assert TextMDP(many, ["w1"], zero, assets / "stories260k").vocab_size == 501


class Nonsense:
    """A reference that claims full support and answers with whatever it was given."""

    full_support = True

    def __init__(self, answer: float, width: int) -> None:
        self.answer, self.width = answer, width

    def log_probs(self, input_ids: Any, attention_mask: Any) -> np.ndarray:
        return np.full((len(input_ids), self.width), self.answer)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (Nonsense(-np.log(9), 9), r"\[B, 4\] log-probabilities"),
        (Nonsense(3.0, 4), "sum to 80.34, not to 1"),
        (Nonsense(np.nan, 4), "sum to nan, not to 1"),
    ],
)
def test_a_reference_that_is_none(reference: Nonsense, message: str) -> None:
    """What answers with another shape, or with no log-probabilities, is refused when the task is made."""
    with pytest.raises(ValueError, match=message):
        TextMDP(**words(reference=reference))


def scalar(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """One number for all."""
    return 0.5


def strings(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """No numbers."""
    return ["good"] * len(prompts)


def columns_of_scores(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """[B, 1]."""
    return np.zeros((len(prompts), 1))


@pytest.mark.parametrize("reward", [scalar, strings, columns_of_scores])
def test_a_reward_of_another_form(reward: Any) -> None:
    """It is named, with what it returned."""
    env = make(words(reward=reward))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"{reward.__name__!r} must return a list of numbers or None, .* got"):
        env.step(0)


def test_prompt_files_as_editors_write_them(tmp_path: Path) -> None:
    """A byte-order mark is no word, U+2028 ends no line, another encoding is named with its file."""
    (tmp_path / "a.txt").write_bytes("\ufeffa b\nb\n".encode())
    assert TextMDP(**words(prompts=tmp_path / "a.txt")).prompts.texts == ["a b", "b"]
    (tmp_path / "b.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert TextMDP(**words(prompts=tmp_path / "b.jsonl")).prompts.texts == ["a\u2028b"]
    (tmp_path / "c.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.txt: not UTF-8 .* save it as UTF-8"):
        TextMDP(**words(prompts=tmp_path / "c.txt"))


def test_a_refused_vector_reset_moves_no_stream() -> None:
    """After it the prompts come as they would have."""
    envs, twin = (gym.make_vec("textenv/TajMahal-v0", num_envs=4) for _ in range(2))
    for each in (envs, twin):
        each.reset(seed=3)
    with pytest.raises(ValueError, match="zzz"):
        envs.reset(seed=5, options={"prompt": "zzz"})
    assert_same(envs.reset()[0], twin.reset()[0])


def test_a_policy_that_cannot_be_called() -> None:
    """It is refused when it is bound, not at the first step."""
    for env in (gym.make("textenv/Toy-v0"), gym.make_vec("textenv/Toy-v0", num_envs=2)):
        with pytest.raises(TypeError, match="A policy is called with .* got 3"):
            env.unwrapped.bind_policy(3)


def test_a_refused_first_reset_leaves_the_seed_to_chance() -> None:
    """Environments whose first, unseeded reset was refused do not all draw the same prompts afterwards."""

    def prompts(maker: Any) -> str:
        env = maker("textenv/Toy-v0", num_prompts=64, vocab_size=9)
        with pytest.raises(ValueError, match="zzz"):
            env.unwrapped.reset(options={"prompt": "zzz"})
        return str([env.unwrapped.reset()[0]["input_ids"].tolist() for _ in range(12)])

    for maker in (gym.make, gym.make_vec):
        assert len({prompts(maker) for _ in range(3)}) == 3  # equal by chance once in 64^12
