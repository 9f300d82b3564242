"""Causal LM references: every log-probability equals one full forward pass, and each token is processed once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.sequences import changes, changing_batches, observed, padded
from tests.helpers.tasks import LETTERS, PROMPTS, stories, words, zero
from textenv import TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import CausalLMReference


def tiny_gpt2(**config: Any) -> Any:
    """A random GPT-2 (learned positions) with large weights, so that its output depends on every token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 11, "n_positions": 32, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(**shape | {"bos_token_id": 0, "eos_token_id": 0} | config))


def tiny_llama(kind: str = "Llama", **config: Any) -> Any:
    """A random Llama (rotary positions), or another model of its family."""
    import transformers

    torch.manual_seed(0)
    shape = {
        "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 11, "max_position_embeddings": 32, "initializer_range": 0.5,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    configured = getattr(transformers, f"{kind}Config")(**shape | config)
    return getattr(transformers, f"{kind}ForCausalLM")(configured)


MODELS = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "mistral with a sliding window": lambda: tiny_llama("Mistral", sliding_window=3),
}


@pytest.fixture(params=[*MODELS, "stories260k"])
def model(request: pytest.FixtureRequest) -> Any:
    """Language models with learned and with rotary positions, random and trained."""
    if request.param in MODELS:
        return MODELS[request.param]()
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue("assets") / "stories260k", dtype=torch.float32)


@torch.no_grad()
def forward(model: Any, sequence: list[int]) -> np.ndarray:
    """One full forward pass over one unpadded sequence: log-probabilities [length, V] of the next tokens."""
    log_probs: np.ndarray = model.eval()(torch.tensor([sequence])).logits[0].log_softmax(-1).numpy()
    return log_probs


class ForwardShapes:
    """Records the shape, (rows, columns), of each input of a model's forward."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: Any, args: Any, kwargs: Any) -> None:
        """The hook."""
        self.shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


@settings(max_examples=8, deadline=None)
@given(calls=changes, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", list(MODELS))
def test_an_incremental_model_equals_a_full_forward(name: str, calls: list[Any], seed: int) -> None:
    """Whatever the previous calls, log_probs equals a full forward over the unpadded sequence, for all V tokens."""
    model = MODELS[name]()
    reference = CausalLMReference(model)
    for batch in changing_batches(calls, seed, 11):
        log_probs = reference.log_probs(*observed(batch, 2, 16))
        np.testing.assert_allclose(log_probs, [forward(model, row)[-1] for row in batch], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_stepping_with_restarts_equals_a_full_forward(model: Any, mode: str) -> None:
    """In an environment whose rows end and restart at different times, ref_log_prob is the full forward's."""
    vocab = model.config.vocab_size
    tokenizer = WordTokenizer([f"w{i}" for i in range(1, vocab)])
    task = TextMDP(
        tokenizer,
        ["w3", "w4 w5 w6", "w7 w8"],
        zero,
        model,
        max_new_tokens=5,
        eos_token_id=[0, 1, 2],
        max_prompt_length=4,
    )
    envs, rng = TextVectorEnv(task, 4, autoreset_mode=mode), np.random.default_rng(0)
    observation, _ = envs.reset(seed=0)
    ends = 0
    for _ in range(14):
        sequences = [row[real == 1].tolist() for row, real in zip(*observation.values(), strict=True)]
        actions = np.where(rng.random(4) < 0.25, 1, rng.integers(3, 11, size=4))
        observation, _, terminated, _, info = envs.step(actions)
        log_probs = info.get("ref_log_prob", np.zeros(4)).copy()
        known = info.get("_ref_log_prob", np.zeros(4, dtype=bool)).copy()
        if "final_info" in info:
            log_probs[terminated] = info["final_info"]["ref_log_prob"][terminated]
            known |= terminated
        expected = [forward(model, row)[-1][action] for row, action in zip(sequences, actions, strict=True)]
        np.testing.assert_allclose(log_probs[known], np.array(expected)[known], rtol=0, atol=1e-4)
        ends += int(terminated.sum())
        if mode == "Disabled" and terminated.any():
            observation, _ = envs.reset(options={"reset_mask": terminated})
    assert ends > 6


