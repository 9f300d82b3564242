"""TabulatedBackend: a task so small that its tree is enumerated beforehand; a step is a few lookups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, Rows, TextState
from textenv.stepping.reference import ReferenceBackend
from textenv.stepping.results import FINISH_REASONS, FinalInfo
from textenv.stepping.table import TableBackend
from textenv.tree import Tree, enumerate_tree, observations

MAX_TABULATED_COMPLETIONS = 2**14  # enumerating this many takes some milliseconds
MAX_TABLE_ENTRIES = 2**20  # numbers per table, states times V, at most: 8 megabytes


class TabulatedBackend:
    """B states of a known tree, see `Backend`: the state of an episode is one number, its node.

    Nodes 0 .. S-1 are the tree's states (the first P of them the prompts), S .. S+N-1 its finished completions. The
    tables of a token's effect are indexed by edge, `state * V + token`. State S is that of an episode that has
    ended: its edges cost nothing and lead to node 0, and the same step starts a new episode in that row.

    Args:
        mdp: the task.
        num: B.
        tree: its tree, without shaping.
    """

    calls_reference = False

    def __init__(self, mdp: TextMDP, num: int, tree: Tree) -> None:
        self.mdp, self.num, self.num_states = mdp, num, len(tree.prompt)
        self._tabulate_edges(tree)
        self._tabulate_nodes(tree)
        self.node = np.full(num, self.num_states)

    def _tabulate_edges(self, tree: Tree) -> None:
        """Next node and log pi_ref of each edge, [(S+1) V]."""
        child = np.where(tree.child == -2, 0, tree.child)  # masked: never followed
        child[tree.child == -1] = self.num_states + np.arange(tree.num_completions)
        self.child, self.ref_log_prob = (
            np.pad(values, ((0, 1), (0, 0))).reshape(-1) for values in (child, tree.ref_log_probs)
        )

    def _tabulate_nodes(self, tree: Tree) -> None:
        """Observation, scores and texts of each node, [S+N]; 0 or None where only a finished completion has them."""
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
        unfinished = np.zeros(self.num_states)
        self.score = np.concatenate([unfinished, tree.scores[state, token]])
        self.gold_score = None
        if tree.gold_scores is not None:
            self.gold_score = np.concatenate([unfinished, tree.gold_scores[state, token]])

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

    def start(self, rows: Rows, prompts: Rows) -> None:
        """Sets rows (indices, or one) to s_0 of the prompts with these indices."""
        self.node[rows] = prompts

    def refresh(self, live: NDArray[np.bool_]) -> None:
        """No-op: log-probabilities are tabulated."""

    def look_up(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """log pi_ref of one token per row, [B]; and the nodes after these tokens, [B]."""
        edge = self.first_edge.take(self.node)
        edge += tokens
        return self.ref_log_prob.take(edge), self.child.take(edge)

    def finish(
        self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], FinalInfo | None]:
        """Looks up which nodes are finished completions, their scores and texts."""
        terminated = self.finished.take(after)
        final = self._final_info(after) if terminated.any() else None
        return terminated, self.score.take(after), final

    def _final_info(self, node: NDArray[np.int64]) -> FinalInfo:
        return FinalInfo(
            prompt=self.prompt_text.take(node),
            completion=self.completion.take(node),
            finish_reason=self.finish_reason.take(node),
            gold_score=None if self.gold_score is None else self.gold_score.take(node),
        )

    def commit(self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        """Moves to the nodes after these tokens."""
        self.node = after

    def observation(self) -> dict[str, Array]:
        """A copy of `input_ids` and `attention_mask`, [B, L]."""
        return {
            "input_ids": self.input_ids.take(self.node, axis=0),
            "attention_mask": self.attention_mask.take(self.node, axis=0),
        }

    def generalize(self) -> ReferenceBackend:
        """A `TableBackend` with the same states, which takes any other, too."""
        backend = TableBackend(self.mdp, self.num)
        backend.put(np.arange(self.num), self.state)
        return backend


def small_tree(mdp: TextMDP) -> Tree | None:
    """The tree of a task with few completions, a table as the reference, pure rewards and no shaping; else None."""
    if type(mdp.reference) is not TableReference or mdp.shaping or not mdp.is_pure:
        return None
    limit = min(MAX_TABULATED_COMPLETIONS, MAX_TABLE_ENTRIES // (mdp.vocab_size * mdp.max_new_tokens))
    try:
        return enumerate_tree(mdp, max_completions=limit)
    except ValueError:  # too large; or an invalid score of some completion, which is reported when it is reached
        return None
