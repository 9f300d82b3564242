"""Stops by signals: the first one ends training after an update, the second at once; exit codes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents.sampling import collect, new_generator
from agents.training import MasterWeights
from experiments.errors import Stopped
from experiments.metrics_file import read_metrics
from experiments.stopping import stops_at_once, stops_deferred, stops_later
from experiments.trial import run_trial
from experiments.trial_log import TrialLog
from tests.helpers.commands import tiny
from tests.helpers.faults import differences, final_state
from tests.helpers.policies import random_policy
from tests.helpers.tasks import words

NUMBERS = [signal.SIGTERM, signal.SIGINT]


def send(number: int) -> None:
    """Sends a signal to this process."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_training_a_signal_ends_at_once(number: int, code: int) -> None:
    """With the exit code of the shell's convention; the handlers before are restored."""
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stop, stops_at_once():
        send(number)
    assert stop.value.code == code and str(stop.value) == f"stopped by {signal.Signals(number).name}."
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_remembered_and_the_second_ends(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """The first one prints what will happen."""
    with pytest.raises(Stopped), stops_later("this update") as request:
        assert request.number is None
        request.stop_if_requested()
        send(number)
        assert request.number == number
        send(number)
        raise AssertionError("not reached")
    assert "stopping after this update; a second one stops at once." in capfd.readouterr().err
    with pytest.raises(Stopped):
        request.stop_if_requested()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_deferred_to_the_end_of_what_must_not_be_half_done(number: int) -> None:
    """Also where that ends with an error; the handlers before are restored. Control: outside it is not deferred."""
    steps = list[str]()
    with pytest.raises(Stopped), stops_at_once():
        with stops_deferred():
            send(number)
            steps.append("inside")
        steps.append("not reached")
    with pytest.raises(Stopped), stops_at_once(), stops_deferred():
        send(number)
        raise ZeroDivisionError
    with pytest.raises(Stopped), stops_at_once():
        send(number)
        steps.append("not reached")
    assert steps == ["inside"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("on_error", ["raise", "retry", "skip"])
def test_a_signal_in_a_reward_is_no_failure_of_it(number: int, on_error: Any) -> None:
    """It ends the call, and the command; the reward is not called again."""
    calls = []

    def reward(prompts: Any, **columns: Any) -> Any:
        calls.append(len(prompts))
        send(number)
        return [1.0] * len(prompts)

    env = gym.make_vec("textenv/Text-v0", **words(reward=reward, on_reward_error=on_error))
    with pytest.raises(Stopped), stops_at_once():
        collect(env, random_policy(env), 8, generator=new_generator("cpu", 0))
    assert calls == [8]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """A worker ignores SIGINT, which a terminal sends to all processes."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stops_later("this update") as request, stops_at_once():
            send(signal.SIGINT)
        assert request.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_handlers() -> None:
    """A trial in another thread than the main one runs; signals are for the main thread."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with stops_later("this update") as request:
                request.stop_if_requested()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []


# -- trials ------------------------------------------------------------------------------------------------------------


def at_call(number: int, function: Callable[..., Any], action: Callable[[], Any]) -> Callable[..., Any]:
    """The function, which also performs an action in the middle of its `number`th call."""
    calls = 0

    def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return function(*arguments, **settings)

    return counted


@pytest.mark.parametrize("agent", ["ppo", "reinforce", "sb3-ppo"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_in_an_update_ends_the_trial_after_it(
    agent: str, number: int, tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of whole updates is written; resumed, ours equal the uninterrupted trial bit for bit."""
    config = tiny(agent=agent, total_timesteps=200, keep_checkpoints=1)
    run_trial(config, tmp_path / "whole", initial)
    with monkeypatch.context() as patch:
        if agent == "sb3-ppo":
            import torch

            patch.setattr(torch.optim.Adam, "step", at_call(3, torch.optim.Adam.step, lambda: send(number)))
        else:
            update = MasterWeights.update_weights
            patch.setattr(MasterWeights, "update_weights", at_call(3, update, lambda: send(number)))
        with pytest.raises(Stopped) as stop:
            run_trial(config, tmp_path / "stopped", initial)
    assert stop.value.number == number
    rows = read_metrics(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoint").is_dir() and not (tmp_path / "stopped" / "summary.json").exists()
    assert 1 <= rows[-1]["num_updates"] < read_metrics(tmp_path / "whole")[-1]["num_updates"]
    run_trial(config, tmp_path / "stopped", initial)
    if agent != "sb3-ppo":
        whole, stopped = (final_state(tmp_path / name) for name in ("whole", "stopped"))
        assert {"metrics.jsonl", "summary.json", "checkpoint/model.safetensors"} <= set(whole)
        assert differences(stopped, whole) == []


def test_a_signal_while_it_evaluates_at_the_end(tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is trained and saved: it ends at once, and the resumed trial only measures."""
    config = tiny(agent="grpo", total_timesteps=100)
    measured = at_call(1, lambda *arguments: None, lambda: send(signal.SIGTERM))
    with monkeypatch.context() as patch, pytest.raises(Stopped), stops_at_once():
        patch.setattr("experiments.trial.sample_completions", measured)
        run_trial(config, tmp_path, initial)
    rows = read_metrics(tmp_path)
    assert rows[-1]["num_timesteps"] >= 100 and not (tmp_path / "summary.json").exists()
    monkeypatch.setattr(TrialLog, "__call__", None)  # no update is made
    assert run_trial(config, tmp_path, initial)["num_updates"] == rows[-1]["num_updates"]
    assert read_metrics(tmp_path) == rows
