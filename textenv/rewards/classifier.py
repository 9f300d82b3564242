"""A reward model: a Hugging Face sequence classifier as a reward function.

    score(x, y) = (f(x, y) - score_mean) / score_std

f is the logit of a model with one label, or the log-odds of one of several labels. In a model trained on preferences,
f is r of Bradley and Terry 1952: p(y > y') = sigmoid(r(x, y) - r(x, y')) (Stiennon et al. 2020, arXiv:2009.01325).
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from textenv.arguments import check_count, shown
from textenv.data import encode_chat, encode_text, fill_holes, messages_of, with_completion
from textenv.lm import check_vocabulary, load_pretrained, load_tokenizer, max_length
from textenv.rewards.classifier_checks import LONG, ROWS, SHORT, find_limit, may_pad, sample_rows
from textenv.rewards.messages import Completion, completion_text

# what is used of a tokenizer; any of Hugging Face's has these
TOKENIZER = ("encode", "decode", "get_vocab", "all_special_ids", "model_max_length", "pad_token_id", "eos_token_id")
CLOSING = ",.;:!?)]}'%\u2019\u201d"  # follow a word without a space; the last two are curly quotes


class RewardModel:
    """A reward function that calls a sequence classifier. It has its own tokenizer, so it can score any policy.

    Args:
        model: a sequence classifier, or a path or hub id to load one from. It is frozen, and its `pad_token_id` is set.
        tokenizer: the classifier's, or a path or hub id to load it from; by default loaded from the same place. It is
            set to truncate on the left.
        label: the label whose log-odds are the score, by index or by its name in `config.id2label`; None for a model
            with one label.
        batch_size: sequences per forward pass, at most; they are sorted by length first, so that there is little
            padding. A model whose scores padding would change is called with sequences of one length.
        joiner: the string between prompt and completion, where there is no white space between them and the completion
            does not begin with a closing mark (`CLOSING`). (SentencePiece tokenizers drop the space at the beginning of
            a completion. For a policy whose completions keep it, pass "": "walk" and "ing" are then one word.)
        trust_remote_code: whether a path or hub id may run code of its own.

    The mean and standard deviation that normalize the score are `score_mean` and `score_std` in the model's config, by
    default 0 and 1. Sequences too long for the model are truncated at their beginnings. Where prompts are
    conversations, the classifier's own chat template formats them; without one, their contents are joined line by line.
    The spelling of a special token in a prompt or completion is ordinary text.

    A score is the same whatever else is in the batch: the constructor compares the scores of a few short sequences
    alone and in batches (`textenv.rewards.classifier_checks`), and refuses a model for which this does not hold.

    Attributes:
        max_length: tokens of the longest sequence that the model takes, or None if there is no limit.
        pads: whether sequences of several lengths are in one batch, padded on the right.

    Raises:
        ValueError: the model is no classifier of sequences, or its scores depend on the batch; the tokenizer is
            missing, not one of Hugging Face's, or does not fit; there are several labels and no `label`; another
            argument is of the wrong type; there is no padding token; `score_mean` or `score_std` is no number.
    """

    __name__ = "reward_model"

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        label: int | str | None = None,
        batch_size: int = 64,
        joiner: str = " ",
        trust_remote_code: bool = False,
    ) -> None:
        batch_size = check_count("batch_size", batch_size)
        if not isinstance(joiner, str):
            raise ValueError(f"joiner must be a string, got {shown(joiner)}.")
        if isinstance(label, bool) or not isinstance(label, int | np.integer | str | None):
            raise ValueError(f"label must be an integer, a string or None, got {shown(label)}.")
        trusted = {"trust_remote_code": trust_remote_code}
        if isinstance(tokenizer, str | PathLike):
            tokenizer = load_tokenizer(tokenizer, **trusted)
        elif tokenizer is not None and (missing := [name for name in TOKENIZER if not hasattr(tokenizer, name)]):
            raise ValueError(
                "RewardModel needs the classifier's Hugging Face tokenizer, or the path or hub id of one, got "
                f"{shown(tokenizer)}, which has no {missing[0]}."
            )
        if isinstance(model, str | PathLike):
            path = model
            tokenizer = load_tokenizer(path, **trusted) if tokenizer is None else tokenizer
            model, loaded = load_pretrained(
                AutoModelForSequenceClassification, path, dtype=torch.float32, output_loading_info=True, **trusted
            )
            if missing := sorted(loaded["missing_keys"]):
                raise ValueError(
                    f"{str(path)!r} is not a complete classifier: {missing[0]} is missing. (To train one from "
                    "preferences: python -m experiments reward-model.)"
                )
        _check_model(model)
        if tokenizer is None:
            raise ValueError("RewardModel needs the classifier's tokenizer: pass tokenizer= with a loaded model.")
        if (vocab_size := getattr(model.config.get_text_config(), "vocab_size", None)) is None:
            raise ValueError(f"RewardModel needs a classifier of texts; a {type(model).__name__} has no vocabulary.")
        check_vocabulary(len(fill_holes(tokenizer)), vocab_size, "classifier")
        for name, low in (("score_mean", -np.inf), ("score_std", 0.0)):
            number = getattr(model.config, name, 1.0)
            if not isinstance(number, int | float) or not low < number < np.inf:
                kind = "a finite number > 0" if low == 0 else "a finite number"
                raise ValueError(f"The classifier's {name} must be {kind}, got {number!r:.100}.")
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        context = None if context == -1 else context  # XLNet's kind: there is no limit
        for name, size in (("max_position_embeddings", context), ("model_max_length", tokenizer.model_max_length)):
            if size is not None and not (isinstance(size, int | float) and size >= 1):
                raise ValueError(f"The classifier's {name} must be a number of tokens, got {size!r:.100}.")
        tokenizer.truncation_side = "left"
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.batch_size, self.joiner = tokenizer, batch_size, joiner
        self.pad_token_id = self._pad_token_id()
        self.model.config.get_text_config().pad_token_id = self.pad_token_id  # GPT-2 finds the last token by it
        self.pads = True
        self.max_length: int | None = None
        self._find_limits()
        self.label = self._label(label)

    @torch.no_grad()
    def _find_limits(self) -> None:
        """Sets `max_length` and `pads`, by the model's behaviour."""
        size, context = self.model.config.get_text_config().vocab_size, max_length(self.model)
        short = sample_rows(self.tokenizer, size, min(SHORT, (context or LONG) * SHORT // LONG), ROWS)
        alone, positions = find_limit(self.model, short[0])
        limits = [limit for limit in (context, positions) if limit is not None]
        self.max_length = min(*limits, self.tokenizer.model_max_length) if limits else None
        (long,) = sample_rows(self.tokenizer, size, min(LONG, self.max_length or LONG), 1, seed=1)
        self.pads = may_pad(self.model, short, long, alone, self._forward)

    def _label(self, label: int | str | None) -> int | None:
        names = self.model.config.id2label
        if len(names) == 1 and label in (None, *names, *names.values()):
            return None
        known = {name: index for index, name in names.items()}
        index = known.get(label, label) if isinstance(label, str) else label
        if index not in names:
            raise ValueError(f"The classifier has the labels {names}: pass label= one of them, got {label!r}.")
        return int(index)  # type: ignore[arg-type]

    def _pad_token_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.model.config.get_text_config().pad_token_id):
            if token is not None:
                return int(token)
        if self.tokenizer.eos_token_id is None:
            raise ValueError("The classifier's tokenizer has neither a padding nor an end token: set its pad_token.")
        return int(self.tokenizer.eos_token_id)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[object], completions: Sequence[Completion], **columns: object) -> list[float]:
        """Returns the score of each completion, [B]; it does not depend on the rest of the batch.

        Raises:
            ValueError: there is not one completion per prompt; or see `tokens`.
        """
        if len(prompts) != len(completions):
            raise ValueError(
                f"RewardModel takes one completion per prompt, got {len(prompts)} prompts and {len(completions)} "
                "completions."
            )
        rows = [self.tokens(*row) for row in zip(prompts, completions, strict=True)]
        scores = np.empty(len(rows))
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores[batch] = self.logits([rows[i] for i in batch]).cpu().numpy()
        config = self.model.config
        scores = (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)
        return [float(score) for score in scores]

    def tokens(self, prompt: Any, completion: Completion) -> list[int]:
        """Returns the classifier's input ids of prompt and completion, which are texts or messages.

        Its own chat template formats conversations.

        Raises:
            ValueError: they have no token; or see `textenv.data.encode_text` and `textenv.data.encode_chat`.
        """
        completion = completion_text(completion)
        conversation = None
        if (messages := messages_of(prompt) if isinstance(prompt, str) else prompt) is not None:
            conversation = with_completion(messages, completion)
            # contents only: the markers of another model's template mean nothing here
            text = "\n".join(message["content"] for message in conversation)
        else:
            joined = not completion or completion[0].isspace() or completion[0] in CLOSING or prompt[-1:].isspace()
            text = prompt + ("" if joined else self.joiner) + completion
        if conversation is not None and self.tokenizer.chat_template is not None:
            ids = encode_chat(conversation, self.tokenizer, max_length=self.max_length).ids
        else:
            ids = encode_text(text, self.tokenizer, max_length=self.max_length).ids
        if not ids:
            raise ValueError(
                f"RewardModel needs at least one token, got none from the prompt {shown(prompt)} and the completion "
                f"{shown(completion)}."
            )
        return ids

    def logits(self, rows: list[list[int]]) -> Tensor:
        """Returns f of tokenized sequences, [B]: in one batch, or in one for each length where padding is not safe."""
        if self.pads:
            return self._select(self._forward(rows))
        lengths = np.array([len(row) for row in rows])
        order = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        parts = [self._select(self._forward([rows[i] for i in same])) for same in order]
        return torch.cat(parts)[torch.as_tensor(np.argsort(np.concatenate(order)), device=parts[0].device)]

    def _forward(self, rows: list[list[int]]) -> Tensor:
        """The logits of tokenized sequences, [B, labels], padded on the right to the longest."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.model.device
        logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        return logits

    def _select(self, logits: Tensor) -> Tensor:
        """f, [B], from logits [B, labels]: the only one, or the log-odds of `label`."""
        if self.label is None:
            return logits[:, 0]
        others = [i for i in range(logits.shape[1]) if i != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(dim=1)


def with_own_tokenizer(model: Any, name: str) -> RewardModel:
    """A loaded model as a reward, with the tokenizer of the place that it was loaded from, as TRL takes it.

    Raises:
        ValueError: there is no such tokenizer, or see `RewardModel`. The message begins with `name`, the argument's.
    """
    path = getattr(model.config, "_name_or_path", "")
    cure = f"pass {name}=textenv.rewards.RewardModel(model, tokenizer)"
    if not path:
        raise ValueError(f"{name}: a {type(model).__name__} alone has no tokenizer; {cure}.")
    try:
        tokenizer = load_tokenizer(path)
    except ValueError as error:
        raise ValueError(
            f"{name}: there is no tokenizer beside the {type(model).__name__}, at {path!r}; {cure}. ({error})"
        ) from error
    return RewardModel(model, tokenizer)


def _check_model(model: Any) -> None:
    if not (isinstance(model, torch.nn.Module) and hasattr(model, "config")):
        raise ValueError(f"RewardModel needs a sequence classifier, or the path or hub id of one, got {shown(model)}.")
