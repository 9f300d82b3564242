"""The MDP of text generation. Both environments, `collect` and `exact` are built on this file.

    s_t = (x, a_0 .. a_{t-1})        the prompt and the tokens so far; V(s_T) = 0
    s_{t+1} = s_t + a_t              deterministic; terminates at an EOS token or at max_new_tokens
    r_t = 1[t = T-1] score(x, y)  -  beta (log pi(a_t|s_t) - log pi_ref(a_t|s_t))  +  shaping_t

`TextMDP.combine_terms` composes r_t. Ziegler et al. 2019 (arXiv:1909.08593), Stiennon et al. 2020 (arXiv:2009.01325).
The log-ratio is part of the reward: the gradient of its expectation is then that of beta KL(pi || pi_ref) over whole
completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.actions import InvalidAction
from textenv.arguments import check_count, check_kl_coef, shown
from textenv.data import (
    Prompts,
    PromptSource,
    Tokenizer,
    check_template_arguments,
    encode_text,
    load_prompts,
    resolve_prompt,
    validate_token_ids,
)
from textenv.references import as_reference, as_tokenizer, first_tokens, resolve_eos
from textenv.rewards import (
    FinishedCompletions,
    OnRewardError,
    RewardError,
    RewardFunction,
    TrainingContext,
    WeightedReward,
)
from textenv.shaping import ShapingTerm, Transitions, shaping_name, shaping_terms, shaping_values
from textenv.state import Array, TextState


class TextMDP:
    """Tokenizer, prompts, reference and reward: everything that defines a task.

    Args:
        tokenizer: a Hugging Face tokenizer, the path or hub id of one, or a `WordTokenizer`. V is its largest id + 1;
            an id without a token is decoded to no text.
        prompts: texts, conversations or mappings, in a list, a data set, a table or a file (see
            `textenv.data.load_prompts`). Fields other than "prompt" reach the reward by name; they are None for a
            prompt of `reset` that is not in the list.
        reward: a function `(prompts, completions, completion_ids, **columns) -> list[float | None]`, or several; see
            `textenv.rewards.WeightedReward`.
        reference: pi_ref: None (uniform), an object with `log_probs`, a causal LM, or the path or hub id of one.
        max_new_tokens: T_max, the largest number of tokens of a completion.
        kl_coef: beta >= 0.
        reward_weights: one weight per reward function, by default 1.
        shaping: terms added to the reward at every step (see `textenv.shaping`).
        gold_reward: a reward function that is reported (`info["gold_score"]`) and never part of the reward: the true
            objective, where `reward` is a proxy of it.
        eos_token_id: the EOS token or tokens, ids or spellings; by default those of the reference's generation config,
            else the tokenizer's.
        max_prompt_length: W, by default the length of the longest prompt.
        on_reward_error: what happens where `reward` or `gold_reward` fails: "raise", "retry" or "skip" (see
            `textenv.rewards.weighted`).
        reward_tries: attempts at scoring a batch, the first one included; all reward functions share them.
        reward_wait: seconds between these attempts, the same each time.
        special_tokens_in_prompts: whether the spelling of a special token ("</s>") in a prompt, or in a prompt or
            completion of `reset`, is that token; by default it is ordinary text. For prompts that a chat template has
            written.
        chat_template_kwargs: further arguments of the tokenizer's chat template, for all conversations, such as
            `{"enable_thinking": False}`; a row's own field of that name comes first.

    Raises:
        ValueError: a value breaks the rule that the message names.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | str | PathLike[str],
        prompts: PromptSource,
        reward: RewardFunction | Sequence[RewardFunction],
        reference: Any = None,
        *,
        max_new_tokens: int = 32,
        kl_coef: float = 0.1,
        reward_weights: Sequence[float] | None = None,
        shaping: ShapingTerm | Sequence[ShapingTerm] = (),
        gold_reward: RewardFunction | Sequence[RewardFunction] | None = None,
        eos_token_id: int | str | Sequence[int | str] | None = None,
        max_prompt_length: int | None = None,
        on_reward_error: OnRewardError = "raise",
        reward_tries: int = 3,
        reward_wait: float = 1.0,
        special_tokens_in_prompts: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        self.kl_coef = check_kl_coef(kl_coef)
        self.tokenizer = tokenizer = as_tokenizer(tokenizer)
        self.vocab_size = len(tokenizer)
        self.encoding: dict[str, Any] = {
            "special_tokens_in_prompts": bool(special_tokens_in_prompts),
            "chat_template_kwargs": check_template_arguments(chat_template_kwargs),
        }
        if max_prompt_length is not None:
            max_prompt_length = check_count("max_prompt_length", max_prompt_length)
        loaded = load_prompts(prompts, tokenizer, max_prompt_length, **self.encoding)
        self.training = TrainingContext()  # shared by reward functions and the agent that is trained on them
        calls: Any = {"on_error": on_reward_error, "tries": reward_tries, "wait": reward_wait, "context": self.training}
        self.reward = WeightedReward(reward, reward_weights, **calls)
        self.gold_reward = None if gold_reward is None else WeightedReward(gold_reward, name="gold_reward", **calls)
        self.reference = as_reference(reference, self.vocab_size)
        # whether every token is allowed in every state, which makes masks unnecessary
        self.full_support = bool(getattr(self.reference, "full_support", False))
        self.shaping = shaping_terms(shaping)
        self.eos_token_ids = resolve_eos(eos_token_id, self.reference, tokenizer, self.vocab_size)
        self.is_eos = np.isin(np.arange(self.vocab_size), self.eos_token_ids)
        self._set_prompts(loaded)

    def with_prompts(self, prompts: Prompts) -> TextMDP:
        """The same task on other prompts; tokenizer, reference and reward functions are shared.

        Raises:
            ValueError: the reference's context is too short for them.
        """
        other = copy(self)
        other._set_prompts(prompts)
        return other

    def _set_prompts(self, prompts: Prompts) -> None:
        width, empty_columns = int(prompts.input_ids.shape[1]), ((0, 0), (0, self.max_new_tokens))
        ids, attention = np.pad(prompts.input_ids, empty_columns), np.pad(prompts.attention_mask, empty_columns)
        self.prompt_width, self.initial_input_ids, self.initial_attention_mask = width, ids, attention  # s_0, [P, L]
        self.prompts = replace(prompts, input_ids=ids[:, :width], attention_mask=attention[:, :width])  # views of them
        self.prompt_texts = np.array(prompts.texts, dtype=object)
        context = getattr(self.reference, "max_length", None)
        if context is not None and width + self.max_new_tokens > context:
            raise ValueError(
                f"Prompt and completion may take {width} + {self.max_new_tokens} tokens, more than the reference's "
                f"context of {context}; shorten the prompts or lower max_new_tokens."
            )
        self.initial_action_mask = first_tokens(self.reference, self.prompts, self.vocab_size)

    # -- states ------------------------------------------------------------------------------------------------------

    def empty_state(self, batch: int) -> TextState:
        """B rows without a prompt, all columns empty."""
        return TextState.empty(batch, self.prompt_width + self.max_new_tokens)

    def reset_rows(self, state: TextState, rows: Any, prompt: Any) -> None:
        """Sets rows (indices, or one) to s_0 = x of the prompts with these indices, in place."""
        state.prompt[rows] = prompt
        state.prompt_text[rows] = self.prompt_texts.take(prompt)
        state.input_ids[rows] = self.initial_input_ids.take(prompt, axis=0)
        state.attention_mask[rows] = self.initial_attention_mask.take(prompt, axis=0)
        state.time[rows] = 0

    def make_state(self, prompt: Any, completion: Any = ()) -> TextState:
        """Any state, as one row: `prompt` is an index, text, messages or ids, `completion` (so far) text or ids.

        Raises:
            ValueError: there is no such prompt, it is empty or too long, or the state has no next token.
        """
        index, text, ids = resolve_prompt(prompt, self.prompts, self.tokenizer, **self.encoding)
        state = self.empty_state(1)
        if index >= 0:
            self.reset_rows(state, 0, index)
        else:
            state.prompt[0], state.prompt_text[0] = index, text
            state.input_ids[0, self.prompt_width - len(ids) : self.prompt_width] = ids
            state.attention_mask[0, self.prompt_width - len(ids) : self.prompt_width] = 1
        tokens = self.encode_completion(completion)
        if len(tokens) >= self.max_new_tokens or self.is_eos[tokens].any():
            raise ValueError(
                f"The completion to start from must leave a token to sample: fewer than max_new_tokens = "
                f"{self.max_new_tokens} tokens and no EOS token, got {shown(tokens.tolist())}."
            )
        columns = slice(self.prompt_width, self.prompt_width + len(tokens))
        state.input_ids[0, columns] = tokens
        state.attention_mask[0, columns] = 1
        state.time[0] = len(tokens)
        if not self.full_support and not (self.next_ref_log_probs(state) > -np.inf).any():
            raise ValueError(
                f"The reference must allow a token in the state to start from, got the prompt {prompt!r} with the "
                f"completion {completion!r}, which it never continues. Start from one of the "
                f"{len(self.prompts.texts)} prompts and a completion to which it gives a positive probability."
            )
        return state

    def encode_completion(self, completion: Any) -> Array:
        """Ids of a completion given as text (no special tokens are added) or as ids."""
        if isinstance(completion, str):
            read = self.encoding["special_tokens_in_prompts"]
            encoded = encode_text(completion, self.tokenizer, add_special_tokens=False, read_special_tokens=read)
            return np.asarray(encoded.ids, dtype=np.int64)
        return validate_token_ids(completion, self.vocab_size)

    def decode(self, ids: Any) -> str:
        """Token ids as text, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def next_ref_log_probs(self, state: TextState) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.reference.log_probs(state.input_ids, state.attention_mask)

    def masked_action_error(self, state: TextState, row: int, token: int) -> InvalidAction:
        """The error for a token to which the reference gives probability zero."""
        name = self.tokenizer.convert_ids_to_tokens([token])[0]
        start = self.decode(state.completion_ids(row, self.prompt_width))
        return InvalidAction(
            f"Token {token} ({name!r}) is masked after {start!r} ({state.prompt_text[row]!r}): the reference gives it "
            "probability 0, so the KL would be infinite. Choose a token where info['action_mask'] is 1."
        )

    # -- rewards -----------------------------------------------------------------------------------------------------

    @property
    def is_pure(self) -> bool:
        """Whether each reward function has `score_tokens`, and so gives a completion the same score every time."""
        rewards = [self.reward] if self.gold_reward is None else [self.reward, self.gold_reward]
        return all(reward.is_pure for reward in rewards)

    def transitions(self, state: TextState, tokens: Array, mask: Array) -> Transitions:
        """The transitions that append `tokens` [B, T] to `state`, where `mask` [B, T] is True."""
        time = state.time[:, None] + np.arange(tokens.shape[1])
        stop = self.is_eos.take(tokens) & mask
        terminated = stop | ((time == self.max_new_tokens - 1) & mask)
        return Transitions(
            state.input_ids, state.attention_mask, tokens, mask, time, stop, terminated, self.prompt_width
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
            transitions: states and actions.
            ref_log_probs: log pi_ref(a_t | s_t), [B, T].
            scores: score(x, y), [B]; used where `terminated` is True, ignored in rows that have not terminated.
            log_probs: log pi(a_t | s_t), [B, T], or None where the policy is unknown: then the acting side owes
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
        shaping: dict[str, Any],
        log_probs: Any = None,
        kl_coef: float | None = None,
    ) -> dict[str, Any]:
        """The terms whose sum is r_t, for the environments and `collect`. (`textenv.exact` works on distributions.)

        Takes numbers, or arrays that are zero where there is no transition. `score` is zero before the last step;
        `shaping` holds the value of each shaping term; the other arguments are those of `reward_terms`.
        """
        beta = self.kl_coef if kl_coef is None else kl_coef
        terms = {"score": score, "kl_reference": beta * ref_log_probs, **shaping}
        if log_probs is not None:
            terms["kl_policy"] = 0.0 - beta * log_probs  # a plain minus would make zeros -0.0
        return terms

    def shaping_terms(self, transitions: Transitions) -> dict[str, Array]:
        """The value of each shaping term, [B, T], zero where the mask is False."""
        return {shaping_name(term): shaping_values(term, transitions) for term in self.shaping}

    def finished(self, prompt: Array, prompt_text: Array, tokens: Array, length: Array) -> FinishedCompletions:
        """Makes the `FinishedCompletions` of this task; the arguments are those of that class."""
        return FinishedCompletions(self.tokenizer, self.prompts, prompt, prompt_text, tokens, length)

    @property
    def last_skip(self) -> RewardError | None:
        """The last error for which a completion was skipped; None before the first."""
        return self.reward.last_skip or (None if self.gold_reward is None else self.gold_reward.last_skip)

    def score(self, finished: FinishedCompletions) -> NDArray[np.float64]:
        """score(x, y) of finished completions, [K]; raises `RewardError` where one cannot be scored."""
        return self.reward.score(finished)

    def gold_score(self, finished: FinishedCompletions) -> NDArray[np.float64] | None:
        """The gold reward's score of finished completions, [K]; None where the task has no gold reward."""
        return None if self.gold_reward is None else self.gold_reward.score(finished)
