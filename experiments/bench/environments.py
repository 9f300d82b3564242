"""Steps a second of the environments: ours, Gymnasium's CartPoleVectorEnv, and a bare loop over numpy arrays.

A step of B slots counts as B. Actions are prepared beforehand; rounds of all cases take turns, and the medians are
told. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from numpy.typing import NDArray

import textenv
from textenv import get_mdp

Case = Callable[[int], float]  # plays so many steps, returns the seconds that they took
SLOTS = (1, 64, 1024)
TOY: dict[str, Any] = {
    "vocab_size": 6,
    "max_new_tokens": 4,
}  # Toy-v0 as it is made by default: a text ends every 3 tokens
LONGER: dict[str, Any] = {"vocab_size": 50, "max_new_tokens": 32}  # every 24
WIDE = 50_000


def environments(seconds: float = 20.0) -> dict[str, Any]:
    """All that is measured here, in about so many seconds.

    Returns:
        `steps_per_second`: case -> slots -> median; `live`: the share of steps that are no resets; `mask`: what a step
        costs where nothing of 50,000 tokens is masked, and whether its mask is one array; `prefix`: microseconds a
        token after short and after long prefixes.
    """
    cases: dict[tuple[str, int], Case] = {}
    for slots in SLOTS:
        cases["numpy loop", slots] = vector_case(BareTokens(slots), slots, TOY["vocab_size"])
        cases["CartPoleVectorEnv", slots] = vector_case(CartPoleVectorEnv(num_envs=slots), slots, 2)
        ours: dict[str, dict[str, Any]] = {
            "TextVectorEnv": TOY,
            "TextVectorEnv, SAME_STEP": TOY | {"autoreset_mode": "SameStep"},
            "TextVectorEnv, longer texts": LONGER,
        }
        for name, arguments in ours.items():
            envs = gym.make_vec("textenv/Toy-v0", num_envs=slots, **arguments)
            cases[name, slots] = vector_case(envs, slots, arguments["vocab_size"])
        cases["TextVectorEnv, a reward of lists", slots] = vector_case(toy_of_lists(slots), slots, TOY["vocab_size"])
    for checker in (True, False):
        env = gym.make("textenv/Toy-v0", disable_env_checker=not checker, **TOY)
        cases["gym.make" if checker else "gym.make, disable_env_checker=True", 1] = single_case(env)
    cases["TextEnv, without Gymnasium's wrappers", 1] = single_case(gym.make("textenv/Toy-v0", **TOY).unwrapped)
    rates = medians(cases, 0.85 * seconds)
    told: dict[str, dict[int, float]] = {}
    for (name, slots), rate in rates.items():
        told.setdefault(name, {})[slots] = rate * slots
    live = {
        "TextVectorEnv": live_share(gym.make_vec("textenv/Toy-v0", num_envs=64, **TOY), TOY["vocab_size"]),
        "CartPoleVectorEnv": live_share(CartPoleVectorEnv(num_envs=64), 2),
    }
    return {"steps_per_second": told, "live": live, "mask": wide_mask(), "prefix": prefix(0.1 * seconds)}


def medians(cases: dict[Any, Case], seconds: float, round_seconds: float = 0.003) -> dict[Any, float]:
    """The median of calls a second of each case, over rounds in which they take turns; on a busy machine short ones are
    less often interrupted."""
    steps = {name: max(8, int(round_seconds / (case(64) / 64))) for name, case in cases.items()}
    rates: dict[Any, list[float]] = {name: [] for name in cases}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(rates.values()):
        for name, case in cases.items():
            rates[name].append(steps[name] / case(steps[name]))
    return {name: float(np.median(found)) for name, found in rates.items()}


class BareTokens:
    """The least that an environment of tokens does: write, end, begin anew, copy the observation. No text, no KL."""

    def __init__(self, slots: int, max_new_tokens: int = TOY["max_new_tokens"]) -> None:
        self.rows, self.time = np.arange(slots), np.zeros(slots, dtype=np.int64)
        self.tokens = np.zeros((slots, max_new_tokens + 1), dtype=np.int64)

    def reset(self, seed: int) -> None:
        """Begin anew."""
        self.time[:] = 0

    def step(self, actions: NDArray[np.int64]) -> Any:
        """One token a slot."""
        self.tokens[self.rows, self.time] = actions
        self.time += 1
        ended = (actions == 0) | (self.time == self.tokens.shape[1] - 1)
        observation, rewards = self.tokens.copy(), ended.astype(np.float64)
        self.time[ended] = 0
        self.tokens[ended] = 0
        return observation, rewards, ended


def vector_case(envs: Any, slots: int, actions: int) -> Case:
    """Random actions, the same in every round."""
    taken = itertools.cycle(np.random.default_rng(0).integers(actions, size=(64, slots)))
    envs.reset(seed=0)

    def play(steps: int) -> float:
        chosen = list(itertools.islice(taken, steps))
        start = time.perf_counter()
        for action in chosen:
            envs.step(action)
        return time.perf_counter() - start

    return play


def toy_of_lists(slots: int) -> Any:
    """The toy with its reward in TRL's signature alone, as most rewards are: texts and ids are made for it."""
    mdp = get_mdp(gym.make("textenv/Toy-v0", **TOY))
    (reward,) = mdp.reward.functions
    mdp.reward.functions = (lambda **texts: reward(**texts),)
    return textenv.TextVectorEnv(mdp, slots)


