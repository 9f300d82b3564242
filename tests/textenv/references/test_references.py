"""References: tables say what was set, language models say what one full forward pass says, each token read once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import LETTERS, PROMPTS, make, random_reference, stories, words, zero
from textenv import TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import CausalLMReference, TableReference
from textenv.references.incremental import IncrementalInput
from textenv.testing import play

ANSWERS = {"a b": {"b": 0.5, "b a": 0.2, "": 0.3}, "a b a": {"": 0.25, "a a a": 0.75}, "b": {"b": 3.0, "b b": 1.0}}


def padded(texts: list[list[int]], left: int = 0, right: int = 0, blank: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts as observations: padded on the left to one length, with further blanks on both sides."""
    width = max(map(len, texts)) + left
    ids = np.array([[blank] * (width - len(text)) + text + [blank] * right for text in texts])
    mask = np.array([[0] * (width - len(text)) + [1] * len(text) + [0] * right for text in texts], dtype=np.int8)
    return ids, mask


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", list(ANSWERS))
def test_from_answers_gives_the_probabilities_that_were_set(prompt: str) -> None:
    """The product of next-token probabilities, end included, is each answer's share; nothing else is ever said."""
    tokenizer = WordTokenizer("a b")
    reference = TableReference.from_completions(tokenizer, ANSWERS)
    total = sum(ANSWERS[prompt].values())

    def say(text: list[int]) -> dict[int, float]:
        probs = np.exp(reference.log_probs(*padded([text])))[0]
        assert probs.sum() == pytest.approx(1.0)
        return {token: prob for token, prob in enumerate(probs) if prob}

    def finish(text: list[int], answer: list[int], prob: float) -> dict[str, float]:
        said: dict[str, float] = {}
        for token, share in say(text).items():
            if token == tokenizer.eos_token_id:
                said[tokenizer.decode(answer)] = prob * share
            else:
                said |= finish([*text, token], [*answer, token], prob * share)
        return said

    spoken = finish(tokenizer.encode(prompt), [], 1.0)
    assert spoken == pytest.approx({answer: share / total for answer, share in ANSWERS[prompt].items()})
    assert not reference.full_support


def test_a_prompt_that_begins_another_is_answered_by_itself() -> None:
    """ "a b" and "a b a" share their beginning: the second prompt's answers lend the first no probability."""
    reference = TableReference.from_completions(WordTokenizer("a b"), {"a": {"b": 1.0}, "a a": {"a": 1.0}})
    assert np.exp(reference.log_probs(*padded([[1]]))).tolist() == [[0, 0, 1]]
    assert np.exp(reference.log_probs(*padded([[1, 1]]))).tolist() == [[0, 1, 0]]


def test_answers_that_cannot_be_told_apart_are_refused() -> None:
    """After "a", the answer "b a" stands where the prompt "a b" and its answer stand: no text can keep both shares."""
    with pytest.raises(ValueError, match="a b"):
        TableReference.from_completions(
            WordTokenizer("a b"), {"a": {"b a": 0.1, "a": 0.9}, "a b": {"a": 0.5, "b": 0.5}}
        )


def test_a_text_that_no_answer_begins_with_has_no_continuation() -> None:
    """Off the tree everything is impossible, and stays so."""
    reference = TableReference.from_completions(WordTokenizer("a b"), ANSWERS)
    assert np.isneginf(reference.log_probs(*padded([[2, 1], [2, 1, 2]]))).all()


def test_unigram_and_bigram() -> None:
    """One row is the same everywhere; a square table looks at the last token (before any token, at row 0)."""
    unigram = np.log([0.5, 0.25, 0.25])
    ids, mask = padded([[1], [2, 1], [1, 2, 2]])
    assert (TableReference(unigram).log_probs(ids, mask) == unigram).all()
    rng = np.random.default_rng(0)
    bigram = np.log(rng.dirichlet(np.ones(3), size=3))
    assert (TableReference(bigram).log_probs(ids, mask) == bigram[[1, 1, 2]]).all()
    assert TableReference(unigram).full_support and TableReference(bigram).full_support
    assert TableReference(unigram).vocab_size == TableReference(bigram).vocab_size == 3


