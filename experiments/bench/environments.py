"""Steps per second of textenv's environments, of Gymnasium's CartPoleVectorEnv, and of a bare loop over numpy arrays.

A step of B environments counts as B. Actions are prepared beforehand. The rounds of all cases alternate, and the
medians are reported. Set OMP_NUM_THREADS=1.
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
from agents.files import JsonObject
from textenv import get_mdp

Case = Callable[[int], float]  # runs the given number of steps, returns the seconds that they took
NUM_ENVS = (1, 64, 1024)
TOY: dict[str, Any] = {
    "vocab_size": 6,
    "max_new_tokens": 4,
}  # the defaults of Toy-v0: a random completion has 3 tokens on average
LONGER: dict[str, Any] = {"vocab_size": 50, "max_new_tokens": 32}  # 24 tokens on average
WIDE = 50_000


def environments(seconds: float = 20.0) -> JsonObject:
    """Runs all measurements of this file, in about `seconds` seconds.

    Returns:
        `steps_per_second`: case -> num_envs -> median. `live`: the share of steps that are not resets. `mask`: the cost
        of a step where none of 50,000 tokens is masked, and whether every step returns the same mask array. `prefix`:
        microseconds per step after short and after long prefixes.
    """
    cases: dict[tuple[str, int], Case] = {}
    for num_envs in NUM_ENVS:
        cases["numpy loop", num_envs] = vector_case(BareTokens(num_envs), num_envs, TOY["vocab_size"])
        cases["CartPoleVectorEnv", num_envs] = vector_case(CartPoleVectorEnv(num_envs=num_envs), num_envs, 2)
        toys: dict[str, dict[str, Any]] = {
            "TextVectorEnv": TOY,
            "TextVectorEnv, SAME_STEP": TOY | {"autoreset_mode": "SameStep"},
            "TextVectorEnv, longer completions": LONGER,
        }
        for name, arguments in toys.items():
            envs = gym.make_vec("textenv/Toy-v0", num_envs=num_envs, **arguments)
            cases[name, num_envs] = vector_case(envs, num_envs, arguments["vocab_size"])
        cases["TextVectorEnv, a reward of lists", num_envs] = vector_case(
            toy_of_lists(num_envs), num_envs, TOY["vocab_size"]
        )
    for checker in (True, False):
        env = gym.make("textenv/Toy-v0", disable_env_checker=not checker, **TOY)
        cases["gym.make" if checker else "gym.make, disable_env_checker=True", 1] = single_case(env)
    cases["TextEnv, without Gymnasium's wrappers", 1] = single_case(gym.make("textenv/Toy-v0", **TOY).unwrapped)
    rates = medians(cases, 0.85 * seconds)
    steps_per_second: dict[str, dict[int, float]] = {}
    for (name, num_envs), rate in rates.items():
        steps_per_second.setdefault(name, {})[num_envs] = rate * num_envs
    live = {
        "TextVectorEnv": live_share(gym.make_vec("textenv/Toy-v0", num_envs=64, **TOY), TOY["vocab_size"]),
        "CartPoleVectorEnv": live_share(CartPoleVectorEnv(num_envs=64), 2),
    }
    return {"steps_per_second": steps_per_second, "live": live, "mask": wide_mask(), "prefix": prefix(0.1 * seconds)}


def medians(cases: dict[Any, Case], seconds: float, round_seconds: float = 0.003) -> dict[Any, float]:
    """Returns the median calls per second of each case, over alternating rounds.

    Rounds are short because short rounds are interrupted less often on a busy machine.
    """
    steps = {name: max(8, int(round_seconds / (case(64) / 64))) for name, case in cases.items()}
    rates: dict[Any, list[float]] = {name: [] for name in cases}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not all(rates.values()):
        for name, case in cases.items():
            rates[name].append(steps[name] / case(steps[name]))
    return {name: float(np.median(values)) for name, values in rates.items()}


class BareTokens:
    """The minimum for a token environment: append, terminate, reset, copy the observation. No strings, no KL."""

    def __init__(self, num_envs: int, max_new_tokens: int = TOY["max_new_tokens"]) -> None:
        self.rows, self.time = np.arange(num_envs), np.zeros(num_envs, dtype=np.int64)
        self.tokens = np.zeros((num_envs, max_new_tokens + 1), dtype=np.int64)

    def reset(self, seed: int) -> None:
        """Resets all episodes."""
        self.time[:] = 0

    def step(self, actions: NDArray[np.int64]) -> Any:
        """Appends one token per slot."""
        self.tokens[self.rows, self.time] = actions
        self.time += 1
        ended = (actions == 0) | (self.time == self.tokens.shape[1] - 1)
        observation, rewards = self.tokens.copy(), ended.astype(np.float64)
        self.time[ended] = 0
        self.tokens[ended] = 0
        return observation, rewards, ended


def vector_case(envs: Any, num_envs: int, actions: int) -> Case:
    """Steps a batch of environments with random actions, the same in every round."""
    batches = itertools.cycle(np.random.default_rng(0).integers(actions, size=(64, num_envs)))
    envs.reset(seed=0)

    def run_steps(steps: int) -> float:
        actions_of_round = list(itertools.islice(batches, steps))
        start = time.perf_counter()
        for action in actions_of_round:
            envs.step(action)
        return time.perf_counter() - start

    return run_steps


def toy_of_lists(num_envs: int) -> Any:
    """The toy with a reward that only has TRL's signature, like most rewards: it needs strings and lists of ids."""
    mdp = get_mdp(gym.make("textenv/Toy-v0", **TOY))
    (reward,) = mdp.reward.functions
    mdp.reward = textenv.rewards.WeightedReward(lambda **columns: reward(**columns))
    return textenv.TextVectorEnv(mdp, num_envs)


