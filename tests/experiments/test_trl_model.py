"""A policy's model is what it was before a trainer changed it; dropout has no effect. None of these needs TRL."""

from __future__ import annotations

import copy
import types

import pytest
import torch

from agents.policy import TransformerPolicy
from experiments.trl_model import model_restored, remove_dropout
from tests.helpers.models import model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_has_no_effect_in_training_mode(kind: str) -> None:
    """Neither modules of dropout nor rates that layers keep as numbers; control: they had one."""
    own = model(kind).train()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    assert not torch.equal(own(input_ids=ids).logits, own(input_ids=ids).logits)
    remove_dropout(own)
    logits = own(input_ids=ids).logits
    assert torch.equal(logits, own(input_ids=ids).logits)
    torch.testing.assert_close(logits, own.eval()(input_ids=ids).logits)


def test_configs_forward_and_mode_are_restored() -> None:
    """At the end, also after an error; the configs also before, on request."""
    policy = TransformerPolicy(model("llama"))
    own = policy.model
    config, generation = copy.deepcopy(own.config.to_dict()), own.generation_config.to_dict()
    with pytest.raises(KeyboardInterrupt), model_restored(policy) as restore_configs:
        own.config.pad_token_id = own.generation_config.eos_token_id = 3
        own.forward = types.MethodType(lambda self, **_: None, own)
        own.train()
        restore_configs()
        assert own.config.to_dict() == config and own.generation_config.to_dict() == generation
        own.config._name_or_path = "elsewhere"
        raise KeyboardInterrupt
    assert own.config._name_or_path != "elsewhere" and not own.training
    assert own(input_ids=torch.tensor([[1, 2]])).logits.shape == (1, 2, 9)
