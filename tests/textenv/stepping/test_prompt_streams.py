"""Streams of prompts, hashed ahead: SplitMix64 in Python's integers is the oracle."""

from __future__ import annotations

import copy

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv.stepping.prompt_streams import PromptStreams

WORD = 2**64


def mixed(z: int) -> int:
    """SplitMix64's next number from the state z."""
    z = (z + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def drawn(seed: int, n: int, num_prompts: int) -> int:
    """The n-th prompt of the stream with this seed."""
    return mixed((mixed(seed) + n) % WORD) % num_prompts


def test_the_oracle_is_splitmix() -> None:
    """The first numbers of the published generator, from state 0."""
    assert mixed(0) == 0xE220A8397B1DCDAF
    assert mixed(0x9E3779B97F4A7C15) == 0x6E789E6AA1B965F4


@settings(max_examples=30, deadline=None)
@given(num=st.sampled_from([1, 3, 70]), seed=st.integers(0, 2**32), num_prompts=st.integers(1, 9))
def test_every_row_follows_its_own_stream(num: int, seed: int, num_prompts: int) -> None:
    """For any number of draws per row, past what is hashed ahead, and with new seeds for some rows in between."""
    rng, streams = np.random.default_rng(seed), PromptStreams(num, num_prompts)
    seeds, count = rng.integers(WORD, size=num, dtype=np.uint64), np.zeros(num, dtype=int)
    streams.seed(np.arange(num), seeds)
    for call in range(150):
        rows = np.flatnonzero(rng.random(num) < rng.random())
        expected = [drawn(int(seeds[row]), int(count[row]), num_prompts) for row in rows]
        assert streams.draw(rows).tolist() == expected
        count[rows] += 1
        if call % 40 == 17:
            some = rows[:2]
            seeds[some], count[some] = rng.integers(WORD, size=len(some), dtype=np.uint64), 0
            streams.seed(some, seeds[some])


def test_one_row_by_its_index() -> None:
    """More draws of one row, named by a number, than are hashed ahead; another seed draws other prompts."""
    streams, other = PromptStreams(1, 1000), PromptStreams(1, 1000)
    for each, seed in ((streams, 5), (other, 6)):
        each.seed(np.array([0]), np.array([seed], dtype=np.uint64))
    prompts = [int(streams.draw(0)) for _ in range(3000)]
    assert prompts == [drawn(5, n, 1000) for n in range(3000)]
    assert prompts[:20] != [int(other.draw(0)) for _ in range(20)]  # negative control


def test_a_copy_continues_the_stream() -> None:
    """A deep copy draws what the original draws next, and does not advance the original."""
    streams = PromptStreams(2, 1000)
    streams.seed(np.arange(2), np.arange(2, dtype=np.uint64))
    streams.draw(np.array([1]))
    twin = copy.deepcopy(streams)
    ahead = [twin.draw(np.arange(2)).tolist() for _ in range(40)]
    assert ahead == [streams.draw(np.arange(2)).tolist() for _ in range(40)]
