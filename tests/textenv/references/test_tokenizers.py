"""What may be a tokenizer, and which tokens end a completion."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import words, zero
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP, WordTokenizer
from textenv.references import as_tokenizer, resolve_eos


def test_a_tokenizer_is_loaded_from_its_path(assets: Path) -> None:
    """As a model is: the same ids as with the tokenizer itself, in both environments."""
    path = assets / "stories260k"
    arguments: dict[str, Any] = {
        "prompts": ["Once upon a time"],
        "reward": zero,
        "max_new_tokens": 2,
        "reference": path,
    }
    for given in (path, str(path)):
        env = gym.make("textenv/Text-v0", tokenizer=given, **arguments)
        envs = gym.make_vec("textenv/Text-v0", num_envs=2, tokenizer=given, **arguments)
        expected = as_tokenizer(path).encode("Once upon a time")
        assert env.reset(seed=0)[0]["input_ids"][: len(expected)].tolist() == expected
        assert envs.reset(seed=0)[0]["input_ids"][1, : len(expected)].tolist() == expected


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (3, "the int '3', which has no"),
        (None, "the NoneType 'None', which has no"),
        (["a", "b"], "the list .*which has no encode"),
        (byte_level().backend_tokenizer, r"PreTrainedTokenizerFast\(tokenizer_object=tokenizer\)"),
        (SimpleNamespace(tokenizer=byte_level()), "processor.tokenizer"),
        (str.split, "which has no"),
        ("no such folder/nor/hub id", "no such folder"),
        (Path("nowhere"), "nowhere"),
        ("", "tokenizer"),
    ],
)
def test_what_is_no_tokenizer_is_refused(tokenizer: Any, message: str) -> None:
    """One sentence that says what may be one."""
    with pytest.raises(ValueError, match=message) as error:
        TextMDP(**words(tokenizer=tokenizer))
    assert str(error.value)


ENDS: list[tuple[Any, list[int]]] = [
    (None, [0]),
    (2, [2]),
    (np.int64(2), [2]),
    ([1, 2], [1, 2]),
    (np.array([1, 2]), [1, 2]),
    ((3,), [3]),
    ("b", [2]),
    ("<eos>", [0]),
    (["<eos>", 2], [0, 2]),
    ([], []),
]


@pytest.mark.parametrize(("given", "expected"), ENDS, ids=[repr(given) for given, _ in ENDS])
def test_end_tokens_are_ids_or_spellings(given: Any, expected: list[int]) -> None:
    """One or several; those of the vocabulary by which a completion then ends."""
    mdp = TextMDP(**words(tokenizer=WordTokenizer("a b c"), eos_token_id=given))
    assert mdp.eos_token_ids == expected and np.flatnonzero(mdp.is_eos).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("</s>", r"no token '</s>'"),
        ("<eo>", r"no token '<eo>'. Did you mean '<eos>'\?"),
        (["b", "B"], "no token 'B'"),
        (4, r"in 0 \.\. 3, or a token's spelling, got 4"),
        (-1, "got -1"),
        (1.0, "got 1.0"),
        (True, "got True"),
        ([1, None], "got None"),
        ([[1]], r"got \[1\]"),
        ({"a": 1}, "got"),
        (b"b", "got b'b'"),
    ],
)
def test_other_end_tokens_are_refused(given: Any, message: str) -> None:
    """With what was given."""
    with pytest.raises(ValueError, match=message):
        TextMDP(**words(tokenizer=WordTokenizer("a b c"), eos_token_id=given))


def test_the_spelling_of_a_special_token_of_a_real_tokenizer() -> None:
    """By its spelling as by its id; the reference's own are the second choice, the tokenizer's the last."""
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    size = len(tokenizer)
    assert resolve_eos("<|end|>", SimpleNamespace(eos_token_id=5), tokenizer, size) == [end]
    assert resolve_eos(None, SimpleNamespace(eos_token_id=[5, 6]), tokenizer, size) == [5, 6]
    assert resolve_eos(None, SimpleNamespace(), tokenizer, size) == [tokenizer.eos_token_id]
