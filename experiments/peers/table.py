"""The measurements as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from agents.files import JsonObject

COLUMNS = ("setting", "J", "B", "bias", "near", "between", "far", "independent", "noise", "off policy", "zero", "fixed")
POLICIES = ("near", "between", "far", "independent")
ROUNDING = 1e-6  # of a bias, or 1 - cosine: TRL and Stable-Baselines3 keep rewards in float32

INTRODUCTION = """# What the losses of other libraries climb

Their own code on every batch of a toy, beside the exact gradient of J ([how](../../peers/__init__.py)). `make
verify-peers` measures all of it again, each library in an environment of its own.

- **setting**: as the library's user writes it; what is not named has the library's default.
- **J**: with which the loss is compared. "score": beta = 0. "score - KL": beta = {beta}. "-KL": all scores are zero.
  Toy-v0 with three tokens, up to three tokens a completion and two prompts; "equal lengths": two tokens a completion.
- **B**: completions per batch, of one prompt. Batches are as small as they can be, so that all can be listed: what is
  due to a divisor or a standard deviation of the batch is largest here.
- **bias**: |E[gradient] - grad J| / |grad J|, the largest of four policies, with a constant factor of the loss in it.
  **near, between, far, independent**: cosine of E[gradient] and grad J at policies of these distances from the
  reference, without that factor; 1 is exact. **noise**: standard deviation of the gradient over |E[gradient]|, the
  largest.
- **off policy**: the same cosines on completions of the reference.
- **zero**: E[gradient] vanishes at pi*. **fixed**: where the loss leads from the reference, as a share of the way to
  J*; "none": the iteration that looks for it did not settle.
"""


def page(libraries: Sequence[JsonObject], beta: float) -> str:
    """The page of all libraries."""
    return INTRODUCTION.format(beta=beta) + "".join("\n" + section(each) for each in libraries)


def section(measured: JsonObject) -> str:
    """The table of one library, and below it what its documentation states about the settings in it."""
    rows = measured["rows"]
    title = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    lines = [f"## {title}", "", f"    {measured['command']}", "", line(COLUMNS)]
    lines += [line(["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)), *(line(cells(row)) for row in rows)]
    claims = [row for row in rows if row["claim"] is not None]
    if claims:
        lines += ["", "What the documentation states, and what was measured:", "", *map(stated, claims)]
    return "\n".join(lines) + "\n"


def cells(row: JsonObject) -> list[str]:
    """The cells of a row."""
    noise = [value for value in row["noise"].values() if value is not None]
    return [
        f"`{row['setting']}`",
        row["objective"],
        str(row["num_generations"]),
        bias(max(row["bias"].values())),
        *(cosine(row["cosine"][name]) for name in POLICIES),
        f"{max(noise):.2g}" if noise else "-",
        " ".join(cosine(row["off_policy_cosine"][name]) for name in POLICIES),
        {True: "yes", False: "no", None: ""}[row["zero_at_optimum"]],
        share(row["fixed_point"]),
    ]


def stated(row: JsonObject) -> str:
    """A claim of the documentation, as an item of a list."""
    claim = row["claim"]
    verdict = "It agrees" if claim["holds"] else "It does not agree"
    return (
        f'- `{row["setting"]}`, J = {row["objective"]}: "{claim["text"]}" ({claim["where"]}). {verdict}: '
        f"{claim['found']}."
    )


def bias(value: float) -> str:
    """A relative bias; 0 up to rounding."""
    return "0" if value < ROUNDING else f"{value:.2g}"


def cosine(value: float | None) -> str:
    """A cosine; 1 is exact up to rounding. A dash where there is no gradient."""
    if value is None:
        return "-"
    if 1 - abs(value) < ROUNDING:
        return f"{round(value)}"
    short = f"{value:.3f}"
    return f"{value:.6f}" if abs(float(short)) == 1 else short  # what is not exact does not look so


def share(value: float | str | None) -> str:
    """The share of the way at the fixed point; empty where it was not measured."""
    return f"{100 * value:.1f}%" if isinstance(value, float) else value or ""


def line(columns: Sequence[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(columns) + " |"
