"""The command play: what a person types, and what is printed."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import dataclass
from functools import cached_property

from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.play.comparison import compare, solve_task
from experiments.play.game import Game, Played
from experiments.ranges import check_flags
from textenv import TextMDP, exact, get_mdp
from textenv.data import printable
from textenv.rendering import reward_text
from textenv.rewards import RewardError
from textenv.terminal import has_colours, signed

HELP = """  N       the N-th of the choices
  TEXT    the token that is spelled so, else the tokens of the text (for a language model a space may begin it)
  =TEXT   the same, for a text that is a number or begins with / or =
  /id N   the token with this id
  /more   twice as many choices
  /mask   all allowed tokens
  /undo   take the last token back
  /again  the same prompt from its beginning
  /quit   end"""
LISTED = 200  # allowed tokens that /mask prints


@dataclass
class PlayConfig(EnvFlags):
    """Play an environment: type a completion token by token, beside the reference's choices and the reward's terms, and
    see at the end what the optimal policy would have done."""

    prompt: str | None = None
    """The prompt; by default one of the environment's, drawn with --seed."""
    top: int = 8
    """Choices of the reference to print at each token."""
    seed: int = 0
    """Seed of the drawn prompt."""

    def __post_init__(self) -> None:
        check_flags(self)


def play(config: PlayConfig) -> None:
    """Plays on stdin and stdout until /quit, or the end of the input.

    Raises:
        FlagError: the flags or the prompt are refused.
        textenv.rewards.RewardError: the reward failed.
    """
    mdp = get_mdp(config.make_environments().train)
    try:
        game = Game(mdp, config.prompt, config.seed)
    except RewardError:
        raise
    except ValueError as error:
        raise FlagError(f"--prompt: {error}") from error
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="backslashreplace")  # bytes that are no text are shown
    Session(game, config.top).run()