def live_share(envs: Any, actions: int, steps: int = 512) -> float:
    """Of the steps that NEXT_STEP counts, the share in which something is done: not the one after each end."""
    envs.reset(seed=0)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(steps):
        _, _, terminated, truncated, _ = envs.step(rng.integers(actions, size=envs.num_envs))
        ends += int((terminated | truncated).sum())
    return 1 - ends / (steps * int(envs.num_envs))


def single_case(env: Any) -> Case:
    """Random actions, with a reset after each end, which is not counted as a step but takes its time."""
    taken: Iterator[int] = itertools.cycle(np.random.default_rng(0).integers(TOY["vocab_size"], size=997).tolist())
    env.reset(seed=0)

    def play(steps: int) -> float:
        chosen = list(itertools.islice(taken, steps))
        start = time.perf_counter()
        for action in chosen:
            if env.step(action)[2]:
                env.reset()
        return time.perf_counter() - start

    return play


def unmasked(vocab_size: int, slots: int, max_new_tokens: int) -> Any:
    """Texts over many words, none of them masked, against a uniform reference."""
    words = [f"w{i}" for i in range(vocab_size - 1)]
    return gym.make_vec(
        "textenv/Text-v0",
        num_envs=slots,
        tokenizer=textenv.WordTokenizer(words),
        prompts=words[:8],
        reward=nothing,
        max_new_tokens=max_new_tokens,
    )


def nothing(prompts: list[str], **columns: Any) -> list[float]:
    """No point at all."""
    return [0.0] * len(prompts)


def wide_mask(slots: int = 64) -> dict[str, Any]:
    """Where nothing of 50,000 tokens is masked: a step's cost beside that of 50, and whether the mask is one array."""
    found = medians({size: vector_case(unmasked(size, slots, 8), slots, 50) for size in (50, WIDE)}, 0.2)
    envs = unmasked(WIDE, slots, 8)
    masks = [envs.reset(seed=0)[1]["action_mask"]]
    masks += [envs.step(np.ones(slots, dtype=np.int64))[-1]["action_mask"] for _ in range(12)]
    return {
        "vocabulary": WIDE,
        "one_read_only_array": all(mask is masks[0] and not mask.flags.writeable for mask in masks),
        "bytes": masks[0].base.nbytes,
        "microseconds_a_step": {size: 1e6 / rate for size, rate in found.items()},
    }


def prefix(seconds: float, slots: int = 64, longest: int = 512, part: int = 64) -> dict[str, float]:
    """Microseconds a step of 64 slots while the first and while the last 64 of 512 tokens are written."""
    envs = unmasked(50, slots, longest)
    ones = np.ones(slots, dtype=np.int64)  # no end token
    taken: dict[str, list[float]] = {"first": [], "last": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not taken["last"]:
        envs.reset(seed=0)
        times = np.array([vector_step_seconds(envs, ones) for _ in range(longest - 1)])
        taken["first"].append(float(np.median(times[:part])))
        taken["last"].append(float(np.median(times[-part:])))
    return {name: 1e6 * float(np.median(values)) for name, values in taken.items()}


def vector_step_seconds(envs: Any, actions: NDArray[np.int64]) -> float:
    """How long one step takes."""
    start = time.perf_counter()
    envs.step(actions)
    return time.perf_counter() - start