def machine(reference: TableReference, text: list[int]) -> np.ndarray:
    """The machine read by hand, token by token."""
    state = 0
    for token in text:
        state = reference.next_state[state, token]
    return reference.table[state]


moves = st.lists(  # for each call, what becomes of each of three rows
    st.tuples(*[st.sampled_from(["grow", "stay", "restart", "jump", "swap last"]) for _ in range(3)]), max_size=8
)


def walk(calls: list[tuple[str, ...]], seed: int, vocab: int) -> list[list[list[int]]]:
    """A sequence of batches of three texts: rows grow by a token, stay, begin anew, or become any other text."""
    rng = np.random.default_rng(seed)

    def token() -> int:
        return int(rng.integers(vocab))

    rows = [[token()], [token(), token()], [token()]]
    batches = [[list(row) for row in rows]]
    for call in calls:
        for i, move in enumerate(call):
            if move == "grow":
                rows[i] = [*rows[i], token()]
            elif move == "restart":
                rows[i] = [token() for _ in range(1 + i)]
            elif move == "jump":
                rows[i] = [token() for _ in range(rng.integers(1, 6))]
            elif move == "swap last":  # as long as before, another text
                rows[i] = [*rows[i][:-1], (rows[i][-1] + 1) % vocab]
        batches.append([list(row) for row in rows])
    return batches


