"""The plainest core, an oracle of `EpisodeBatch`: one episode in Python numbers, the reference called at every step.

It keeps no table, tree or cache, and knows no batch. Gymnasium's `SyncVectorEnv` makes a batch of it, with autoreset.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from tests.helpers.episode_model import Stream
from textenv import InvalidAction, TextMDP
from textenv.bound_policy import policy_logits
from textenv.categorical import masked_log_softmax
from textenv.spaces import action_space, observation_space

FINISH_REASON = {True: "stop", False: "length"}


class PlainEnv(gym.Env[Any, Any]):
    """What `TextEnv` returns from `reset` and `step`."""

    def __init__(self, mdp: TextMDP, policy: Any = None, illegal_reward: float | None = None) -> None:
        self.mdp, self.policy, self.illegal_reward = mdp, policy, illegal_reward
        self.observation_space, self.action_space = observation_space(mdp), action_space(mdp)
        self.state, self.live, self.stream = mdp.empty_state(1), False, None

    def bind_policy(self, policy: Any) -> None:
        """Binds pi; the KL of an episode in progress is not known then."""
        self.policy = policy
        if self.live:
            self.kl = float("nan")

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None or self.stream is None:
            self.stream = Stream(self.np_random_seed, len(self.mdp.prompts.texts))
        drawn, options = self.stream.draw(), options or {}
        self.state = self.mdp.make_state(options.get("prompt", drawn), options.get("completion", ()))
        self.live, self.kl = True, 0.0
        return self.observation(), {"action_mask": self.action_mask()}

    def step(self, action: Any) -> Any:
        mdp, state, token = self.mdp, self.state, int(action)
        if not self.live:
            raise gym.error.ResetNeeded
        ref_log_prob = float(mdp.next_ref_log_probs(state)[0, token])
        width, time = mdp.prompt_width, int(state.time[0])
        if ref_log_prob == -np.inf:
            if self.illegal_reward is None:
                raise InvalidAction(f"Token {token} is masked.")
            self.live, terms = False, {"illegal": self.illegal_reward}
            completion = mdp.decode(state.input_ids[0, width : width + time])
            final = {"prompt": state.prompt_text[0], "completion": completion, "finish_reason": "illegal"}
            return self.transition(self.illegal_reward, ref_log_prob, terms, final)
        log_prob = None
        if self.policy is not None:
            logits = policy_logits(self.policy, state.input_ids, state.attention_mask, mdp.vocab_size)
            log_prob = float(masked_log_softmax(logits, self.action_mask()[None] == 1)[0, token])
            self.kl += log_prob - ref_log_prob
        transitions = mdp.transitions(state, np.array([[token]]), np.array([[True]]))
        shaping = {name: float(value[0, 0]) for name, value in mdp.shaping_terms(transitions).items()}
        state.input_ids[0, width + time], state.attention_mask[0, width + time] = token, 1
        state.time[0] = time + 1
        stop = token in mdp.eos_token_ids
        self.live = not (stop or time + 1 == mdp.max_new_tokens)
        final = {} if self.live else self.final_info(stop)
        terms = mdp.combine_terms(final.get("score", 0.0), ref_log_prob, shaping, log_prob)
        return self.transition(sum(terms.values()), ref_log_prob, terms, final)

    def final_info(self, stop: bool) -> dict[str, Any]:
        """`info` of the completion that has ended."""
        mdp, state, width = self.mdp, self.state, self.mdp.prompt_width
        tokens = state.input_ids[:, width : width + int(state.time[0])]
        finished = mdp.finished(state.prompt, state.prompt_text, tokens, state.time)
        final = {"prompt": state.prompt_text[0], "completion": finished.completions[0]}
        final |= {"score": float(mdp.score(finished)[0]), "finish_reason": FINISH_REASON[stop]}
        if mdp.gold_reward is not None:
            final["gold_score"] = float(mdp.gold_reward.score(finished)[0])
        known = self.policy is not None and self.kl == self.kl
        return final | {"kl": self.kl} if known else final

    def transition(self, reward: float, ref_log_prob: float, terms: Any, final: Any) -> Any:
        """The five things that `step` returns."""
        info = {"action_mask": self.action_mask(), "ref_log_prob": ref_log_prob, "reward_terms": terms, **final}
        return self.observation(), reward, not self.live, False, info

    def observation(self) -> dict[str, Any]:
        """The state."""
        return {"input_ids": self.state.input_ids[0].copy(), "attention_mask": self.state.attention_mask[0].copy()}

    def action_mask(self) -> Any:
        """Where the reference gives a positive probability; all 1 where the episode has ended."""
        if not self.live:
            return np.ones(self.mdp.vocab_size, dtype=np.int8)
        return (self.mdp.next_ref_log_probs(self.state)[0] > -np.inf).astype(np.int8)
