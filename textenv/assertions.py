"""Assertions about rewards, for unit tests: the reward of each token, which of two is better, what must not matter.

Plain functions that raise an AssertionError, and no plug-in: they work under any test runner, and `pytest.mark
.parametrize` makes a table of them. What fails is shown token by token.

>>> import gymnasium as gym, textenv
>>> from textenv.testing import assert_prefers, assert_rewards
>>> env = gym.make("textenv/TajMahal-v0", kl_coef=0.0)
>>> assert_prefers(env, [("where is the taj mahal", "it is in agra", "paris")])
>>> assert_rewards(env, "it is in agra", [0, 0, 0, 0, 1], prompt="where is the taj mahal")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from textenv.env import TextEnv
from textenv.episode import Episode, play
from textenv.mdp import TextMDP
from textenv.shaping import ShapingTerm, shaping_name, shaping_values
from textenv.single_score import Prompt, Rewarded, score_of
from textenv.state import Array
from textenv.tree import Tree, enumerate_tree
from textenv.unwrap import EnvLike, get_mdp

Example = TypeVar("Example")


def assert_rewards(
    env: EnvLike | TextMDP,
    completion: object,
    rewards: Sequence[float],
    *,
    prompt: object = 0,
    term: str | None = None,
    atol: float = 1e-5,
) -> None:
    """Asserts the reward of each token of a completion.

    Args:
        env: any environment of textenv. The policy is unknown, as by default: the reward has no `kl_policy`.
        completion: text or ids, see `textenv.testing.play`.
        rewards: r_t, [T].
        prompt: index, text, messages or ids.
        term: compare one term of `reward_terms`, such as "score"; None compares their sum.
        atol: the largest difference.

    Raises:
        AssertionError: a reward is another; the message has every token with what it got and what was expected.
        ValueError: the completion cannot be played, or there is no such term.
    """
    episode = play(_single(env), prompt, completion)
    if term is not None and term not in episode.terms:
        raise ValueError(f"term must be one of {', '.join(episode.terms)}, got {term!r}.")
    found = episode.rewards if term is None else episode.terms[term]
    expected = np.asarray(rewards, dtype=np.float64)
    if found.shape != expected.shape:
        raise AssertionError(
            f"The completion has {len(found)} tokens, and {len(expected)} rewards are expected.\n"
            + _shown(episode, get_mdp(env), found)
        )
    if (np.abs(found - expected) > atol).any():
        name = "reward" if term is None else f"term {term!r}"
        raise AssertionError(
            f"The {name} of a token is not what is expected.\n" + _shown(episode, get_mdp(env), found, expected, atol)
        )


def assert_prefers(reward: Rewarded, examples: Iterable[tuple[Prompt, str, str]], *, margin: float = 0.0) -> None:
    """Asserts that of two completions of a prompt the first scores higher.

    Args:
        reward: an environment of textenv, whose score is compared; or a reward function, see `score_of`.
        examples: (prompt, better, worse). A prompt is a text or messages; for a function also a mapping with one of
            them as "prompt", whose other fields are its columns: `{"prompt": "2 + 2 = ?", "answer": "4"}`.
        margin: the difference must be larger.

    Raises:
        AssertionError: of each pair that fails, the two completions with their scores.
        ValueError: there are no examples.
    """
    failures = []
    for prompt, better, worse in _at_least_one(examples):
        high, low = score_of(reward, prompt, better), score_of(reward, prompt, worse)
        if not high - low > margin:
            failures.append(f"{prompt!r}: {better!r} has {_text(high)}, {worse!r} has {_text(low)}")
    if failures:
        rule = "more than" if margin == 0 else f"more than {margin:g} above"
        raise AssertionError(f"The first completion must score {rule} the second:\n" + "\n".join(failures))


def assert_bounded(
    reward: Rewarded, examples: Iterable[tuple[Prompt, str]], low: float = -np.inf, high: float = np.inf
) -> None:
    """Asserts that scores are finite and within bounds.

    Args:
        reward: see `assert_prefers`.
        examples: (prompt, completion), as there.
        low, high: the bounds, both included.

    Raises:
        AssertionError: each completion whose score is outside, or None.
        ValueError: there are no examples.
    """
    listed = _at_least_one(examples)
    scored = [(prompt, completion, score_of(reward, prompt, completion)) for prompt, completion in listed]
    failures = [
        f"{prompt!r}: {completion!r} has {_text(score)}"
        for prompt, completion, score in scored
        if not (np.isfinite(score) and low <= score <= high)
    ]
    if failures:
        raise AssertionError(f"Scores must be finite and in [{low:g}, {high:g}]:\n" + "\n".join(failures))


def assert_invariant(
    reward: Rewarded,
    examples: Iterable[tuple[Prompt, str]],
    change: Callable[[str], str],
    *,
    tolerance: float = 1e-6,
) -> None:
    """Asserts that a change of a completion, such as `str.upper`, does not change its score.

    None, "does not apply", before and after is no change.

    Args:
        reward: see `assert_prefers`.
        examples: (prompt, completion), as there.
        change: of the completion.
        tolerance: the largest difference of the scores.

    Raises:
        AssertionError: each completion for which it does, before and after.
        ValueError: there are no examples.
    """
    failures = []
    for prompt, completion in _at_least_one(examples):
        changed = change(completion)
        before, after = score_of(reward, prompt, completion), score_of(reward, prompt, changed)
        both_none = np.isnan(before) and np.isnan(after)
        if not (both_none or abs(before - after) <= tolerance):
            failures.append(f"{prompt!r}: {completion!r} has {_text(before)}, {changed!r} has {_text(after)}")
    if failures:
        name = getattr(change, "__name__", "the change")
        raise AssertionError(f"{name} must not change a score:\n" + "\n".join(failures))


def assert_potential_based(term: ShapingTerm, env: EnvLike | TextMDP, *, atol: float = 1e-6) -> None:
    """Asserts that a shaping term changes no optimal policy, by enumeration of a toy.

    With beta > 0, pi* ~ pi_ref exp(r / beta) stays as it is if and only if the term adds up to the same sum over every
    completion of a prompt, as `gamma Phi(s') - Phi(s)` does with gamma = 1 (Ng, Harada, Russell 1999).

    Args:
        term: the shaping term.
        env: a task that can be enumerated; its own shaping is not used.
        atol: the largest difference of two sums.

    Raises:
        AssertionError: the two completions of a prompt whose sums differ most, with what each token got.
        TreeTooLarge: the task is too large.
    """
    tree = enumerate_tree(env)
    state, _ = tree.leaves()
    values = _along_paths(tree, term)
    sums, prompt = values.sum(axis=1), tree.prompt[state]
    spread = [float(np.ptp(sums[prompt == p])) for p in range(len(tree.mdp.prompts.texts))]
    worst = int(np.argmax(spread))
    if spread[worst] <= atol:
        return
    rows = np.flatnonzero(prompt == worst)
    least, most = rows[sums[rows].argmin()], rows[sums[rows].argmax()]
    shown = "\n".join(_path_shown(tree, row, values[row]) for row in (least, most))
    raise AssertionError(
        f"{shaping_name(term)!r} changes the optimal policy: its sums over two completions of "
        f"{tree.mdp.prompts.texts[worst]!r} are {sums[least]:g} and {sums[most]:g}.\n{shown}"
    )


def _at_least_one(examples: Iterable[Example]) -> list[Example]:
    """The examples; without any, an assertion would hold of every reward."""
    if not (listed := list(examples)):
        raise ValueError("examples must have at least one, got none: nothing would be asserted.")
    return listed


def _text(score: float) -> str:
    """A score as the function returned it."""
    return "None" if np.isnan(score) else f"{score:g}"


def _single(env: EnvLike | TextMDP) -> TextEnv:
    """An environment of its own, without a bound policy, that takes what the reference forbids as an error."""
    return TextEnv(get_mdp(env))


def _shown(episode: Episode, mdp: TextMDP, found: Array, expected: Array | None = None, atol: float = 0.0) -> str:
    """A line for each token, with what it got; one that is wrong is marked."""
    lines = [f"prompt: {episode.prompt!r}"]
    names = [str(name) for name in mdp.tokenizer.convert_ids_to_tokens(episode.token_ids)]
    width = max(map(len, names))
    for t, (name, reward) in enumerate(zip(names, found.tolist(), strict=True)):
        line = f"{t:>4}  {name:<{width}}  {reward:>10.5g}"
        if expected is not None:
            wrong = abs(reward - float(expected[t])) > atol
            line += f"  expected {float(expected[t]):>10.5g}{'  <--' if wrong else ''}"
        lines.append(line)
    return "\n".join(lines)


def _along_paths(tree: Tree, term: ShapingTerm) -> Array:
    """A shaping term of every transition of every finished completion, [N, T]; ordered as `Tree.leaves`."""
    mdp, (state, _), (_, actions) = tree.mdp, tree.leaves(), tree.paths()
    start = mdp.empty_state(len(state))
    mdp.reset_rows(start, np.arange(len(state)), tree.prompt[state])
    mask = actions >= 0
    return shaping_values(term, mdp.transitions(start, np.maximum(actions, 0), mask))


def _path_shown(tree: Tree, row: int, values: Array) -> str:
    """The tokens of a finished completion, each with what a term gave it."""
    actions = tree.paths()[1][row]
    tokens = actions[actions >= 0].tolist()
    names = tree.mdp.tokenizer.convert_ids_to_tokens(tokens)
    return "  " + "  ".join(f"{name} {value:+.4g}" for name, value in zip(names, values.tolist(), strict=False))