def test_one_parallel_pass_equals_stepping(model: Any) -> None:
    """token_log_probs of whole completions, in one pass, equals stepping token by token, to 1e-5."""
    rng, vocab = np.random.default_rng(0), model.config.vocab_size
    reference = CausalLMReference(model)
    rows = [rng.integers(vocab, size=length + 6).tolist() for length in (1, 4, 2)]
    ids, mask = padded(rows)
    parallel = reference.token_log_probs(torch.tensor(ids), torch.tensor(mask), 6).numpy()
    stepped = np.stack(
        [
            reference.log_probs(*padded([row[: len(row) - 6 + t] for row in rows], right=6 - t))[
                np.arange(3), [row[len(row) - 6 + t] for row in rows]
            ]
            for t in range(6)
        ],
        axis=1,
    )
    exact = [[forward(model, row)[len(row) - 7 + t][row[len(row) - 6 + t]] for t in range(6)] for row in rows]
    np.testing.assert_allclose(parallel, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stepped, exact, rtol=0, atol=1e-5)
    shifted = reference.token_log_probs(torch.tensor(ids), torch.tensor(mask), 5).numpy()
    np.testing.assert_allclose(shifted, parallel[:, 1:], rtol=0, atol=1e-5)
    assert abs(parallel[:, 1:] - parallel[:, :-1]).max() > 0.1  # negative control: an offset of one column is detected


