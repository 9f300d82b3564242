"""A reward model: a Hugging Face sequence classifier as a reward function.

    score(x, y) = (f(x, y) - score_mean) / score_std

f is the logit of a model with one label, or the log-odds of one of several labels. In a model trained on preferences,
f is r of Bradley and Terry 1952: p(y > y') = sigmoid(r(x, y) - r(x, y')) (Stiennon et al. 2020, arXiv:2009.01325).
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from textenv.lm import check_vocabulary

CLOSING = ",.;:!?)]}'%\u2019\u201d"  # follow a word without a space; the last two are curly quotes


class RewardModel:
    """A reward function that calls a sequence classifier. It has its own tokenizer, so it can score any policy.

    Args:
        model: a sequence classifier, or a path or hub id to load one from. It is frozen, and its `pad_token_id` is set.
        tokenizer: the classifier's, by default loaded from the same place. It is set to truncate on the left.
        label: the label whose log-odds are the score, by index or by its name in `config.id2label`; None for a model
            with one label.
        batch_size: sequences per forward pass; they are sorted by length first, so that there is little padding.
        joiner: the string between prompt and completion, where there is no white space between them and the completion
            does not begin with a closing mark (`CLOSING`). (SentencePiece tokenizers drop the space at the beginning of
            a completion. For a policy whose completions keep it, pass "": "walk" and "ing" are then one word.)

    The mean and standard deviation that normalize the score are `score_mean` and `score_std` in the model's config, by
    default 0 and 1. Sequences too long for the model are truncated at their beginnings. Where prompts are
    conversations, the classifier's own chat template formats them; without one, their contents are joined line by line.

    Raises:
        ValueError: the tokenizer is missing or does not fit; there are several labels and no `label`; there is no
            padding token.
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
    ) -> None:
        if isinstance(model, str | PathLike):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            path = model
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
            if missing := sorted(loaded["missing_keys"]):
                raise ValueError(
                    f"{str(path)!r} is not a complete classifier: {missing[0]} is missing. (To train one from "
                    "preferences: python -m experiments reward-model.)"
                )
        if tokenizer is None:
            raise ValueError("RewardModel needs the classifier's tokenizer: pass tokenizer= with a loaded model.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        check_vocabulary(len(tokenizer), model.config.get_text_config().vocab_size, "classifier")
        tokenizer.truncation_side = "left"
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.batch_size, self.joiner = tokenizer, batch_size, joiner
        self.label = self._label(label)
        self.pad_token_id = self._pad_token_id()
        self.model.config.get_text_config().pad_token_id = self.pad_token_id  # GPT-2 finds the last token by it
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length: int | None = context if context is None else min(context, tokenizer.model_max_length)

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
    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        """Returns the score of each completion, [B]; it does not depend on the rest of the batch."""
        conversations = columns.get("messages") or [None] * len(prompts)
        rows = [self.tokens(*row) for row in zip(prompts, completions, conversations, strict=True)]
        scores = np.empty(len(rows))
        order = np.argsort([len(row) for row in rows], kind="stable")
        for start in range(0, len(rows), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores[batch] = self.logits([rows[i] for i in batch]).cpu().numpy()
        config = self.model.config
        scores = (scores - getattr(config, "score_mean", 0.0)) / getattr(config, "score_std", 1.0)
        return [float(score) for score in scores]

    def tokens(self, prompt: str, completion: str, messages: Any = None) -> list[int]:
        """Returns the classifier's input ids of prompt and completion; its own chat template formats conversations."""
        if messages is not None and self.tokenizer.chat_template is not None:
            conversation = [*messages, {"role": "assistant", "content": completion}]
            text, special = self.tokenizer.apply_chat_template(conversation, tokenize=False), False  # already added
        elif messages is not None:  # contents only: the markers of another model's template mean nothing here
            text, special = "\n".join([*(message["content"] for message in messages), completion]), True
        else:
            joined = not completion or completion[0].isspace() or completion[0] in CLOSING or prompt[-1:].isspace()
            text, special = prompt + ("" if joined else self.joiner) + completion, True
        limit = {} if self.max_length is None else {"truncation": True, "max_length": self.max_length}
        tokens: list[int] = self.tokenizer(text, add_special_tokens=special, **limit)["input_ids"]
        return tokens

    def logits(self, rows: list[list[int]]) -> Tensor:
        """Returns f of tokenized sequences, [B], padded on the right to the longest."""
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self.pad_token_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.model.device
        logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        if self.label is None:
            return logits[:, 0]
        others = [i for i in range(logits.shape[1]) if i != self.label]
        return logits[:, self.label] - logits[:, others].logsumexp(dim=1)
