"""Sequences that are read whole, with padding moved to the right: each has what it has alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words
from textenv.lm.right_padded import forward_alone, forward_right_padded

IDS = torch.tensor([[0, 0, 1, 2, 1], [2, 0, 1, 0, 2], [0, 0, 0, 0, 2]])
# padding on the left, between, and on the right of what is asked for
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1]])


def model() -> Any:
    """A random GPT-2."""
    return random_policy(make(words(3))).model.eval()


def parts(output: Any) -> dict[str, Any]:
    """The tensors of an output; of the hidden states the last ones."""
    found = {name: output.get(name) for name in ("logits", "last_hidden_state")}
    hidden = output.get("hidden_states")
    return {name: x for name, x in (found | {"hidden_states": hidden and hidden[-1]}).items() if x is not None}


@pytest.mark.parametrize("num_tokens", [1, 3, 5])
@pytest.mark.parametrize("trunk", [False, True])
@torch.no_grad()
def test_each_sequence_has_what_it_has_alone(trunk: bool, num_tokens: int) -> None:
    """At each of its tokens in the last columns. Control: the model reads padding where nobody moves it."""
    whole = model()
    read = whole.transformer if trunk else whole
    found = parts(forward_right_padded(read, IDS, MASK, num_tokens, output_hidden_states=True))
    plain = parts(read(input_ids=IDS, output_hidden_states=True))
    assert set(found) == {"hidden_states", "last_hidden_state" if trunk else "logits"}
    assert all(tensor.shape[:2] == (len(IDS), num_tokens) for tensor in found.values())
    wrong = 0
    for row, (ids, mask) in enumerate(zip(IDS, MASK, strict=True)):
        alone = parts(read(input_ids=ids[mask == 1][None], output_hidden_states=True))
        columns = (mask == 1).nonzero().squeeze(1)
        for place, column in enumerate(columns.tolist()):
            if column < IDS.shape[1] - num_tokens:
                continue
            for name, tensor in found.items():
                here = tensor[row, column - (IDS.shape[1] - num_tokens)]
                torch.testing.assert_close(here, alone[name][0, place])
                wrong += not torch.allclose(plain[name][row, column], alone[name][0, place])
    assert wrong > 0


def test_a_sequence_alone_makes_no_cache() -> None:
    """It would keep keys and values of every layer for nothing. Control: the model makes one when asked."""
    assert forward_alone(model(), IDS).past_key_values is None
    assert model()(input_ids=IDS, use_cache=True).past_key_values is not None


def test_a_model_that_knows_no_cache_is_not_asked_for_none() -> None:
    """Some have no such argument, and take no other one either."""

    class Plain(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return input_ids + 1

    assert torch.equal(forward_alone(Plain(), IDS), IDS + 1)
