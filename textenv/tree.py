"""The tree of a toy: every state that its reference allows, enumerated once, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.state import Array, Selection
from textenv.unwrap import EnvLike, get_mdp

MAX_COMPLETIONS = 2_000_000
BATCH = 4096  # states per call of the reference, the reward or the policy

Level: TypeAlias = "slice[int, int, int]"  # the states of one time


class TreeTooLarge(ValueError):
    """The task has more completions than the limit of an enumeration."""


@dataclass(frozen=True)
class Tree:
    """Every state of a toy, level by level: the states of time t are `levels[t]`, and precede those of time t + 1.

    Attributes:
        mdp: the task.
        prompt: int64 [S], the index of each state's prompt.
        tokens: int64 [S, T_max], the completion so far, -1 from time t on.
        levels: the slice of the states of each time.
        ref_log_probs: float64 [S, V], log pi_ref(a|s).
        child: int64 [S, V], the state after action a; -1 where the episode terminates, -2 where the action is masked.
        scores: float64 [S, V], the score where the episode terminates, else 0.
        shaping: float64 [S, V], the sum of the shaping terms; 0 where masked.
        gold_scores: as `scores`, by the gold reward; None where the task has none.
    """

    mdp: TextMDP
    prompt: NDArray[np.int64]
    tokens: NDArray[np.int64]
    levels: list[Level]
    ref_log_probs: NDArray[np.float64]
    child: NDArray[np.int64]
    scores: NDArray[np.float64]
    shaping: NDArray[np.float64]
    gold_scores: NDArray[np.float64] | None

    @property
    def rewards(self) -> NDArray[np.float64]:
        """The reward of each action without the KL, [S, V]."""
        return self.scores + self.shaping

    @property
    def num_completions(self) -> int:
        """The number of finished completions, over all prompts."""
        return int((self.child == -1).sum())

    def observations(self, rows: Selection) -> tuple[Array, Array]:
        """`input_ids`, `attention_mask` [K, L] of the states `rows`, as in the environment's observations."""
        return observations(self.mdp, self.prompt[rows], self.tokens[rows])

    def state_index(self, prompt: str, completion: object = ()) -> int:
        """The index of the state after `completion` (text or ids, possibly empty), as in the arrays of `textenv.exact`.

        Raises:
            ValueError: the prompt is not in the list, or no state begins with the completion.
        """
        if prompt not in self.mdp.prompts.texts:
            raise ValueError(
                f"The prompt must be one of the task's, such as {self.mdp.prompts.texts[0]!r}, got {prompt!r}."
            )
        state = self.mdp.prompts.texts.index(prompt)
        for token in self.mdp.encode_completion(completion):
            if (state := int(self.child[state, token])) < 0:
                raise ValueError(
                    f"The completion must lead to a state, got {completion!r}, which token {token} ends or makes "
                    "impossible; leave that token out."
                )
        return state

    def states_of(self, prompt: int, tokens: Sequence[int]) -> NDArray[np.int64]:
        """The states s_t in which the tokens a_t of a completion are chosen, [T]; the prompt is given by its index."""
        states = [prompt]  # the states of time 0 are the prompts, in their order
        for token in tokens:
            states.append(int(self.child[states[-1], token]))
        return np.array(states[:-1], dtype=np.int64)

    def leaves(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The last state and action of every finished completion, [N] each, sorted by state, then action."""
        state, action = np.nonzero(self.child == -1)
        return state, action

    def paths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """States s_t and actions a_t of every finished completion, [N, T], -1 after the end; ordered as `leaves`."""
        predecessor = np.full((2, len(self.prompt)), -1)  # the state and the action that lead to each state
        parent, action = np.nonzero(self.child >= 0)
        predecessor[:, self.child[parent, action]] = parent, action
        state, action = self.leaves()
        time = np.searchsorted([level.start for level in self.levels], state, side="right") - 1
        row = np.arange(len(state))
        states, actions = np.full((2, len(state), len(self.levels)), -1)
        while len(row):
            states[row, time], actions[row, time] = state, action
            row, state, time = row[time > 0], state[time > 0], time[time > 0] - 1
            state, action = predecessor[:, state]
        return states, actions

    def completion_log_probs(self, log_probs: Array) -> NDArray[np.float64]:
        """log pi(y|x), [N], of every finished completion, from log pi(a|s), [S, V]; ordered as `leaves`."""
        reach = self.log_reach(log_probs)
        state, action = self.leaves()
        return np.asarray(reach[state] + log_probs[state, action])

    def log_reach(self, log_probs: Array) -> NDArray[np.float64]:
        """log P(s | x, pi), [S]: the log-probability that an episode from the prompt of s reaches s."""
        reach = np.zeros(len(self.prompt))
        for level in self.levels:
            parent, action = np.nonzero(self.child[level] >= 0)
            parent = parent + level.start
            reach[self.child[parent, action]] = reach[parent] + log_probs[parent, action]
        return reach

    def backward(self, backup: Callable[[Level, Array], Array]) -> tuple[Array, Array]:
        """Backward induction over time with `backup(level, Q [K, V]) -> V [K]`; returns V [S] and Q [S, V]."""
        values = np.zeros(len(self.prompt) + 2)  # child -1 and -2 read the zeros at the end: V(s_T) = 0
        rewards = self.rewards
        q_values = np.zeros_like(rewards)
        for level in reversed(self.levels):
            q_values[level] = rewards[level] + values[self.child[level]]
            values[level] = backup(level, q_values[level])
        return values[:-2], q_values


Enumerable = EnvLike | TextMDP | Tree  # what has a tree, or is one


def enumerate_tree(env: EnvLike | TextMDP, max_completions: int = MAX_COMPLETIONS) -> Tree:
    """Enumerates every state of the task, in batches.

    Raises:
        TreeTooLarge: more than `max_completions` finished completions; raised before memory is allocated for them.
        ValueError: the reference allows no token in some state.
    """
    mdp = get_mdp(env)
    _check_size(mdp, max_completions)
    num_prompts, horizon = len(mdp.prompts.texts), mdp.max_new_tokens
    prompt = np.arange(num_prompts)
    tokens = np.full((num_prompts, horizon), -1, dtype=np.int64)
    num_finished, num_states, levels = 0, 0, []
    names = ("prompt", "tokens", "ref_log_probs", "child", "scores", "shaping", "gold_scores")
    parts: dict[str, list[Array]] = {name: [] for name in names}
    for time in range(horizon):
        levels.append(slice(num_states, num_states + len(prompt)))
        num_states += len(prompt)
        log_probs = in_batches(len(prompt), lambda rows, p=prompt, y=tokens: _ref_log_probs(mdp, p[rows], y[rows]))
        allowed = log_probs > -np.inf
        if (stuck := ~allowed.any(axis=1)).any():
            row = int(np.argmax(stuck))
            raise ValueError(
                "The reference must allow a token in every state that it reaches, got none after "
                f"{mdp.decode(tokens[row, :time])!r} ({mdp.prompts.texts[prompt[row]]!r}); let it allow the EOS token."
            )
        ends = allowed & (mdp.is_eos | (time == horizon - 1))
        continues = allowed & ~ends
        num_finished += int(ends.sum())
        at_least = num_finished + int(continues.sum())  # each state leads to at least one finished completion
        if at_least > max_completions:
            raise TreeTooLarge(
                f"The task has more than {at_least:,} completions (already at token {time + 1} of "
                f"{horizon}), the limit is {max_completions:,}; lower max_new_tokens, or raise max_completions."
            )
        child = np.where(ends, -1, -2)
        child[continues] = num_states + np.arange(int(continues.sum()))
        rewards = _rewards(mdp, prompt, tokens, time, allowed, ends)
        for name, part in zip(names, (prompt, tokens, log_probs, child, *rewards), strict=True):
            parts[name].append(part)
        parent, action = np.nonzero(continues)
        if len(parent) == 0:
            break
        prompt, tokens = prompt[parent], tokens[parent]
        tokens[:, time] = action
    arrays: dict[str, Array] = {name: np.concatenate(part) for name, part in parts.items()}
    gold_scores = arrays.pop("gold_scores")
    return Tree(mdp, levels=levels, gold_scores=None if mdp.gold_reward is None else gold_scores, **arrays)


def _check_size(mdp: TextMDP, max_completions: int) -> None:
    """Raises `TreeTooLarge` where nothing is masked, as the tree's size is then known without enumeration."""
    if not mdp.full_support:
        return
    ends = len(set(mdp.eos_token_ids))
    others = mdp.vocab_size - ends
    prompts, horizon = len(mdp.prompts.texts), mdp.max_new_tokens
    per_prompt = sum(others**t * ends for t in range(horizon - 1)) + others ** (horizon - 1) * mdp.vocab_size
    count = prompts * per_prompt
    if count > max_completions:
        size = f"{count:,}" if count < 10**15 else f"about 10^{int(math.log10(count))}"
        raise TreeTooLarge(
            f"The task has {size} completions ({prompts} prompts, {mdp.vocab_size} tokens, up to {horizon} of them), "
            f"the limit is {max_completions:,}; lower max_new_tokens or the vocabulary, or raise max_completions."
        )


def observations(mdp: TextMDP, prompt: Array, tokens: Array) -> tuple[Array, Array]:
    """`input_ids`, `attention_mask` [K, L] of prompt indices [K] and completions [K, T_max], -1 in empty columns."""
    real = tokens >= 0
    input_ids = np.concatenate([mdp.prompts.input_ids[prompt], np.where(real, tokens, 0)], axis=1)
    attention_mask = np.concatenate([mdp.prompts.attention_mask[prompt], real.astype(np.int8)], axis=1)
    return input_ids, attention_mask


def _ref_log_probs(mdp: TextMDP, prompt: Array, tokens: Array) -> NDArray[np.float64]:
    return mdp.reference.log_probs(*observations(mdp, prompt, tokens)).astype(np.float64)


def _rewards(
    mdp: TextMDP, prompt: Array, tokens: Array, time: int, allowed: Array, ends: Array
) -> tuple[Array, Array, Array]:
    """Score, shaping and gold score of every allowed action in the states of one time, [K, V] each."""
    all_scores, all_shaping, all_gold = np.zeros((3, *allowed.shape))
    parent, action = np.nonzero(allowed)
    for start in range(0, len(parent), BATCH):
        states, actions = parent[start : start + BATCH], action[start : start + BATCH]
        finished = ends[states, actions]
        if not finished.any() and not mdp.shaping:
            continue
        before = mdp.empty_state(len(states))
        mdp.reset_rows(before, np.arange(len(states)), prompt[states])
        before.input_ids[:, mdp.prompt_width :] = np.maximum(tokens[states], 0)
        before.attention_mask[:, mdp.prompt_width :] = tokens[states] >= 0
        before.time[:] = time
        scores = np.zeros(len(states))
        if finished.any():
            y = np.concatenate([tokens[states[finished], :time], actions[finished, None]], axis=1)
            length = np.full(len(y), time + 1)
            completions = mdp.finished(prompt[states[finished]], before.prompt_text[finished], y, length)
            scores[finished] = mdp.score(completions)
            if (gold := mdp.gold_score(completions)) is not None:
                all_gold[states[finished], actions[finished]] = gold
        transitions = mdp.transitions(before, actions[:, None], np.ones((len(states), 1), dtype=np.bool_))
        all_scores[states, actions] = scores
        all_shaping[states, actions] = sum(values[:, 0] for values in mdp.shaping_terms(transitions).values())
    return all_scores, all_shaping, all_gold


def in_batches(count: int, function: Callable[..., Array]) -> Array:
    """`function(slice)` over 0 .. count in slices of BATCH; returns the results as one array."""
    return np.concatenate([function(slice(start, start + BATCH)) for start in range(0, count, BATCH)])
