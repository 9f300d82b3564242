"""What a classifier can be given: sequences that fit its positions, in batches that leave its scores alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BertConfig,
    BloomConfig,
    CamembertConfig,
    ConvBertConfig,
    DebertaV2Config,
    FNetConfig,
    GPT2Config,
    LlamaConfig,
    LongformerConfig,
    MobileBertConfig,
    MptConfig,
    Phi3Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from tests.helpers.classifiers import word_tokenizer
from tests.helpers.tiny_classifiers import POSITIONS, examine, largest_error, tiny_classifier, tiny_tokenizer
from textenv.rewards import RewardModel


def test_longrope_limits_the_length() -> None:
    """Beyond the original context a long sequence would change the positions of all others in its batch."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 8.0]}
    model = tiny_classifier(Phi3Config, rope_parameters=rope, original_max_position_embeddings=20)
    reward = RewardModel(model, tiny_tokenizer())
    assert reward.max_length == 20
    off, spread = largest_error(reward)
    assert off < 1e-4 * spread
    reward.max_length = POSITIONS  # control
    assert largest_error(reward)[0] > 1e-2 * spread


@pytest.mark.parametrize(
    ("cls", "limit"),
    [
        (BertConfig, POSITIONS),
        (RobertaConfig, POSITIONS - 2),  # two rows of the table are not for tokens
        (CamembertConfig, POSITIONS - 2),
        (LongformerConfig, POSITIONS - 2),  # pads its input to a multiple of its window
        (BartConfig, POSITIONS),  # its table has two rows more
        (GPT2Config, POSITIONS),
        (LlamaConfig, POSITIONS),
        (MptConfig, POSITIONS),  # no table, and a limit of another name
        (BloomConfig, None),
        (T5Config, None),
    ],
)
def test_the_longest_sequence_fits(cls: Any, limit: int | None) -> None:
    """Longer ones are truncated to it; control: the model fails at the next length, where it has a table."""
    reward = RewardModel(tiny_classifier(cls), tiny_tokenizer())
    assert reward.tokenizer.model_max_length > 10**9  # which says nothing
    assert reward.max_length == limit
    assert np.isfinite(reward(["w3"], ["w4 w5 " * POSITIONS])).all()
    if limit is not None and cls is not LlamaConfig:
        assert len(reward.tokens("w3", "w4 w5 " * POSITIONS)) == limit
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            reward.model(input_ids=torch.full((1, 2 * POSITIONS), 3))


class Scores(nn.Module):
    """A stand-in for a classifier: the mean embedding, and whatever `effect` makes of the batch."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, effect: Any = lambda ids, mask: 0.0, scale: float = 1.0) -> None:
        super().__init__()
        text = SimpleNamespace(vocab_size=40, pad_token_id=None)
        self.config = SimpleNamespace(
            id2label={0: "LABEL_0"}, to_dict=dict, get_text_config=lambda: text, score_mean=0.0, score_std=1.0
        )
        self.effect, self.scale = effect, scale
        self.values = nn.Parameter(torch.linspace(-1, 1, 40))
        self.passes: list[tuple[int, ...]] = []

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Logits [B, 1]."""
        self.passes.append(tuple(input_ids.shape))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (self.values[input_ids] * mask).sum(dim=1) / mask.sum(dim=1)
        effect = torch.as_tensor(self.effect(input_ids, mask), dtype=torch.float32)
        return SimpleNamespace(logits=(self.scale * (mean + effect))[:, None])


def padding(ids: Any, mask: Any) -> Any:
    """A tenth of the share of padding."""
    return 0.1 * (mask == 0).float().mean(dim=1)


def company(ids: Any, mask: Any) -> float:
    """A hundredth for every other sequence."""
    return 0.01 * (len(ids) - 1)


def noise(ids: Any, mask: Any) -> Any:
    """Another number in each call."""
    return 0.1 * torch.randn(len(ids))


def fails_alone_only(ids: Any, mask: Any) -> float:
    """An error in a batch."""
    if len(ids) > 1:
        raise RuntimeError("one at a time")
    return 0.0


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize(("effect", "pads"), [(lambda ids, mask: 0.0, True), (padding, False)])
def test_batches_are_those_that_leave_scores_alone(effect: Any, pads: bool, scale: float) -> None:
    """In units of the scores' spread; batches of any size and order then give the scores alone."""
    model = Scores(effect, scale)
    reward = RewardModel(model, tiny_tokenizer(), batch_size=4)
    assert reward.pads is pads
    off, spread = largest_error(reward)
    assert off < 1e-5 * spread
    if not pads:
        reward.pads = True  # control
        assert largest_error(reward)[0] > 0.01 * spread