def test_a_parallel_pass_may_be_split_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the logits of all rows need too much memory, rows are scored in chunks, with the same result."""
    from textenv.references import causal_lm

    model = tiny_llama()
    reference, rng = CausalLMReference(model), np.random.default_rng(0)
    ids = torch.tensor(rng.integers(11, size=(5, 7)))
    whole = reference.token_log_probs(ids, torch.ones_like(ids), 4)
    forwards = ForwardShapes(reference.model)
    monkeypatch.setattr(causal_lm, "MAX_LOGITS", 2 * 4 * 11)
    torch.testing.assert_close(reference.token_log_probs(ids, torch.ones_like(ids), 4), whole, rtol=0, atol=1e-6)
    assert [rows for rows, _ in forwards.shapes] == [2, 2, 1]


def test_padding_changes_no_log_probs(model: Any) -> None:
    """Any amount of padding on either side, with any token id, changes no log-probability."""
    rng, vocab = np.random.default_rng(1), model.config.vocab_size
    rows = [rng.integers(vocab, size=length).tolist() for length in (5, 2, 3)]
    exact = np.stack([forward(model, row)[-1] for row in rows])
    for left, right, padding in ((0, 0, 0), (7, 0, 3), (0, 5, 5), (3, 3, 9)):
        log_probs = CausalLMReference(model).log_probs(*padded(rows, left, right, padding))
        np.testing.assert_allclose(log_probs, exact, rtol=0, atol=1e-4)
    unmasked = CausalLMReference(model).log_probs(padded(rows)[0], np.ones_like(padded(rows)[1]))  # negative control:
    assert abs(unmasked - exact)[1].max() > 0.01  # padding that is attended to does change them


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_each_token_is_processed_once(build: Any) -> None:
    """A step decodes one token per row; a row that restarts is prefilled alone; no prefix is processed again."""
    tokenizer = WordTokenizer([*LETTERS, "x", "y"])
    task = TextMDP(tokenizer, PROMPTS, zero, build(), max_new_tokens=6)
    envs = TextVectorEnv(task, 5, autoreset_mode="SameStep")
    forwards = ForwardShapes(task.reference.model)
    observation, _ = envs.reset(seed=0)
    assert forwards.shapes == [(5, observation["attention_mask"].sum(axis=1).max())]  # no more columns than the longest
    forwards.shapes.clear()
    for _ in range(3):
        envs.step(np.full(5, 1))
    assert forwards.shapes == [(5, 1)] * 3
    forwards.shapes.clear()
    envs.step(np.array([1, 0, 1, 0, 1]))  # two episodes end, their rows restart
    assert forwards.shapes[0] == (5, 1) and len(forwards.shapes) == 2
    assert forwards.shapes[1][0] == 2 and forwards.shapes[1][1] <= 3
    forwards.shapes.clear()
    envs.step(np.full(5, 2))
    assert forwards.shapes == [(5, 1)]
    forwards.shapes.clear()
    CausalLMReference(build()).log_probs(*padded([[1, 2]]))
    assert not forwards.shapes  # the hook is on one copy only


def test_disabled_autoreset_processes_no_prefix_again() -> None:
    """With autoreset DISABLED, reset_mask prefills the rows that restart, not those in the middle of an episode."""
    task = TextMDP(WordTokenizer([*LETTERS, "x", "y"]), PROMPTS, zero, tiny_llama(), max_new_tokens=6)
    envs = TextVectorEnv(task, 4, autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(np.full(4, 1))
    envs.step(np.array([1, 0, 1, 1]))
    forwards = ForwardShapes(task.reference.model)
    envs.reset(options={"reset_mask": np.array([False, True, False, False])})
    assert sum(rows for rows, _ in forwards.shapes) == 1


def test_the_cache_has_a_bounded_width() -> None:
    """However long an environment is stepped, the cache has at most the columns of two sequences."""
    task = TextMDP(WordTokenizer([*LETTERS, "x", "y"]), PROMPTS, zero, tiny_llama(), max_new_tokens=4)
    envs, rng, widths = TextVectorEnv(task, 6), np.random.default_rng(0), []
    hook = task.reference.model.register_forward_pre_hook
    hook(lambda _, args, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True)
    envs.reset(seed=0)
    for _ in range(60):
        envs.step(rng.integers(4, size=6))
    assert len(widths) > 60 and max(widths) <= 2 * (task.prompt_width + task.max_new_tokens)


def test_a_model_with_a_sliding_window_uses_the_cache() -> None:
    """The columns of a row are adjacent and in token order, so that a window of columns is a window of tokens."""
    reference = CausalLMReference(tiny_llama("Mistral", sliding_window=3))
    forwards = ForwardShapes(reference.model)
    sequence = [1, 2, 3, 4, 5, 6]
    for length in (4, 5, 6):
        reference.log_probs(*padded([sequence[:length]], right=6 - length))
    assert forwards.shapes == [(1, 4), (1, 1), (1, 1)]


def test_training_the_original_does_not_change_the_reference(model: Any, assets: Path) -> None:
    """Training the model that was passed leaves the reference bit-identical, tied weights included."""
    reference = CausalLMReference(model)
    batch = padded([[3, 4, 5], [6, 7]])
    before = reference.log_probs(*batch)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1.0)
    model(torch.tensor([[3, 4, 5, 6]])).logits.square().mean().backward()
    optimizer.step()
    assert (CausalLMReference(reference.model).log_probs(*batch) == before).all()
    assert abs(CausalLMReference(model).log_probs(*batch) - before).max() > 1e-3  # the original did change
    frozen = list(reference.model.parameters())
    assert not any(p.requires_grad for p in frozen) and not reference.model.training
    assert not {p.data_ptr() for p in frozen} & {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad for p in model.parameters()) and model.training  # and the original is unchanged


def test_a_reference_has_no_dropout() -> None:
    """A model passed in training mode runs without dropout: the same input gives the same output."""
    reference = CausalLMReference(tiny_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train())
    batch = padded([[3, 4, 5]])
    assert (reference.log_probs(*batch) == copy.deepcopy(reference).log_probs(*batch)).all()


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_logits_beyond_the_vocabulary_are_dropped(build: Any) -> None:
    """Where the tokenizer has fewer tokens than the model has logits, the first V have all the probability."""
    model = build()
    reference = CausalLMReference(model, vocab_size=7)
    log_probs = reference.log_probs(*padded([[1, 2, 3]]))
    assert log_probs.shape == (1, 7) and np.exp(log_probs).sum() == pytest.approx(1.0, abs=1e-6)
    exact = forward(model, [1, 2, 3])[-1][:7]
    np.testing.assert_allclose(log_probs[0], exact - np.logaddexp.reduce(exact), rtol=0, atol=1e-5)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert reference.token_log_probs(ids, torch.ones_like(ids), 1).item() == pytest.approx(log_probs[0, 4], abs=1e-5)
    with pytest.raises(ValueError, match="11 tokens, the tokenizer one of 12"):
        CausalLMReference(model, vocab_size=12)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_sequence_may_fill_the_context(build: Any, mode: str) -> None:
    """Prompt + max_new_tokens = the model's context is allowed, and rows that reach its end restart correctly."""
    length = {"n_positions": 6} if build is tiny_gpt2 else {"max_position_embeddings": 6}
    model = build(**length)
    tokenizer = WordTokenizer([f"w{i}" for i in range(10)])
    task = TextMDP(tokenizer, ["w0 w1 w2"], zero, model, max_new_tokens=3, kl_coef=1.0)
    envs = TextVectorEnv(task, 2, autoreset_mode=mode)
    envs.reset(seed=0)
    for step in range(9):
        terminated = envs.step(np.array([4, 0 if step == 0 else 5]))[2]
        if mode == "Disabled" and terminated.any():
            envs.reset(options={"reset_mask": terminated})
    sequences = [row[real == 1].tolist() for row, real in zip(*envs.episodes.observation().values(), strict=True)]
    for row in np.flatnonzero(envs.episodes.live):
        np.testing.assert_allclose(
            envs.episodes.ref_log_probs[row], forward(model, sequences[row])[-1], rtol=0, atol=1e-4
        )


