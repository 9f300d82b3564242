"""What a language model says does not depend on company, found by behaviour: read as it bears it, or refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from agents import PPO
from agents.policy import TransformerPolicy
from tests.helpers.company import PROMPTS, environment, errors, log_probs_alone, stepping_error
from tests.helpers.sequences import padded
from tests.helpers.tiny_models import SPECIAL, VOCABULARY, causal_lm_configs, tiny_causal_lm
from tests.scan import judge
from textenv.lm import find_cache_support, max_length, supports_cache
from textenv.references import CausalLMReference

CLOSE = 1e-3
FAMILIES = {  # with a window, windows in some layers, biases by distance, positions from the cache, recurrent states
    "GPT2": True,
    "Mistral": True,
    "GPTNeo": True,
    "Bart": False,
    "Mpt": True,
    "Mamba": False,
    "Lfm2": False,
    "Jamba": False,
}

SMALL_BERT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}


def tiny(name: str) -> Any:
    """A tiny model of a family."""
    return tiny_causal_lm(causal_lm_configs()[f"{name}Config"])


@pytest.mark.parametrize("name", FAMILIES)
def test_company_changes_nothing(name: str) -> None:
    """Stepping, sampling, evaluating and values equal what the model says of each sequence alone; it can be trained."""
    model = tiny(name)
    found = errors(model)
    assert max(found.values()) < CLOSE, found
    assert find_cache_support(model) is FAMILIES[name]


@pytest.mark.parametrize("name", ["Roberta", "GPT2", "OPT", "Mpt"])
def test_a_sequence_may_fill_the_positions_and_no_more(name: str) -> None:
    """RoBERTa's kind has fewer positions than its config says; an episode of all of them works, a longer is refused."""
    model = tiny(name)
    positions, width = max_length(model), max(len(prompt.split()) for prompt in PROMPTS)
    find_cache_support(model)
    assert positions is not None and max_length(model) == positions - (2 if name == "Roberta" else 0)
    length = max_length(model) - width
    env = environment(model, num_envs=1, max_new_tokens=length)
    env.reset(options={"prompt": [0]})
    for step in range(length):
        *_, terminated, _, _ = env.step([3])
        assert bool(terminated[0]) == (step == length - 1)
    with pytest.raises(ValueError, match=f"the reference's context of {max_length(model)}"):
        environment(model, max_new_tokens=length + 1)


def test_a_full_cache_is_filled_anew() -> None:
    """Rows that sit out a step leave columns without a token; GPT-Neo's masks end at the last position."""
    model = tiny("GPTNeo")
    length = max_length(model) - max(len(prompt.split()) for prompt in PROMPTS)
    envs = environment(model, num_envs=2, max_new_tokens=length)
    observations, _ = envs.reset(options={"prompt": PROMPTS[0]})
    for step in range(length + 3):  # the second row ends early, so it is alive while the first one sits out a step
        before, actions = observations, np.array([3, 0 if step == 1 else 4])
        observations, _, _, _, info = envs.step(actions)
    ids = before["input_ids"][1][before["attention_mask"][1] == 1].tolist()
    assert len(ids) > max_length(model) - 4
    assert abs(float(info["ref_log_prob"][1]) - float(log_probs_alone(model, ids)[-1, 4])) < CLOSE


def test_small_weights_hide_no_positions() -> None:
    """RoFormer counts positions by columns, which nearly uniform logits show by 1e-5 of their range."""
    config = causal_lm_configs()["RoFormerConfig"]
    model = type(tiny("RoFormer"))(tiny("RoFormer").config).eval()  # as transformers initialises it
    assert find_cache_support(model) is find_cache_support(tiny_causal_lm(config)) is False


class Stacked(GPT2LMHeadModel):
    """A model whose hidden states are those of several streams, as Gemma3n's are."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """GPT-2's output with stacked hidden states."""
        output = super().forward(*args, **kwargs)
        if output.hidden_states is not None:
            output.hidden_states = tuple(torch.stack([each, each]) for each in output.hidden_states)
        return output


def test_a_model_without_hidden_states_is_no_policy() -> None:
    """V is computed from them; as a reference it is right."""
    model = Stacked(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)).eval()
    assert stepping_error(environment(model), model) < CLOSE
    envs = environment(model)
    with pytest.raises(ValueError, match=r"V needs last hidden states .* this model's are \[2, "):
        PPO(TransformerPolicy.for_env(envs), envs, n_episodes=4).learn(1)


TOO_SLOW = {"KimiLinearConfig"}  # its attention in PyTorch takes seconds a pass


@pytest.mark.slow
@pytest.mark.parametrize("name", random.Random(0).sample(sorted(set(causal_lm_configs()) - TOO_SLOW), 40))
def test_a_sample_of_all_classes(name: str) -> None:
    """Right or refused; `make scan` tries all of them."""
    found = judge(name)
    if found.verdict == "not made":
        pytest.skip(found.reason)
    assert found.verdict in ("right", "refused"), found