@pytest.mark.parametrize(
    ("effect", "seen"),
    [
        (company, "in a padded batch it is off by 0.04, in one of equal lengths it is off by 0.03; scores spread over"),
        (noise, "in a padded batch it is off by .*, in one of equal lengths it is off by"),
        (
            fails_alone_only,
            r"in a padded batch it fails with RuntimeError \(one at a time\), in one of equal lengths it",
        ),
    ],
)
def test_scores_that_depend_on_the_batch_are_refused(effect: Any, seen: str) -> None:
    """With what was seen."""
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=f"must not depend on the rest of its batch. That of Scores does: {seen}"):
        RewardModel(Scores(effect), tiny_tokenizer())


def test_the_check_is_small() -> None:
    """Four passes of at most 64 tokens."""
    model = Scores()
    RewardModel(model, tiny_tokenizer())
    assert len(model.passes) == 4 and all(rows * columns <= 64 for rows, columns in model.passes)


def test_scores_without_a_spread_are_not_padded() -> None:
    """Nothing is seen of a model whose scores are all the same: of a head of zeros, before training."""
    model = Scores(scale=0.0)
    assert RewardModel(model, tiny_tokenizer()).pads is False


def test_half_precision_is_no_reason_to_refuse() -> None:
    """Its rounding is larger."""
    for dtype in (torch.bfloat16, torch.float16):
        assert RewardModel(tiny_classifier(BertConfig).to(dtype), tiny_tokenizer()).pads


def test_a_model_that_is_not_finite_is_refused() -> None:
    """As its scores would be."""
    model = tiny_classifier(BertConfig)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="The weights of the BertForSequenceClassification are not finite"):
        RewardModel(model, tiny_tokenizer())


@pytest.mark.parametrize("positions", [4, 5, 6, 8])
def test_a_model_of_few_positions_is_checked(positions: int) -> None:
    """The sequences of the check fit, too."""
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config |= {"vocab_size": 9, "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.5}
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(RobertaConfig(max_position_embeddings=positions, **config))
    reward = RewardModel(model, word_tokenizer(eos_token="[END]"))
    assert reward.max_length == positions - 1
    assert len(reward(["a b c d"], ["a b c d e f"])) == 1


def test_training_uses_the_batches_of_scoring() -> None:
    """Gradients flow through batches of one length, and the logits are in the order of the rows."""
    reward = RewardModel(tiny_classifier(FNetConfig), tiny_tokenizer())
    assert not reward.pads
    rows = [reward.tokens("w3", text) for text in ("w4", "w5 w6", "w7", "w8 w9 w10", "w11 w12")]
    reward.model.requires_grad_(True)
    logits = reward.logits(rows)
    alone = torch.cat([reward.model(input_ids=torch.tensor([row])).logits[0] for row in rows])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert all(p.grad is not None for p in reward.model.classifier.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "verdict"),
    [
        (BartConfig, "right"),
        (BertConfig, "right"),
        (BloomConfig, "right"),
        (CamembertConfig, "right"),
        (DebertaV2Config, "right"),
        (GPT2Config, "right"),
        (LlamaConfig, "right"),
        (LongformerConfig, "right"),
        (MptConfig, "right"),
        (Qwen3Config, "right"),
        (RobertaConfig, "right"),
        (T5Config, "right"),
        (ConvBertConfig, "right by equal length"),
        (FNetConfig, "right by equal length"),
        (MobileBertConfig, "right by equal length"),
        (XLNetConfig, "right by equal length"),
    ],
)
def test_scores_are_those_alone(cls: Any, verdict: str) -> None:
    """A sample of `make scan`, which does this for every class of transformers."""
    found = examine(cls)
    assert found.verdict == verdict, found


def test_the_scan_finds_a_wrong_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the check, padding changes the scores of FNet."""
    monkeypatch.setattr("textenv.rewards.classifier.may_pad", lambda *_: True)
    assert examine(FNetConfig).verdict == "WRONG"
