"""The decision process: writing a text token by token. Both environments, `collect` and `exact` stand on this file.

    s_t = (x, a_0 .. a_{t-1})        the prompt and the tokens so far; V(s_T) = 0
    s_{t+1} = s_t + a_t              deterministic; ends at an end token or at max_new_tokens
    r_t = 1[t = T-1] score(x, y)  -  beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t))  +  shaping_t

Ziegler et al. 2019 (arXiv:1909.08593), Stiennon et al. 2020 (arXiv:2009.01325). The log-ratio stands *in the reward*:
the gradient of its expectation is then that of beta KL(pi || pi_ref) over whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import Array
from textenv.data import PromptSource, Tokenizer, encode_prompt, is_conversation, load_prompts
from textenv.references import as_reference, first_tokens
from textenv.rewards import FinishedCompletions, RewardFunction, WeightedReward
from textenv.shaping import ShapingTerm, Transitions, shaping_name
from textenv.state import TextState


class InvalidAction(gym.error.InvalidAction, ValueError):
    """An action that is no token, or one to which the reference gives probability zero."""


class TextMDP:
    """What an environment is made of: vocabulary, prompts, reference, reward.

    Args:
        tokenizer: Hugging Face's, or a `WordTokenizer`. V = len(tokenizer).
        prompts: a list of strings or of mappings, or a path (see `textenv.prompts.load_prompts`). Fields other than
            "prompt" reach the reward by name; None stands there for a prompt of `reset` that is not in the list.
        reward: a function `(prompts, completions, completion_ids, **columns) -> list[float | None]`, or several.
        reference: pi_ref: None (uniform), an object with `log_probs`, a causal LM or where to load one from.
        max_new_tokens: T_max, the longest answer.
        kl_coef: beta >= 0.
        reward_weights: one weight a reward function, by default 1.
        shaping: terms paid at every step (see `textenv.shaping`).
        gold_reward: a reward function that is shown (`info["gold_score"]`) and not paid: what was really wanted, where
            `reward` is a proxy of it.
        eos_token_id: the token or tokens that end a text; by default the reference's generation config's, else the
            tokenizer's.
        max_prompt_length: W, by default the longest prompt's length.

    Raises:
        ValueError: a value breaks the rule that the message names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: PromptSource,
        reward: RewardFunction | Sequence[RewardFunction],
        reference: Any = None,
        *,
        max_new_tokens: int = 32,
        kl_coef: float = 0.1,
        reward_weights: Sequence[float] | None = None,
        shaping: ShapingTerm | Sequence[ShapingTerm] = (),
        gold_reward: RewardFunction | Sequence[RewardFunction] | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        max_prompt_length: int | None = None,
    ) -> None:
        if max_new_tokens < 1 or max_new_tokens != int(max_new_tokens):
            raise ValueError(f"max_new_tokens must be a whole number, at least 1, got {max_new_tokens}.")
        if not 0 <= kl_coef < float("inf"):
            raise ValueError(f"kl_coef (beta) must be a finite number >= 0, got {kl_coef}; 0 switches the KL off.")
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.prompts = load_prompts(prompts, tokenizer, max_prompt_length)
        self.reward = WeightedReward(reward, reward_weights)
        self.gold_reward = None if gold_reward is None else WeightedReward(gold_reward, name="gold_reward")
        self.reference = as_reference(reference, self.vocab_size)
        # whether every token is allowed in every state, so that masks need not be looked at
        self.full_support = bool(getattr(self.reference, "full_support", False))
        self.max_new_tokens = int(max_new_tokens)
        self.kl_coef = float(kl_coef)
        self.shaping = (shaping,) if callable(shaping) else tuple(shaping)
        if not all(map(callable, self.shaping)):
            raise TypeError(f"shaping must be functions of transitions (see textenv.shaping), got {shaping!r}.")
        self.term_names = ["score", "kl_reference", *map(shaping_name, self.shaping)]
        if len({*self.term_names, "kl_policy"}) < len(self.term_names) + 1:
            raise ValueError(
                "Each shaping term needs a __name__ of its own, other than score, kl_reference and kl_policy, got "
                f"{self.term_names[2:]}."
            )
        self.prompt_width = width = int(self.prompts.input_ids.shape[1])
        blank = ((0, 0), (0, self.max_new_tokens))  # the first states, whole rows; the prompts are their beginnings
        self.initial_input_ids = np.pad(self.prompts.input_ids, blank)
        self.initial_attention_mask = np.pad(self.prompts.attention_mask, blank)
        self.prompts = replace(
            self.prompts,
            input_ids=self.initial_input_ids[:, :width],
            attention_mask=self.initial_attention_mask[:, :width],
        )
        self.eos_token_ids = self._end_tokens(eos_token_id)
        self.is_eos = np.zeros(self.vocab_size, dtype=np.bool_)
        self.is_eos[self.eos_token_ids] = True
        self.prompt_texts = np.array(self.prompts.texts, dtype=object)
        self.initial_action_mask = first_tokens(self.reference, self.prompts, self.vocab_size)
        context = getattr(self.reference, "max_length", None)
        if context is not None and self.prompt_width + self.max_new_tokens > context:
            raise ValueError(
                f"Prompt and answer may take {self.prompt_width} + {self.max_new_tokens} tokens, more than the "
                f"reference's context of {context}; shorten the prompts or lower max_new_tokens."
            )

    def _end_tokens(self, eos_token_id: int | Sequence[int] | None) -> list[int]:
        if eos_token_id is None:
            eos_token_id = getattr(self.reference, "eos_token_id", None)
        if eos_token_id is None:
            eos_token_id = self.tokenizer.eos_token_id
        if eos_token_id is None:
            return []
        ids = [int(eos_token_id)] if isinstance(eos_token_id, int | np.integer) else [int(i) for i in eos_token_id]
        if bad := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"eos_token_id must be in 0 .. {self.vocab_size - 1}, got {bad[0]}.")
        return ids

    # -- states ------------------------------------------------------------------------------------------------------

    def empty_state(self, batch: int) -> TextState:
        """B empty rows, to be started."""
        length = self.prompt_width + self.max_new_tokens
        return TextState(
            prompt=np.zeros(batch, dtype=np.int64),
            prompt_text=np.full(batch, None, dtype=object),
            input_ids=np.zeros((batch, length), dtype=np.int64),
            attention_mask=np.zeros((batch, length), dtype=np.int8),
            time=np.zeros(batch, dtype=np.int64),
        )

    def reset_rows(self, texts: TextState, rows: Any, prompt: Any) -> None:
        """Put rows (indices, or one) at s_0 = x of the prompts with these indices, in place."""
        texts.prompt[rows] = prompt
        texts.prompt_text[rows] = self.prompt_texts.take(prompt)
        texts.input_ids[rows] = self.initial_input_ids.take(prompt, axis=0)
        texts.attention_mask[rows] = self.initial_attention_mask.take(prompt, axis=0)
        texts.time[rows] = 0

    def initial_state(self, texts: TextState) -> TextState:
        """The same prompts with nothing written: s_0 of each row."""
        texts = TextState(**{name: value.copy() for name, value in vars(texts).items()})
        texts.input_ids[:, self.prompt_width :] = 0
        texts.attention_mask[:, self.prompt_width :] = 0
        texts.time[:] = 0
        return texts

    def make_state(self, prompt: Any, completion: Any = ()) -> TextState:
        """Any state, as one row: `prompt` an index, text, messages or ids, `completion` a prefix as text or ids.

        Raises:
            ValueError: no such prompt, one that is too long, or nothing left to write.
        """
        texts = self.empty_state(1)
        if isinstance(prompt, int | np.integer):
            if not 0 <= prompt < len(self.prompts.texts):
                raise ValueError(f"A prompt's index must be in 0 .. {len(self.prompts.texts) - 1}, got {prompt}.")
            self.reset_rows(texts, np.array([0]), np.array([int(prompt)]))
        elif isinstance(prompt, str) and prompt in self.prompts.texts:
            self.reset_rows(texts, np.array([0]), np.array([self.prompts.texts.index(prompt)]))
        else:
            self._start_own(texts, prompt)
        tokens = self.encode_completion(completion)
        if len(tokens) >= self.max_new_tokens or self.is_eos[tokens].any():
            raise ValueError(
                f"The response to start from must leave something to write: fewer than max_new_tokens = "
                f"{self.max_new_tokens} tokens and no end token, got {tokens.tolist()}."
            )
        columns = slice(self.prompt_width, self.prompt_width + len(tokens))
        texts.input_ids[0, columns] = tokens
        texts.attention_mask[0, columns] = 1
        texts.time[0] = len(tokens)
        if not self.full_support and not (self.next_ref_log_probs(texts) > -np.inf).any():
            raise ValueError(
                f"The reference allows no token after {prompt!r} and {completion!r}: it gives this text probability 0. "
                f"Start from one of the {len(self.prompts.texts)} prompts and a response that the reference can say."
            )
        return texts

    def _start_own(self, texts: TextState, prompt: Any) -> None:
        """A prompt by its ids, or one that is not in the list."""
        if isinstance(prompt, str) or is_conversation(prompt):
            prompt, tokens = encode_prompt(prompt, self.tokenizer)
        else:
            tokens = prompt
        ids = self._token_ids(tokens)
        width = self.prompt_width
        if not 0 < len(ids) <= width:
            raise ValueError(
                f"A prompt must have 1 to {width} tokens here, got {len(ids)} in {prompt!r}; "
                "make the environment with a larger max_prompt_length for longer ones."
            )
        same = (self.prompts.attention_mask.sum(axis=1) == len(ids)) & (
            self.prompts.input_ids[:, width - len(ids) :] == ids
        ).all(axis=1)
        if same.any():
            self.reset_rows(texts, np.array([0]), np.flatnonzero(same)[:1])
            return
        texts.prompt[0] = -1
        texts.prompt_text[0] = prompt if isinstance(prompt, str) else self.decode(ids)
        texts.input_ids[0, width - len(ids) : width] = ids
        texts.attention_mask[0, width - len(ids) : width] = 1

    def encode_completion(self, completion: Any) -> Array:
        """Ids of an answer given as text (no special tokens added) or as ids."""
        if isinstance(completion, str):
            return np.asarray(self.tokenizer.encode(completion, add_special_tokens=False), dtype=np.int64)
        return self._token_ids(completion)

    def _token_ids(self, ids: Any) -> Array:
        tokens = np.asarray(ids)
        if tokens.size == 0:
            return np.zeros(0, dtype=np.int64)
        if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"Expected text or a list of token ids, got {ids!r}.")
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(f"Token ids must be in 0 .. {self.vocab_size - 1}, got {ids!r}.")
        return tokens.astype(np.int64)

    def decode(self, ids: Any) -> str:
        """The text of some token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def next_ref_log_probs(self, texts: TextState) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.reference.log_probs(texts.input_ids, texts.attention_mask)

    def validate_actions(self, actions: Any, idle: Array, num: int) -> Array:
        """`actions` as int64 [num], 0 in the rows `idle`; an `InvalidAction` says what is wrong with the others."""
        given = np.asarray(actions)
        if given.shape != (num,) or given.dtype.kind not in "iu":
            raise InvalidAction(f"Expected {num} integer token ids, got {actions!r} ({given.dtype}{given.shape}).")
        tokens = given.astype(np.int64)
        tokens[idle] = 0
        if tokens.view(np.uint64).max() >= self.vocab_size:  # so seen, a negative id is a large one
            bad = given[np.flatnonzero((tokens < 0) | (tokens >= self.vocab_size))[0]]
            raise InvalidAction(f"A token id must be in 0 .. {self.vocab_size - 1}, got {bad}.")
        return tokens

    def masked_action_error(self, texts: TextState, row: int, token: int) -> InvalidAction:
        """The error for a token to which the reference gives probability zero."""
        name = self.tokenizer.convert_ids_to_tokens([token])[0]
        start = self.decode(texts.input_ids[row, self.prompt_width : self.prompt_width + texts.time[row]])
        return InvalidAction(
            f"Token {token} ({name!r}) is masked after {start!r} ({texts.prompt_text[row]!r}): the reference gives it "
            "probability 0, so the KL would be infinite. Choose where info['action_mask'] is 1."
        )

    # -- rewards -----------------------------------------------------------------------------------------------------

    @property
    def is_pure(self) -> bool:
        """Whether each reward has `score_tokens`, and so always says the same of the same text."""
        scorers = [self.reward] if self.gold_reward is None else [self.reward, self.gold_reward]
        return all(scorer.is_pure for scorer in scorers)

    def transitions(self, texts: TextState, tokens: Array, mask: Array) -> Transitions:
        """The transitions of writing `tokens` [B, T] after `texts`, where `mask` [B, T] is True."""
        time = texts.time[:, None] + np.arange(tokens.shape[1])
        stop = self.is_eos.take(tokens) & mask
        terminated = stop | ((time == self.max_new_tokens - 1) & mask)
        return Transitions(
            texts.input_ids, texts.attention_mask, tokens, mask, time, stop, terminated, self.prompt_width
        )

    def reward_terms(
        self,
        transitions: Transitions,
        ref_log_probs: Array,
        scores: Array,
        log_probs: Array | None = None,
        kl_coef: float | None = None,
    ) -> dict[str, Array]:
        """The terms of r_t, each [B, T], zero where the mask is False.

        Args:
            transitions: what was written.
            ref_log_probs: log pi_ref(a_t | s_t), [B, T].
            scores: score(x, y), [B]; paid where `terminated` is True, ignored in rows that have not ended.
            log_probs: log pi(a_t | s_t), [B, T], or None where the policy is not known: then the acting side owes
                `kl_policy`.
            kl_coef: beta, by default the task's.
        """
        score = np.where(transitions.terminated, scores[:, None], 0.0)
        ref_log_probs = np.where(transitions.mask, ref_log_probs, 0.0)
        if log_probs is not None:
            log_probs = np.where(transitions.mask, log_probs, 0.0)
        return self.combine_terms(score, ref_log_probs, self.shaping_terms(transitions), log_probs, kl_coef)

    def combine_terms(
        self,
        score: Any,
        ref_log_probs: Any,
        shaped: dict[str, Any],
        log_probs: Any = None,
        kl_coef: float | None = None,
    ) -> dict[str, Any]:
        """r_t term by term, of arrays or numbers that are zero where nothing is paid. This is the reward, in one place.

        Args: as of `reward_terms`, and `shaped`, what each shaping term pays.
        """
        beta = self.kl_coef if kl_coef is None else kl_coef
        terms = {"score": score, "kl_reference": beta * ref_log_probs, **shaped}
        if log_probs is not None:
            terms["kl_policy"] = 0.0 - beta * log_probs  # not -0.0 where nothing is paid
        return terms

    def shaping_terms(self, transitions: Transitions) -> dict[str, Array]:
        """What each shaping term pays, [B, T], zero where the mask is False."""
        mask, shaped = transitions.mask, {}
        for term in self.shaping:
            name, paid = shaping_name(term), term(transitions)
            if np.shape(paid) != mask.shape or not np.isfinite(paid[mask]).all():
                raise ValueError(
                    f"The shaping term {name!r} must return finite numbers, [B, T] = {mask.shape}, got {paid!r}."
                )
            shaped[name] = np.where(mask, paid, 0.0)
        return shaped

    def finished(self, prompt: Array, prompt_text: Array, tokens: Array, length: Array) -> FinishedCompletions:
        """Finished completions of this task; arguments as of `FinishedCompletions`."""
        return FinishedCompletions(self.tokenizer, self.prompts.columns, prompt, prompt_text, tokens, length)

    def score(self, finished: FinishedCompletions) -> NDArray[np.float64]:
        """score(x, y) of finished texts, [K]."""
        return self.reward.score(finished)

    def gold_score(self, finished: FinishedCompletions) -> NDArray[np.float64] | None:
        """As `score`, by the gold reward, which nobody is paid; None where there is none."""
        return None if self.gold_reward is None else self.gold_reward.score(finished)