def test_eos_tokens_are_those_of_the_generation_config(assets: Path) -> None:
    """stories260k has the EOS tokens <s> (1) and </s> (2) in its generation config; an argument overrides it."""
    assert TextMDP(**stories(assets)).eos_token_ids == [1, 2]
    assert TextMDP(**stories(assets, eos_token_id=2)).eos_token_ids == [2]
    assert TextMDP(**words()).eos_token_ids == [0]


def test_an_interrupted_call_leaves_no_state(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a forward pass: the same call again, and the next one, equal those of a fresh reference."""
    reference, fresh = (CausalLMReference(assets / "stories260k") for _ in range(2))
    ids, mask = (
        np.array([[1, 5, 9, 0, 0], [1, 7, 0, 0, 0]]),
        np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]], dtype=np.int8),
    )
    reference.log_probs(ids, mask)
    longer, longer_mask = ids.copy(), mask.copy()
    longer[[0, 1], [3, 2]], longer_mask[[0, 1], [3, 2]] = 11, 1

    def interrupt(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reference.model, "forward", interrupt)
        reference.log_probs(longer, longer_mask)
    for _ in range(2):
        assert np.abs(reference.log_probs(longer, longer_mask) - fresh.log_probs(longer, longer_mask)).max() < 1e-4


def test_a_class_is_no_model() -> None:
    """The class instead of an object of it: an error of ours, with what a reference may be."""
    with pytest.raises(TypeError, match="be a causal language model or a path to one, got the class GPT2LMHeadModel"):
        CausalLMReference(type(tiny_gpt2()))


@pytest.mark.parametrize("vocab_size", [0, -1, 1.5])
def test_the_vocabulary_has_a_size(vocab_size: Any) -> None:
    """0 is not the default. Control: a size below the model's drops the logits beyond it."""
    with pytest.raises(ValueError, match="vocab_size must be a whole number, at least 1"):
        CausalLMReference(tiny_gpt2(), vocab_size=vocab_size)
    ids = np.ones((1, 3), dtype=np.int64)
    assert CausalLMReference(tiny_gpt2(), vocab_size=7).log_probs(ids, ids).shape == (1, 7)
