"""TabulatedBatch: `EpisodeBatch` of a task so small that its tree is enumerated beforehand; a step is a lookup."""

from __future__ import annotations

from functools import reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, TextState
from textenv.stepping.batch import FINISH_REASONS, EpisodeBatch, FinalInfo, StepResult, full_action_mask
from textenv.stepping.prompt_streams import PromptStreams
from textenv.tree import Tree, enumerate_tree, observations

MAX_TABULATED_COMPLETIONS = 2**14  # enumerating this many takes some milliseconds
MAX_TABLE_ENTRIES = 2**20  # numbers per table, states times V, at most: 8 megabytes


class TabulatedBatch:
    """B episodes in progress on a known tree: the state of an episode is one number, its node.

    Nodes 0 .. S-1 are the tree's states (the first P of them the prompts), S .. S+N-1 its finished completions. The
    tables of a token's effect are indexed by edge, `state * V + token`. State S has edges that do nothing, for episodes
    that have ended.

    Args:
        mdp: the task.
        num: B.
        tree: its tree, without shaping.
    """

    policy = None  # binding a policy needs `to_batch`

    def __init__(self, mdp: TextMDP, num: int, tree: Tree) -> None:
        self.mdp, self.num = mdp, num
        self.streams = PromptStreams(num, len(mdp.prompts.texts))
        self.started = False
        self.live = np.zeros(num, dtype=np.bool_)  # replaced, not changed, by `step`: a `StepResult` holds the last one
        self._tabulate_edges(tree)
        self._tabulate_nodes(tree)
        self.node = np.full(num, self.num_states)

    def _tabulate_edges(self, tree: Tree) -> None:
        """Next node, score and log pi_ref of each edge, [(S+1) V]."""
        self.num_states = len(tree.prompt)
        child = np.where(tree.child == -2, 0, tree.child)  # masked: never followed
        child[tree.child == -1] = self.num_states + np.arange(tree.num_completions)
        self.child, self.scores, self.ref_log_prob = (
            np.pad(values, ((0, 1), (0, 0))).reshape(-1) for values in (child, tree.scores, tree.ref_log_probs)
        )

    def _tabulate_nodes(self, tree: Tree) -> None:
        """Observation and `info` of each node, [S+N]; what only a finished completion has is 0 or None elsewhere."""
        mdp, (state, token) = self.mdp, tree.leaves()
        prompt, completions = tree.prompt[state], tree.tokens[state]
        length = (completions >= 0).sum(axis=1) + 1
        completions[np.arange(len(completions)), length - 1] = token
        self.prompt = np.concatenate([tree.prompt, prompt])
        self.finished = np.arange(len(self.prompt)) >= self.num_states
        self.first_edge = np.minimum(np.arange(len(self.prompt)), self.num_states) * mdp.vocab_size
        self.prompt_text = mdp.prompt_texts.take(self.prompt)
        tokens = np.concatenate([tree.tokens, completions])
        self.time = (tokens >= 0).sum(axis=1)
        self.input_ids, self.attention_mask = observations(mdp, self.prompt, tokens)
        self.completion, self.finish_reason = np.full((2, len(tokens)), None, dtype=object)
        finished = mdp.finished(prompt, mdp.prompt_texts.take(prompt), np.maximum(completions, 0), length)
        self.completion[self.num_states :] = finished.completions
        self.finish_reason[self.num_states :] = FINISH_REASONS.take(mdp.is_eos.take(token))
        self.gold_score = None
        if tree.gold_scores is not None:
            self.gold_score = np.concatenate([np.zeros(self.num_states), tree.gold_scores[state, token]])

    @property
    def state(self) -> TextState:
        """A copy of the states."""
        names = ("prompt", "prompt_text", "input_ids", "attention_mask", "time")
        return TextState(**{name: getattr(self, name).take(self.node, axis=0) for name in names})

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        rows = self.ref_log_prob.reshape(-1, self.mdp.vocab_size)
        log_probs: Array = rows.take(np.minimum(self.node, self.num_states), axis=0)
        return log_probs

    def to_batch(self) -> EpisodeBatch:
        """An `EpisodeBatch` with the same episodes: it takes any state and a bound policy."""
        episodes = EpisodeBatch(self.mdp, self.num)
        episodes.streams, episodes.started = self.streams, self.started
        if self.started:
            rows = np.arange(self.num)
            episodes.state.put(rows, self.state)
            episodes.cursor.reset_rows(rows, None)
            episodes.live = self.live.copy()
        episodes.refresh()
        return episodes

    def start(self, rows: Any) -> None:
        """Starts an episode in these rows (indices, or one), with a prompt from each row's stream."""
        self.node[rows] = self.streams.draw(rows)
        self.live[rows] = True
        self.started = True

    def refresh(self) -> None:
        """No-op: log-probabilities are tabulated."""

    def step(self, actions: Any) -> StepResult:
        """As `EpisodeBatch.step` without an `illegal_reward`, which needs `to_batch`."""
        if not self.started:
            raise gym.error.ResetNeeded("No episode is in progress: call reset() before step().")
        mdp, live = self.mdp, self.live
        idle = (~live).nonzero()[0]
        tokens = mdp.validate_actions(actions, idle, len(live))
        edge = self.first_edge.take(self.node)
        edge += tokens
        ref_log_prob = self.ref_log_prob.take(edge)
        if not mdp.full_support and ref_log_prob.min() == -np.inf:
            bad = int(np.flatnonzero(np.isneginf(ref_log_prob))[0])
            raise mdp.masked_action_error(self.state, bad, int(tokens[bad]))
        terms = mdp.combine_terms(self.scores.take(edge), ref_log_prob, {})

        # Nothing changes before this line.
        self.node = node = self.child.take(edge)
        terminated = self.finished.take(node)
        self.live = ~terminated
        final = self._final_info(node) if terminated.any() else None
        if len(idle):
            self.start(idle)
        return StepResult(reduce(np.add, terms.values()), terminated, live, ref_log_prob, terms, final)

    def _final_info(self, node: NDArray[np.int64]) -> FinalInfo:
        return FinalInfo(
            prompt=self.prompt_text.take(node),
            completion=self.completion.take(node),
            gold_score=None if self.gold_score is None else self.gold_score.take(node),
            kl=None,
            finish_reason=self.finish_reason.take(node),
        )

    def observation(self) -> dict[str, Array]:
        """As `EpisodeBatch.observation`."""
        return {
            "input_ids": self.input_ids.take(self.node, axis=0),
            "attention_mask": self.attention_mask.take(self.node, axis=0),
        }

    def action_mask(self) -> NDArray[np.int8]:
        """As `EpisodeBatch.action_mask`."""
        if self.mdp.full_support:
            return full_action_mask(self.num, self.mdp.vocab_size)
        allowed: NDArray[np.int8] = (self.ref_log_probs > -np.inf).astype(np.int8)
        return allowed


def make_episodes(mdp: TextMDP, num: int) -> EpisodeBatch | TabulatedBatch:
    """A `TabulatedBatch` where the task has few completions, a table as the reference, pure rewards and no shaping.

    Else an `EpisodeBatch`.
    """
    if type(mdp.reference) is not TableReference or mdp.shaping or not mdp.is_pure:
        return EpisodeBatch(mdp, num)
    limit = min(MAX_TABULATED_COMPLETIONS, MAX_TABLE_ENTRIES // (mdp.vocab_size * mdp.max_new_tokens))
    try:
        return TabulatedBatch(mdp, num, enumerate_tree(mdp, max_completions=limit))
    except ValueError:  # too large; or an invalid score of some completion, which is reported when it is reached
        return EpisodeBatch(mdp, num)