@pytest.mark.parametrize("name", ["Bart", "Mamba", "Jamba"])
def test_a_model_that_is_read_wrongly_is_seen(name: str) -> None:
    """Control: these families are wrong, or fail, where they are read as GPT-2 is."""
    model = tiny(name)
    envs = environment(model)
    reference = envs.unwrapped.mdp.reference
    for module in (reference.model, reference.model.base_model):
        module.textenv_supports_cache = True
    try:
        wrong = stepping_error(envs, model) > 10 * CLOSE
    except (TypeError, AttributeError, ValueError, IndexError):
        wrong = True
    assert wrong


@pytest.mark.parametrize("name", ["GPT2", "Bart", "Mamba", "CpmAnt"])
def test_it_costs_four_passes_of_64_tokens(name: str) -> None:
    """At most; and it is done once, also for the policy that copies the reference."""
    model, calls = tiny(name), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        reference = CausalLMReference(model)
    except ValueError:
        assert name == "CpmAnt"
    else:
        policy = TransformerPolicy(reference.copy_model())
        assert supports_cache(policy.trunk) is FAMILIES[name]
    assert 1 < len(calls) <= 4 and max(calls) <= 64


class Odd(GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2 with a fault in what it does with company."""

    fault = ""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """As GPT-2."""
        if self.fault == "no positions":
            kwargs.pop("position_ids", None)
        if self.fault == "other arguments" and set(kwargs) - {"use_cache"}:
            raise TypeError("unexpected keyword argument")
        if self.fault == "no batches" and len(input_ids) > 1:
            raise RuntimeError("one row at a time")
        if self.fault == "broken":
            raise KeyError("broken")
        output = super().forward(input_ids, **kwargs)
        if self.fault == "rows":
            output.logits = output.logits + output.logits.mean(dim=0, keepdim=True)
        if self.fault == "chance":
            output.logits = output.logits + torch.rand_like(output.logits)
        if self.fault == "later":
            output.logits = output.logits + output.logits.mean(dim=1, keepdim=True)
        return output


def odd(fault: str) -> Odd:
    """GPT-2 with a fault."""
    torch.manual_seed(0)
    model = Odd(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2, **SPECIAL
        )
    ).eval()
    model.fault = fault
    return model


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rows", "depends on the rest of the batch, or on chance"),
        ("chance", "depends on the rest of the batch, or on chance"),
        ("later", "attends to later tokens"),
        ("no batches", "reads one sequence, but not two in a batch: RuntimeError: one row at a time"),
        ("broken", "cannot read a sequence of tokens alone: KeyError"),
    ],
)
def test_what_company_changes_is_refused(fault: str, message: str) -> None:
    """As reference and as policy, in a sentence that says what was seen."""
    for make in (CausalLMReference, TransformerPolicy):
        with pytest.raises(ValueError, match=f"^Odd .*{message}"):
            make(odd(fault))


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_masked_language_model_is_refused(is_decoder: bool) -> None:
    """As a decoder it does not attend to later tokens. Control: the causal model of the same weights is taken."""
    config = BertConfig(**SMALL_BERT, is_decoder=is_decoder)
    for make in (CausalLMReference, TransformerPolicy):
        with pytest.raises(ValueError, match="^BertForMaskedLM (is a masked language model|attends to later tokens)"):
            make(BertForMaskedLM(config).eval())
    causal = CausalLMReference(BertLMHeadModel(BertConfig(**SMALL_BERT, is_decoder=True)).eval())
    assert causal.vocab_size == SMALL_BERT["vocab_size"]


@pytest.mark.parametrize("fault", ["no positions", "other arguments"])
def test_a_model_without_positions_is_padded_on_the_right(fault: str) -> None:
    """What it is passed by name is not asked; it is right."""
    model = odd(fault)
    assert find_cache_support(model) is False
    assert stepping_error(environment(model), model) < CLOSE


def test_it_leaves_no_trace() -> None:
    """The global generator, each module's mode and the precision of products are as before."""
    model, precision = tiny("GPT2").train(), torch.get_float32_matmul_precision()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    try:
        torch.set_float32_matmul_precision("medium")
        seen = list[str]()
        hook = model.register_forward_hook(lambda *rest: seen.append(torch.get_float32_matmul_precision()))
        find_cache_support(model)
        hook.remove()
        assert set(seen) == {"highest"} and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("name", ["Mistral", "GPTNeo", "GPT2"])
def test_a_row_that_sat_out_steps_goes_on(name: str) -> None:
    """Others went on meanwhile. Its columns have a gap then, which a window would count."""
    model = tiny(name)
    reference = CausalLMReference(model)
    rows = [model_ids(prompt) for prompt in PROMPTS[:2]]
    rng = np.random.default_rng(0)
    for step in range(12):
        for row in range(2):
            if row == 0 or step in (0, 9, 10):
                rows[row].append(int(rng.integers(1, VOCABULARY)))
        ids, mask = padded(rows, right=20 - max(map(len, rows)))
        found = reference.log_probs(ids, mask)
        for row in range(2):
            assert np.allclose(found[row], log_probs_alone(model, rows[row])[-1].numpy(), atol=CLOSE)


def model_ids(prompt: str) -> list[int]:
    """The ids of a prompt."""
    return [int(word.removeprefix("w")) for word in prompt.split()]