class Session:
    """A game in a terminal.

    Args:
        game: the game.
        top: how many choices are printed.
    """

    def __init__(self, game: Game, top: int) -> None:
        self.game, self.top = game, top
        self.colours = has_colours(sys.stdout)
        self.choices: list[int] = []

    @cached_property
    def solution(self) -> exact.Solution | None:
        """The optimum of the task, see `solve_task`: it is enumerated once, at the end of the first completion."""
        return solve_task(self.game.mdp)

    def run(self) -> None:
        """Reads lines until /quit, or until there is no more."""
        _say(f"prompt: {self.game.prompt}")
        _say(f"{_task(self.game.mdp)} /help lists what you can type.")
        self.show_state()
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                break
            if line.strip().partition(" ")[0] == "/quit":
                break
            try:
                self.answer(line)
            except RewardError:
                raise
            except ValueError as error:  # of a token or a text
                _say(str(error))
        if not self.game.ended:
            _say(f"Left after token {len(self.game.played)}, before the end of the completion: it has no score.")

    def answer(self, line: str) -> None:
        """Does what a line says.

        Raises:
            ValueError: it cannot be done; the message says why.
        """
        word, _, rest = line.strip().partition(" ")
        if word == "/help":
            _say(HELP)
        elif word == "/undo":
            _say(f"Took {self.game.played[-1].name} back." if self.game.played else "There is no token to take back.")
            self.game.undo()
            self.show_state()
        elif word == "/again":
            self.game.undo(len(self.game.played))
            self.show_state()
        elif self.game.ended:
            _say("The completion has ended: /undo, /again or /quit.")
        elif word == "/mask":
            self.show_mask()
        elif word == "/more":
            self.top = min(2 * self.top, self.game.mdp.vocab_size)
            self.show_state()
        elif not word:
            self.show_state()
        else:
            self.play(self.tokens(line, word, rest))

    def tokens(self, line: str, word: str, rest: str) -> list[int]:
        """The tokens that a line names.

        Raises:
            ValueError: it names none.
        """
        if word == "/id":
            if not rest.strip().isascii() or not rest.strip().isdigit():
                raise ValueError(f"/id takes the id of a token, 0 to {self.game.mdp.vocab_size - 1}, got {rest!r}.")
            return [int(rest)]
        if word.startswith("/") and word not in self.game.ids:
            raise ValueError(f"There is no {word}; /help lists what you can type, and ={word} is the text.")
        if line.strip().isascii() and line.strip().isdigit():
            number = int(line)
            if not 1 <= number <= len(self.choices):
                raise ValueError(f"The choices are 1 to {len(self.choices)}, got {number}; ={number} is the text.")
            return [self.choices[number - 1]]
        return self.game.tokens_of(line.removeprefix("="))

    def play(self, tokens: list[int]) -> None:
        """Plays tokens, and prints the reward of each; those after the end of the completion are left out."""
        for number, token in enumerate(tokens):
            self.show_step(self.game.play(token))
            if self.game.ended:
                if left := len(tokens) - 1 - number:
                    _say(f"The completion has ended; tokens after its end that are left out: {left}.")
                self.show_end()
                return
        self.show_state()

    def show_state(self) -> None:
        """The completion so far and the reference's choices."""
        game, log_probs = self.game, self.game.log_probs
        self.choices = game.choices(self.top)
        allowed = int((log_probs > -math.inf).sum())
        time, most = len(game.played), game.mdp.max_new_tokens
        _say(f"\ncompletion, {time} of at most {most} tokens: {game.completion}")
        _say(f"{allowed:,} of {game.mdp.vocab_size:,} tokens are allowed; the reference's choices:")
        names = [printable(game.name(token)) for token in self.choices]
        width = max(map(len, names))
        for number, (token, name) in enumerate(zip(self.choices, names, strict=True), 1):
            print(f"{number:>4}  {name:<{width}}  {math.exp(log_probs[token]):>7.2%}")

    def show_mask(self) -> None:
        """The allowed tokens by id."""
        allowed = [token for token, x in enumerate(self.game.log_probs.tolist()) if x > -math.inf]
        names = " ".join(printable(self.game.name(token)) for token in allowed[:LISTED])
        print(names + (f" ... and {len(allowed) - LISTED:,} more" if len(allowed) > LISTED else ""))

    def show_step(self, step: Played) -> None:
        """A token with the terms of its reward that are not zero."""
        print(f"{printable(step.name)}: reward {reward_text(step.reward, step.terms, self.colours)}")

    def show_end(self) -> None:
        """Score and return, and beside them what pi* would have done."""
        game = self.game
        total = sum(each.reward for each in game.played)
        _say(f"\ncompletion: {game.completion} (finish reason: {game.finish_reason})")
        gold = "" if game.gold_score is None else f", gold score {game.gold_score:.4f}"
        _say(f"score {game.score:.4f}{gold}; J of always playing this completion: {total:+.4f}")
        if game.prompt_index < 0:
            _say("What pi* would have done is known after the environment's own prompts.")
        elif (solution := self.solution) is None:
            _say("The task is too large to enumerate: what pi* would have done is not known.")
        else:
            found = compare(solution, game.prompt_index, [each.token for each in game.played])
            share = found.share(total)  # nan where the reference is the optimum
            way = "" if math.isnan(share) else f": {share:.1%} of the way"
            _say(f"of at most V* = {found.optimum:+.4f} (the reference has {found.reference:+.4f}){way}")
            width = max(len(printable(each.name)) for each in game.played)
            print(
                f"\n{'token':<{width}} {'reward':>9} {'pi_ref':>8} {'pi*':>8} {'Q* - V*':>9} {'cost':>9}  pi* prefers"
            )
            for each, token in zip(game.played, found.tokens, strict=True):
                probabilities = f"{math.exp(each.ref_log_prob):>8.2%} {math.exp(token.log_prob):>8.2%}"
                cost = signed(f"{token.cost:>9.4f}", -token.cost if token.cost > 5e-5 else 0.0, self.colours)
                better = "" if token.best == each.token else printable(game.name(token.best))
                name = printable(each.name)
                print(f"{name:<{width}} {each.reward:>+9.4f} {probabilities} {token.advantage:>+9.4f} {cost}  {better}")
            print(f"the costs sum to V* - J = {sum(token.cost for token in found.tokens):.4f}")
            best = " ".join(game.name(token) for token in found.best)
            probability = math.exp(found.best_log_prob)
            _say(f"likeliest completion of pi*: {best} ({probability:.1%}, J {found.best_objective:+.4f})")
        _say("/undo, /again or /quit.")


def _task(mdp: TextMDP) -> str:
    shaping = ", shaping" if mdp.shaping else ""
    return f"The reward of a token is beta log pi_ref{shaping}, and the score at the end; beta is {mdp.kl_coef:g}."


def _say(text: str) -> None:
    print(printable(text, lines=True), flush=True)
