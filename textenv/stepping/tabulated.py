"""Walk: B texts of a task so small that all of them are written down beforehand; a step looks up where it leads."""

from __future__ import annotations

from functools import reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, TextState
from textenv.stepping.batch import FINISH_REASONS, EpisodeBatch, FinalInfo, StepResult, everything
from textenv.stepping.prompt_streams import PromptStreams
from textenv.tree import Tree, enumerate_tree, observations

MAX_TABULATED_COMPLETIONS = 2**14  # texts that are worth writing down: some milliseconds
MAX_TABLE_ENTRIES = 2**20  # numbers a table, states times V, at most: 8 megabytes


class TabulatedBatch:
    """`EpisodeBatch` of a task whose tree is known: each text is one number, the node of the tree at which it stands.

    Nodes 0 .. S-1 are the tree's states (the first P of them the prompts), S .. S+N-1 its finished texts. What a token
    does stands at its edge, `state * V + token`; the edges of "state" S do nothing, for texts that have ended.

    Args:
        process: the task.
        num: B.
        tree: its tree, without shaping.
    """

    policy = None  # who binds one goes on with `episodes`

    def __init__(self, mdp: TextMDP, num: int, tree: Tree) -> None:
        self.mdp, self.num = mdp, num
        self.streams = PromptStreams(num, len(mdp.prompts.texts))
        self.started = False
        self.live = np.zeros(num, dtype=np.bool_)  # another array at every step: the last one may be handed out
        self._tabulate_edges(tree)
        self._tabulate_nodes(tree)
        self.node = np.full(num, self.num_states)

    def _tabulate_edges(self, tree: Tree) -> None:
        """[(S+1) V] each."""
        self.num_states = len(tree.prompt)
        child = np.where(tree.child == -2, 0, tree.child)  # masked: nobody comes there
        child[tree.child == -1] = self.num_states + np.arange(tree.num_completions)
        self.child, self.scores, self.ref_log_prob = (
            np.pad(values, ((0, 1), (0, 0))).reshape(-1) for values in (child, tree.scores, tree.ref_log_probs)
        )

    def _tabulate_nodes(self, tree: Tree) -> None:
        """[S+N] each; what only a finished text has is 0 or None in the others."""
        mdp, (state, token) = self.mdp, tree.leaves()
        prompt, answers = tree.prompt[state], tree.tokens[state]
        length = (answers >= 0).sum(axis=1) + 1
        answers[np.arange(len(answers)), length - 1] = token
        self.prompt = np.concatenate([tree.prompt, prompt])
        self.finished = np.arange(len(self.prompt)) >= self.num_states
        self.first_edge = np.minimum(np.arange(len(self.prompt)), self.num_states) * mdp.vocab_size
        self.prompt_text = mdp.prompt_texts.take(self.prompt)
        tokens = np.concatenate([tree.tokens, answers])
        self.time = (tokens >= 0).sum(axis=1)
        self.input_ids, self.attention_mask = observations(mdp, self.prompt, tokens)
        self.completion, self.finish_reason = np.full((2, len(tokens)), None, dtype=object)
        finished = mdp.finished(prompt, mdp.prompt_texts.take(prompt), np.maximum(answers, 0), length)
        self.completion[self.num_states :] = finished.completions
        self.finish_reason[self.num_states :] = FINISH_REASONS.take(mdp.is_eos.take(token))
        self.gold_score = None
        if tree.gold_scores is not None:
            self.gold_score = np.concatenate([np.zeros(self.num_states), tree.gold_scores[state, token]])

    @property
    def texts(self) -> TextState:
        """The texts in full, copies."""
        names = ("prompt", "prompt_text", "input_ids", "attention_mask", "time")
        return TextState(**{name: getattr(self, name).take(self.node, axis=0) for name in names})

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        rows = self.ref_log_prob.reshape(-1, self.mdp.vocab_size)
        log_probs: Array = rows.take(np.minimum(self.node, self.num_states), axis=0)
        return log_probs

    def to_batch(self) -> EpisodeBatch:
        """The same texts, to be stepped without the tree: from any state, and with a bound policy."""
        episodes = EpisodeBatch(self.mdp, self.num)
        episodes.streams, episodes.started = self.streams, self.started
        if self.started:
            every = np.arange(self.num)
            episodes.texts.put(every, self.texts)
            episodes.cursor.begin(every, None)
            episodes.live = self.live.copy()
        episodes.refresh()
        return episodes

    def start(self, rows: Any) -> None:
        """As `EpisodeBatch.start`."""
        self.node[rows] = self.streams.draw(rows)
        self.live[rows] = True
        self.started = True

    def refresh(self) -> None:
        """Nobody needs to be asked."""

    def step(self, actions: Any) -> StepResult:
        """As `EpisodeBatch.write`."""
        if not self.started:
            raise gym.error.ResetNeeded("No text is in progress: call reset() before step().")
        mdp, live = self.mdp, self.live
        idle = (~live).nonzero()[0]
        tokens = mdp.validate_actions(actions, idle, len(live))
        edge = self.first_edge.take(self.node)
        edge += tokens
        chosen = self.ref_log_prob.take(edge)
        if not mdp.full_support and chosen.min() == -np.inf:
            bad = int(np.flatnonzero(np.isneginf(chosen))[0])
            raise mdp.masked_action_error(self.texts, bad, int(tokens[bad]))
        terms = mdp.combine_terms(self.scores.take(edge), chosen, {})

        # Nothing is changed before this line.
        self.node = node = self.child.take(edge)
        terminated = self.finished.take(node)
        self.live = ~terminated
        ended = self._ended(node) if terminated.any() else None
        if len(idle):
            self.start(idle)
        return StepResult(reduce(np.add, terms.values()), terminated, live, chosen, terms, ended)

    def _ended(self, node: NDArray[np.int64]) -> FinalInfo:
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
            return everything(self.num, self.mdp.vocab_size)
        allowed: NDArray[np.int8] = (self.ref_log_probs > -np.inf).astype(np.int8)
        return allowed


def make_episodes(mdp: TextMDP, num: int) -> EpisodeBatch | TabulatedBatch:
    """A `TabulatedBatch` where the task allows one: few texts, a table as the reference, rewards that only count tokens."""
    if type(mdp.reference) is not TableReference or mdp.shaping or not mdp.is_pure:
        return EpisodeBatch(mdp, num)
    few = min(MAX_TABULATED_COMPLETIONS, MAX_TABLE_ENTRIES // (mdp.vocab_size * mdp.max_new_tokens))
    try:
        return TabulatedBatch(mdp, num, enumerate_tree(mdp, max_completions=few))
    except ValueError:  # too large; or some text is refused, which is to be told when somebody writes it
        return EpisodeBatch(mdp, num)
