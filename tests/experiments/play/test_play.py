"""`python -m experiments play`: what is typed, what is printed, and how it ends."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from experiments.play import command
from experiments.play.comparison import solve_task
from experiments.play.game import Game
from tests.helpers.commands import call, stories_flags
from textenv import TextMDP, WordTokenizer, exact, get_mdp
from textenv.testing import play

PROMPT = "where is the taj mahal"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with lines on stdin; returns what it printed, and fails where its exit code is not 0."""

    def run(lines: list[str], *flags: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        done = call("play", *flags)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_completion_has_its_rewards_score_and_cost(typed: Any) -> None:
    """The numbers are those of `textenv.testing.play` and `exact`."""
    output = typed(["it is in", "agra", "1"], "--prompt", PROMPT)
    env = gym.make("textenv/TajMahal-v0")
    episode, solution = play(env, PROMPT, "it is in agra"), exact.solve(env)
    tree = solution.tree
    for name, reward in zip(episode.tokens, episode.rewards, strict=True):
        assert f"{name}: reward {reward:+.4f}" in output
    assert "agra: reward -0.1347 = kl_reference -0.1347" in output
    assert "12 of 34 tokens are allowed" in output and re.search(r"1  the +40\.00%\n +2  it +30\.00%", output)
    assert f"score 1.0000; J of always playing this completion: {episode.rewards.sum():+.4f}" in output
    optimum, reference = solution.values[tree.state_index(PROMPT)], output.split("the reference has ")[1].split(")")[0]
    share = (episode.rewards.sum() - float(reference)) / (optimum - float(reference))
    assert f"of at most V* = {optimum:+.4f} (the reference has {reference}): {share:.1%} of the way" in output
    assert f"the costs sum to V* - J = {optimum - episode.rewards.sum():.4f}" in output
    rows = dict(
        line.split(maxsplit=1) for line in output.splitlines() if re.match(r"(it|is|in|agra|<eos>) +[-+]", line)
    )
    assert list(rows) == episode.tokens and rows["it"].endswith(" the")  # what pi* prefers
    best = solution.log_probs.reshape(-1)[tree.prompt[tree.leaves()[0]] == tree.mdp.prompts.texts.index(PROMPT)].max()
    assert re.search(
        rf"likeliest completion of pi\*: the taj mahal is in agra india <eos> \({2.718281828459045**best:.1%}", output
    )


def test_lines_are_read_as_tokens(typed: Any) -> None:
    """By number in the list, spelling, several words, "=", id; what is refused says why, and plays nothing."""
    lines = ["99", "=99", "/id x", "/id 99", "/nothing", "foo", "agra agra", "/undo", "", "it is", "/id 3", "/mask"]
    output = typed(lines, "--prompt", PROMPT)
    for sentence in (
        "The choices are 1 to 8, got 99; =99 is the text.",
        "The word '99' is not in the vocabulary",
        "/id takes the id of a token, 0 to 33, got 'x'.",
        "99",
        "There is no /nothing; /help lists what you can type",
        "The word 'foo' is not in the vocabulary",
        "agra is masked here: the reference gives it probability 0.",
        "Took agra back.",
        "completion, 2 of at most 12 tokens: it is",
    ):
        assert sentence in output
    assert "Traceback" not in output and output.endswith("it has no score.\n")


def test_a_language_of_numbers_and_slashes(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that look like commands can be typed: with "=", or where they are tokens."""
    mdp = TextMDP(
        WordTokenizer("1 2 /x =3 <script>"), ["1"], lambda prompts, **_: [0.0] * len(prompts), max_new_tokens=6
    )
    game = Game(mdp, None, 0)
    assert [game.tokens_of(text) for text in ("2", "/x", "=3", "1 2", "/x <eos>")] == [[2], [3], [4], [1, 2], [3, 0]]
    for text in ("3", "", " "):
        with pytest.raises(ValueError):
            game.tokens_of(text)


def test_undo_restores_the_state(typed: Any) -> None:
    """After the end too; the next tokens get the rewards that they would have had."""
    output = typed(
        ["/undo", "paris", "1", "/undo", "/undo", "it is in agra <eos>", "x", "/again", "/quit now", "it"],
        "--prompt",
        PROMPT,
    )
    assert "There is no token to take back." in output and output.count("Took ") == 2
    assert "score -1.0000" in output and "score 1.0000" in output
    assert "The completion has ended: /undo, /again or /quit." in output
    assert output.endswith("Left after token 0, before the end of the completion: it has no score.\n")
    env = gym.make("textenv/TajMahal-v0")
    game = Game(get_mdp(env), PROMPT, 0)
    for token in game.tokens_of("it is in agra <eos>"):
        game.play(token)
    game.undo(2)
    assert not game.ended and game.score is None and game.completion == "it is in"
    again = [game.play(token).reward for token in game.tokens_of("agra <eos>")]
    assert again == play(env, PROMPT, "it is in agra").rewards.tolist()[-2:] and game.score == 1.0
    game.undo(99)
    assert game.played == [] and game.completion == ""


def test_the_seed_draws_the_prompt_and_top_the_choices(typed: Any) -> None:
    """The same prompt for the same seed; /more doubles the choices."""
    prompts = [typed([], "--seed", str(seed)).splitlines()[0] for seed in (0, 0, 1, 2, 3)]
    assert prompts[0] == prompts[1] and len(set(prompts)) > 1
    output = typed(["/more"], "--top", "2", "--prompt", PROMPT)
    assert output.count("   2  it") == 2 and output.count("   4  ") == 1 and "   5  " not in output


def test_tasks_whose_optimum_is_not_known(typed: Any) -> None:
    """Too large to enumerate: the score is printed, and why there is no more."""
    toy = ("--env", "textenv/Toy-v0", "--env-args", "vocab_size", "20", "max_new_tokens", "5")
    output = typed(["/id 0"], *toy, "--top", "1")
    assert "score " in output and "The task is too large to enumerate" in output
    assert "gold score" in typed(["1"] * 12, "--env", "textenv/RewardHacking-v0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "what"], "--prompt: .*'what'"),
        (["--prompt", ""], "--prompt: "),
        (["--top", "0"], "--top must be at least 1, got 0"),
        (["--env", "textenv/None-v0"], "None"),
    ],
)
def test_flags_that_are_refused(flags: list[str], message: str, typed: Any) -> None:
    """With exit code 2."""
    assert re.search(message, typed([], *flags, code=2))


def test_the_end_of_the_input_and_bytes_that_are_no_text() -> None:
    """In a process of its own: exit code 0, no traceback, no control character in what it prints."""
    command = [sys.executable, "-m", "experiments", "play", "--prompt", PROMPT]
    done = subprocess.run(command, input=b"it\n\xff\n\x1b[2J\n=\x1b\n\x00", capture_output=True)
    text = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    assert text.endswith("Left after token 1, before the end of the completion: it has no score.\n")
    assert not re.search("[\x00-\x09\x0b-\x1f]", text) and r"\xff" in text and r"\x1b" in text


def test_a_language_model(typed: Any, assets: Path, tmp_path: Path) -> None:
    """Choices of the model, spellings with a space, and a score; nothing is enumerated."""
    flags = stories_flags(assets, tmp_path)
    names = ("env", "model", "prompts", "max_new_tokens")
    arguments = [word for name in names for word in (f"--{name.replace('_', '-')}", str(flags[name]))]
    own = typed(["1", " the", "the", "dog"], *arguments, "--reward", *flags["reward"], "--prompt", "Once upon a time")
    assert "512 of 512 tokens are allowed" in own and own.count("▁the: reward -") == 2
    assert "tokens after its end that are left out: 1." in own
    assert "finish reason: length" in own and "too large to enumerate" in own
    other = typed(["1"] * 4, *arguments, "--reward", *flags["reward"], "--prompt", "There")
    assert "What pi* would have done is known after the environment's own prompts." in other


def test_a_task_is_enumerated_once(typed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a completion ends."""
    calls = []
    monkeypatch.setattr(command, "solve_task", lambda mdp: calls.append(mdp) or solve_task(mdp))
    output = typed(["agra", "<eos>", "/again", "agra", "<eos>", "/undo", "<eos>"], "--prompt", PROMPT)
    assert len(calls) == 1 and output.count("the costs sum to V* - J") == 3


def test_there_is_no_way_where_the_reference_is_the_optimum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All completions have the same score."""
    mdp = TextMDP(WordTokenizer("a b"), ["a"], lambda prompts, **rest: [0.5] * len(prompts), max_new_tokens=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    command.Session(Game(mdp, None, 0), 3).run()
    output = capsys.readouterr().out
    assert "of at most V* = " in output and "nan" not in output and "of the way" not in output