def observed(batch: list[list[int]], width: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts in an environment's columns: up to `width` tokens on the left of a line, the others on its right."""
    ids, mask = np.zeros((len(batch), length), dtype=np.int64), np.zeros((len(batch), length), dtype=np.int8)
    for row, text in enumerate(batch):
        start = width - min(width, 1 + row % 2, len(text))
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(calls=moves, seed=st.integers(0, 999), sparse=st.booleans())
def test_a_table_that_follows_equals_one_that_reads_anew(calls: list[Any], seed: int, sparse: bool) -> None:
    """Whatever the calls before, log_probs is a pure function of its arguments: the machine read from the start."""
    reference = random_reference(4, seed, sparse)
    for batch in walk(calls, seed, 4):
        said = reference.log_probs(*observed(batch, 2, 16))
        assert said.tolist() == [machine(reference, text).tolist() for text in batch]


def test_the_walks_would_notice_a_reference_that_follows_blindly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a follower that takes every text for the last one plus a token gives other answers."""

    def blindly(self: Any, ids: Any, mask: Any) -> Any:
        last = ids[np.arange(len(ids)), ids.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)]
        known, self.input_ids = len(self.input_ids) == len(ids), ids
        return np.full(len(ids), known), np.zeros(len(ids), dtype=np.bool_), last

    monkeypatch.setattr(IncrementalInput, "match", blindly)
    reference = random_reference(4, 0, sparse=False)
    for move in ("stay", "restart", "jump", "swap last"):
        wrong = []
        for seed in range(5):
            batches = walk([("grow", "grow", move)] * 3, seed, 4)
            said = [reference.log_probs(*observed(batch, 2, 16)) for batch in batches]
            wrong.append(not np.allclose(said[-1][2], machine(reference, batches[-1][2])))
        assert any(wrong), move


def test_any_object_with_log_probs_is_a_reference() -> None:
    """A reference is anything with log_probs(input_ids, attention_mask) -> [B, V]; it needs nothing else."""

    class Mine:
        def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
            return np.log(np.tile([0.1, 0.2, 0.3, 0.4], (len(input_ids), 1)))

    episode = play(make(words(reference=Mine(), reward=zero, kl_coef=1.0)), 0, "c")
    assert np.exp(episode.rewards) == pytest.approx([0.4, 0.1])


def test_without_a_reference_every_token_is_equally_likely() -> None:
    """reference=None is uniform."""
    assert np.exp(play(make(words(reference=None)), 0, "c").ref_log_probs) == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("num_prompts", [1, 2, 5, 9])
def test_each_prompt_of_a_toy_has_a_reference_of_its_own(num_prompts: int) -> None:
    """Toy-v0: prompts of one or several letters, and every last word after them, meet a distribution of their own."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, num_prompts=num_prompts, max_new_tokens=3)
    said = []
    for prompt in range(num_prompts):
        for answer in ([], [1], [2], [1, 1], [1, 2], [2, 1]):
            env.reset(options={"prompt": prompt, "completion": answer})
            said.append(env.step(1)[-1]["ref_log_prob"])
    table = np.array(said).reshape(num_prompts, 6)
    assert (table[:, 3] == table[:, 5]).all()  # "a a" and "b a": same prompt, time and last word
    assert len(set(said)) == 5 * num_prompts and not np.isclose(said, -np.log(3)).any()


# -- language models ---------------------------------------------------------------------------------------------------


def tiny_gpt2(**config: Any) -> Any:
    """A random GPT-2 (learned positions) with large weights, so that answers depend on every token."""
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
def forward(model: Any, text: list[int]) -> np.ndarray:
    """One full forward pass over one unpadded text: log-probabilities [len(text), V] of the next tokens."""
    log_probs: np.ndarray = model.eval()(torch.tensor([text])).logits[0].log_softmax(-1).numpy()
    return log_probs


@settings(max_examples=8, deadline=None)
@given(calls=moves, seed=st.integers(0, 99))
@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_that_follows_equals_a_full_forward(name: str, calls: list[Any], seed: int) -> None:
    """Whatever the calls before, log_probs equals a full forward on the unpadded text, over the whole vocabulary."""
    model = MODELS[name]()
    reference = CausalLMReference(model)
    for batch in walk(calls, seed, 11):
        said = reference.log_probs(*observed(batch, 2, 16))
        np.testing.assert_allclose(said, [forward(model, text)[-1] for text in batch], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_stepping_with_restarts_equals_a_full_forward(model: Any, mode: str) -> None:
    """In an environment, with rows that end and restart at different times: ref_log_prob is the full forward's."""
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
        texts = [row[real == 1].tolist() for row, real in zip(*observation.values(), strict=True)]
        actions = np.where(rng.random(4) < 0.25, 1, rng.integers(3, 11, size=4))
        observation, _, terminated, _, info = envs.step(actions)
        said = info.get("ref_log_prob", np.zeros(4)).copy()
        known = info.get("_ref_log_prob", np.zeros(4, dtype=bool)).copy()
        if "final_info" in info:
            said[terminated] = info["final_info"]["ref_log_prob"][terminated]
            known |= terminated
        expected = [forward(model, text)[-1][action] for text, action in zip(texts, actions, strict=True)]
        np.testing.assert_allclose(said[known], np.array(expected)[known], rtol=0, atol=1e-4)
        ends += int(terminated.sum())
        if mode == "Disabled" and terminated.any():
            observation, _ = envs.reset(options={"reset_mask": terminated})
    assert ends > 6


def test_one_parallel_pass_equals_stepping(model: Any) -> None:
    """token_log_probs of whole answers, in one pass, equals reading them token by token, to 1e-5."""
    rng, vocab = np.random.default_rng(0), model.config.vocab_size
    reference = CausalLMReference(model)
    texts = [rng.integers(vocab, size=length + 6).tolist() for length in (1, 4, 2)]
    ids, mask = padded(texts)
    parallel = reference.token_log_probs(torch.tensor(ids), torch.tensor(mask), 6).numpy()
    stepped = np.stack(
        [
            reference.log_probs(*padded([text[: len(text) - 6 + t] for text in texts], right=6 - t))[
                np.arange(3), [text[len(text) - 6 + t] for text in texts]
            ]
            for t in range(6)
        ],
        axis=1,
    )
    exact = [[forward(model, text)[len(text) - 7 + t][text[len(text) - 6 + t]] for t in range(6)] for text in texts]
    np.testing.assert_allclose(parallel, exact, rtol=0, atol=1e-5)
    np.testing.assert_allclose(stepped, exact, rtol=0, atol=1e-5)
    shifted = reference.token_log_probs(torch.tensor(ids), torch.tensor(mask), 5).numpy()
    np.testing.assert_allclose(shifted, parallel[:, 1:], rtol=0, atol=1e-5)
    assert abs(parallel[:, 1:] - parallel[:, :-1]).max() > 0.1  # negative control: off by one column is noticed


def test_one_parallel_pass_may_be_cut_into_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the logits would take too much memory at once, rows are scored in chunks, with the same result."""
    from textenv.references import causal_lm

    model = tiny_llama()
    reference, rng = CausalLMReference(model), np.random.default_rng(0)
    ids = torch.tensor(rng.integers(11, size=(5, 7)))
    whole = reference.token_log_probs(ids, torch.ones_like(ids), 4)
    reads = Reads(reference.model)
    monkeypatch.setattr(causal_lm, "MAX_LOGITS", 2 * 4 * 11)
    torch.testing.assert_close(reference.token_log_probs(ids, torch.ones_like(ids), 4), whole, rtol=0, atol=1e-6)
    assert [rows for rows, _ in reads.shapes] == [2, 2, 1]


def test_blanks_shift_nothing(model: Any) -> None:
    """Any amount of padding on the left or on the right, filled with any token, changes no answer."""
    rng, vocab = np.random.default_rng(1), model.config.vocab_size
    texts = [rng.integers(vocab, size=length).tolist() for length in (5, 2, 3)]
    exact = np.stack([forward(model, text)[-1] for text in texts])
    for left, right, blank in ((0, 0, 0), (7, 0, 3), (0, 5, 5), (3, 3, 9)):
        said = CausalLMReference(model).log_probs(*padded(texts, left, right, blank))
        np.testing.assert_allclose(said, exact, rtol=0, atol=1e-4)
    lifted = CausalLMReference(model).log_probs(padded(texts)[0], np.ones_like(padded(texts)[1]))  # negative control:
    assert abs(lifted - exact)[1].max() > 0.01  # padding that is attended to does shift


class Reads:
    """Counts the tokens that pass through a model's forward, [rows, columns] a call."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, _: Any, args: Any, kwargs: Any) -> None:
        """The hook."""
        self.shapes.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_each_token_is_read_once(build: Any) -> None:
    """A step reads one token a row; a row that begins anew is read alone; no prefix is read again."""
    tokenizer = WordTokenizer([*LETTERS, "x", "y"])
    task = TextMDP(tokenizer, PROMPTS, zero, build(), max_new_tokens=6)
    envs = TextVectorEnv(task, 5, autoreset_mode="SameStep")
    reads = Reads(task.reference.model)
    observation, _ = envs.reset(seed=0)
    assert reads.shapes == [(5, observation["attention_mask"].sum(axis=1).max())]  # no more columns than the longest
    reads.shapes.clear()
    for _ in range(3):
        envs.step(np.full(5, 1))
    assert reads.shapes == [(5, 1)] * 3
    reads.shapes.clear()
    envs.step(np.array([1, 0, 1, 0, 1]))  # two texts end, their rows begin anew
    assert reads.shapes[0] == (5, 1) and len(reads.shapes) == 2
    assert reads.shapes[1][0] == 2 and reads.shapes[1][1] <= 3
    reads.shapes.clear()
    envs.step(np.full(5, 2))
    assert reads.shapes == [(5, 1)]
    reads.shapes.clear()
    CausalLMReference(build()).log_probs(*padded([[1, 2]]))
    assert not reads.shapes  # the hook sits on one copy alone


def test_disabled_autoreset_reads_no_prefix_again() -> None:
    """With autoreset DISABLED, reset_mask reads the rows that begin anew, not those in the middle of a text."""
    task = TextMDP(WordTokenizer([*LETTERS, "x", "y"]), PROMPTS, zero, tiny_llama(), max_new_tokens=6)
    envs = TextVectorEnv(task, 4, autoreset_mode="Disabled")
    envs.reset(seed=0)
    envs.step(np.full(4, 1))
    envs.step(np.array([1, 0, 1, 1]))
    reads = Reads(task.reference.model)
    envs.reset(options={"reset_mask": np.array([False, True, False, False])})
    assert sum(rows for rows, _ in reads.shapes) == 1


def test_the_cache_does_not_grow_without_end() -> None:
    """However long an environment is stepped, attention spans no more columns than two texts have."""
    task = TextMDP(WordTokenizer([*LETTERS, "x", "y"]), PROMPTS, zero, tiny_llama(), max_new_tokens=4)
    envs, rng, widths = TextVectorEnv(task, 6), np.random.default_rng(0), []
    hook = task.reference.model.register_forward_pre_hook
    hook(lambda _, args, kwargs: widths.append(kwargs["attention_mask"].shape[1]), with_kwargs=True)
    envs.reset(seed=0)
    for _ in range(60):
        envs.step(rng.integers(4, size=6))
    assert len(widths) > 60 and max(widths) <= 2 * (task.prompt_width + task.max_new_tokens)


def test_a_sliding_window_is_read_anew() -> None:
    """A sliding window counts columns, which are not in text order in the cache: such a model is read anew."""
    reference = CausalLMReference(tiny_llama("Mistral", sliding_window=3))
    reads = Reads(reference.model)
    text = [1, 2, 3, 4, 5, 6]
    for length in (4, 5, 6):
        reference.log_probs(*padded([text[:length]], right=6 - length))
    assert reads.shapes == [(1, 4), (1, 5), (1, 6)]


def test_the_reference_does_not_move_with_the_original(model: Any, assets: Path) -> None:
    """Training the model that was passed leaves the reference bit-identical, tied weights included."""
    reference = CausalLMReference(model)
    batch = padded([[3, 4, 5], [6, 7]])
    before = reference.log_probs(*batch)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1.0)
    model(torch.tensor([[3, 4, 5, 6]])).logits.square().mean().backward()
    optimizer.step()
    assert (CausalLMReference(reference.model).log_probs(*batch) == before).all()
    assert abs(CausalLMReference(model).log_probs(*batch) - before).max() > 1e-3  # the original did move
    frozen = list(reference.model.parameters())
    assert not any(p.requires_grad for p in frozen) and not reference.model.training
    assert not {p.data_ptr() for p in frozen} & {p.data_ptr() for p in model.parameters()}
    assert all(p.requires_grad for p in model.parameters()) and model.training  # and the original is left as it was


def test_a_reference_has_no_dropout() -> None:
    """A model passed in training mode is asked without dropout: the same question gets the same answer."""
    reference = CausalLMReference(tiny_gpt2(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train())
    batch = padded([[3, 4, 5]])
    assert (reference.log_probs(*batch) == copy.deepcopy(reference).log_probs(*batch)).all()


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_logits_beyond_the_vocabulary_are_cut(build: Any) -> None:
    """A tokenizer with fewer tokens than the model has logits: the first V share all the probability."""
    model = build()
    reference = CausalLMReference(model, vocab_size=7)
    said = reference.log_probs(*padded([[1, 2, 3]]))
    assert said.shape == (1, 7) and np.exp(said).sum() == pytest.approx(1.0, abs=1e-6)
    exact = forward(model, [1, 2, 3])[-1][:7]
    np.testing.assert_allclose(said[0], exact - np.logaddexp.reduce(exact), rtol=0, atol=1e-5)
    ids = torch.tensor([[1, 2, 3, 4]])
    assert reference.token_log_probs(ids, torch.ones_like(ids), 1).item() == pytest.approx(said[0, 4], abs=1e-5)
    with pytest.raises(ValueError, match="11 tokens, the tokenizer one of 12"):
        CausalLMReference(model, vocab_size=12)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_text_may_fill_the_context_to_its_last_position(build: Any, mode: str) -> None:
    """Prompt + max_new_tokens = the model's context is allowed, and rows that reach its end restart without harm."""
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
    texts = [row[real == 1].tolist() for row, real in zip(*envs.episodes.observation().values(), strict=True)]
    for row in np.flatnonzero(envs.episodes.live):
        np.testing.assert_allclose(envs.episodes.ref_log_probs[row], forward(model, texts[row])[-1], rtol=0, atol=1e-4)


def test_end_tokens_are_those_that_the_model_names(assets: Path) -> None:
    """stories260k ends stories with <s> (1) and </s> (2), says its generation config; an argument overrules it."""
    assert TextMDP(**stories(assets)).eos_token_ids == [1, 2]
    assert TextMDP(**stories(assets, eos_token_id=2)).eos_token_ids == [2]
    assert TextMDP(**words()).eos_token_ids == [0]


def test_a_call_that_is_interrupted_leaves_nothing_to_follow(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the model reads: the same call again, and the next one, answer as a fresh reference does."""
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
