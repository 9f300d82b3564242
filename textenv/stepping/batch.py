"""EpisodeBatch: B episodes in progress. `step` is the one step of both environments, for any task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, reduce

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.actions import validate_actions
from textenv.bound_policy import PolicyFunction, action_log_probs, check_policy
from textenv.mdp import TextMDP
from textenv.state import Array, Rows, TextState
from textenv.stepping.backend import Backend, make_backend
from textenv.stepping.prompt_streams import PromptStreams
from textenv.stepping.results import FinalInfo, StepResult


class EpisodeBatch:
    """B episodes in progress: `step` appends tokens and computes rewards, then `refresh` calls the reference once.

    The states are in a `Backend`, chosen for the task. Binding a policy, starting in a named state, and an illegal
    reward move them for good to one that takes any task and state.

    Attributes:
        live: bool [B], the episodes that have not ended. A step replaces the array.
        kl: float64 [B], sum of log pi - log pi_ref over the tokens since the reset, with a bound policy; nan where a
            policy was bound in the middle of an episode.
        started: whether every row has had an episode, and so a stream of prompts.
    """

    def __init__(self, mdp: TextMDP, num: int, policy: PolicyFunction | None = None) -> None:
        self.mdp = mdp
        self.backend: Backend = make_backend(mdp, num)
        self.streams = PromptStreams(num, len(mdp.prompts.texts))
        self.live = np.zeros(num, dtype=np.bool_)
        self.kl = np.zeros(num)
        self.started = False
        self.bind(policy)

    @property
    def state(self) -> TextState:
        """A copy of the states, one per row."""
        return self.backend.state

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.backend.ref_log_probs

    def bind(self, policy: PolicyFunction | None) -> None:
        """Includes this policy's log-probabilities in the reward; None: no policy's."""
        check_policy(policy)
        if policy is not None:
            self.backend = self.backend.generalize()
        self.policy = policy
        self.kl[self.live] = np.nan

    def start(self, rows: Rows, options: Mapping[str, object] | None = None) -> None:
        """Starts an episode in these rows (indices, or one), in the state that `options` names.

        A row's stream gives the prompt where `options` has none.
        """
        drawn = self.streams.draw(rows)
        if not options:
            self.backend.start(rows, drawn)
        else:  # all states are made before anything changes: a refused reset leaves the episodes as they were
            prompt, rows, drawn = options.get("prompt"), np.atleast_1d(rows), np.atleast_1d(drawn)
            groups = [(prompt, rows)] if prompt is not None else [(i, rows[drawn == i]) for i in np.unique(drawn)]
            states = [self.mdp.make_state(first, options.get("completion", ())) for first, _ in groups]
            self.backend = backend = self.backend.generalize()
            for (_, group), state in zip(groups, states, strict=True):
                backend.put(group, state)
        self.live[rows] = True
        self.kl[rows] = 0.0
        self.started = True

    @contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """Restores the episodes if its block raises."""
        state, live, kl, streams = self.state, self.live.copy(), self.kl.copy(), self.streams.snapshot()
        try:
            yield
        except BaseException:
            self.backend = backend = self.backend.generalize()
            backend.put(np.arange(len(live)), state)
            self.live, self.kl = live, kl
            self.streams.restore(streams)
            raise

    def refresh(self) -> None:
        """Brings log pi_ref up to date with the states."""
        self.backend.refresh(self.live)

    def restore_if_refresh_fails(self) -> AbstractContextManager[None]:
        """`restore_on_error` for a step and its `refresh`; free where no reference is called."""
        return self.restore_on_error() if self.backend.calls_reference else nullcontext()

    def step(self, actions: object, illegal_reward: float | None = None) -> StepResult:
        """Appends one token to every live episode and computes the rewards.

        Rows whose episode had ended start a new one instead: their actions are ignored, their rewards are zero.
        A masked action raises `InvalidAction`; with an `illegal_reward` it ends its episode with that reward instead.
        """
        if not self.started:
            raise gym.error.ResetNeeded("No episode is in progress: call reset() before step().")
        if illegal_reward is not None:
            self.backend = self.backend.generalize()
        mdp, backend, stepped = self.mdp, self.backend, self.live
        idle = (~stepped).nonzero()[0]
        tokens = validate_actions(actions, mdp.vocab_size, idle, len(stepped))
        if len(idle) == len(stepped):
            self.start(idle)
            return StepResult.of_resets(len(stepped))
        ref_log_prob, after = backend.look_up(tokens)
        if len(idle):
            ref_log_prob[idle] = 0.0
        live, illegal, illegal_terms = stepped, None, {}
        if not mdp.full_support and ref_log_prob.min() == -np.inf:
            illegal = np.isneginf(ref_log_prob)
            if illegal_reward is None:
                row = int(illegal.argmax())
                raise mdp.masked_action_error(backend.state, row, int(tokens[row]))
            tokens[illegal], ref_log_prob[illegal] = 0, 0.0
            live, illegal_terms = stepped & ~illegal, {"illegal": np.where(illegal, illegal_reward, 0.0)}
        log_prob, kl = None, self.kl
        if self.policy is not None and live.any():
            log_prob = self._policy_log_prob(self.policy, tokens, live)
            kl = kl + (log_prob - ref_log_prob)

        terminated, scores, final = backend.finish(tokens, after, live)
        shaping: dict[str, Array] = {}
        if mdp.shaping:
            shaping = mdp.shaping_terms(mdp.transitions(backend.state, tokens[:, None], live[:, None]))
            shaping = {name: values[:, 0] for name, values in shaping.items()}
        terms = mdp.combine_terms(scores, ref_log_prob, shaping, log_prob) | illegal_terms
        if final is not None and self.policy is not None:
            final.kl = kl.copy()
        if illegal is not None:
            final = self._illegal_final(final, illegal)
            ref_log_prob, terminated = np.where(illegal, -np.inf, ref_log_prob), terminated | illegal

        # Nothing changes before this line: a refused action and a failed reward leave the episodes as they were.
        backend.commit(tokens, after, live)
        self.kl, self.live = kl, stepped & ~terminated
        if len(idle):
            self.start(idle)
        return StepResult(reduce(np.add, terms.values()), terminated, stepped, ref_log_prob, terms, final, illegal)

    def _policy_log_prob(self, policy: PolicyFunction, tokens: Array, live: NDArray[np.bool_]) -> NDArray[np.float64]:
        """log pi(a_t | s_t) of the bound policy, [B], zero in rows that are not live."""
        observation = self.observation()  # a copy: the policy may write to its arguments
        return action_log_probs(policy, **observation, actions=tokens, allowed=self.action_mask() == 1, live=live)

    def _illegal_final(self, final: FinalInfo | None, illegal: NDArray[np.bool_]) -> FinalInfo:
        """Adds the completions that a masked action breaks off to `final`. They have no score, and not its token."""
        state, width = self.state, self.mdp.prompt_width
        if final is None:
            completion, finish_reason = np.full((2, len(illegal)), None, dtype=object)
            final = FinalInfo(state.prompt_text, completion, finish_reason)
        rows = illegal.nonzero()[0].tolist()
        final.completion[illegal] = [self.mdp.decode(state.completion_ids(row, width)) for row in rows]
        final.finish_reason[illegal] = "illegal"
        return final

    def completion(self, row: int) -> str:
        """The completion so far of one row, as text."""
        return self.mdp.decode(self.state.completion_ids(row, self.mdp.prompt_width))

    def observation(self) -> dict[str, Array]:
        """A copy of `input_ids` and `attention_mask`, [B, L]."""
        return self.backend.observation()

    def action_mask(self) -> NDArray[np.int8]:
        """int8 [B, V]: 1 where the next token is allowed; all 1 where the episode has ended and no action counts.

        Where the reference masks nothing this is one read-only array, the same at every step.
        """
        if self.mdp.full_support:
            return full_action_mask(len(self.live), self.mdp.vocab_size)
        allowed: NDArray[np.int8] = ((self.ref_log_probs > -np.inf) | ~self.live[:, None]).astype(np.int8)
        return allowed


@cache
def full_action_mask(rows: int, vocab_size: int) -> NDArray[np.int8]:
    """The mask that allows every token, [B, V] on V bytes of memory; read-only."""
    return np.broadcast_to(np.ones(vocab_size, dtype=np.int8), (rows, vocab_size))