def live_share(envs: Any, actions: int, steps: int = 512) -> float:
    """The share of NEXT_STEP's steps that are not resets: autoreset spends the step after each end on a reset."""
    envs.reset(seed=0)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(steps):
        _, _, terminated, truncated, _ = envs.step(rng.integers(actions, size=envs.num_envs))
        ends += int((terminated | truncated).sum())
    return 1 - ends / (steps * int(envs.num_envs))


def single_case(env: Any) -> Case:
    """Steps a single environment with random actions; resets are timed but not counted as steps."""
    tokens: Iterator[int] = itertools.cycle(np.random.default_rng(0).integers(TOY["vocab_size"], size=997).tolist())
    env.reset(seed=0)

    def run_steps(steps: int) -> float:
        actions_of_round = list(itertools.islice(tokens, steps))
        start = time.perf_counter()
        for action in actions_of_round:
            if env.step(action)[2]:
                env.reset()
        return time.perf_counter() - start

    return run_steps


def unmasked(vocab_size: int, num_envs: int, max_new_tokens: int) -> Any:
    """Environments over a large vocabulary without masks, with a uniform reference."""
    words = [f"w{i}" for i in range(vocab_size - 1)]
    return gym.make_vec(
        "textenv/Text-v0",
        num_envs=num_envs,
        tokenizer=textenv.WordTokenizer(words),
        prompts=words[:8],
        reward=zero_score,
        max_new_tokens=max_new_tokens,
    )


def zero_score(prompts: list[str], **columns: Any) -> list[float]:
    """Scores every completion with 0."""
    return [0.0] * len(prompts)


def wide_mask(num_envs: int = 64) -> JsonObject:
    """Compares the cost of a step with 50,000 and with 50 unmasked tokens, and checks that the mask is one array."""
    rates = medians({size: vector_case(unmasked(size, num_envs, 8), num_envs, 50) for size in (50, WIDE)}, 0.2)
    envs = unmasked(WIDE, num_envs, 8)
    masks = [envs.reset(seed=0)[1]["action_mask"]]
    masks += [envs.step(np.ones(num_envs, dtype=np.int64))[-1]["action_mask"] for _ in range(12)]
    return {
        "vocabulary": WIDE,
        "one_read_only_array": all(mask is masks[0] and not mask.flags.writeable for mask in masks),
        "bytes": masks[0].base.nbytes,
        "microseconds_a_step": {size: 1e6 / rate for size, rate in rates.items()},
    }


def prefix(seconds: float, num_envs: int = 64, longest: int = 512, part: int = 64) -> dict[str, float]:
    """Microseconds per step of 64 environments, for the first and for the last 64 of 512 tokens."""
    envs = unmasked(50, num_envs, longest)
    ones = np.ones(num_envs, dtype=np.int64)  # never EOS
    medians_of_part: dict[str, list[float]] = {"first": [], "last": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not medians_of_part["last"]:
        envs.reset(seed=0)
        times = np.array([vector_step_seconds(envs, ones) for _ in range(longest - 1)])
        medians_of_part["first"].append(float(np.median(times[:part])))
        medians_of_part["last"].append(float(np.median(times[-part:])))
    return {name: 1e6 * float(np.median(values)) for name, values in medians_of_part.items()}


def vector_step_seconds(envs: Any, actions: NDArray[np.int64]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    envs.step(actions)
    return time.perf_counter() - start
