"""Two packages named `agents`: OpenAI's Agents SDK (openai-agents) installs a module of that name too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

OWN = Path(__file__).resolve().parents[1] / "agents" / "__init__.py"


def agents_clash() -> str | None:
    """Returns what is wrong if `import agents` finds another package than textenv's; None if it is textenv's.

    Imports nothing. The other package may come before textenv's on the path, or have overwritten its files where both
    were installed into one environment.
    """
    spec = importlib.util.find_spec("agents")
    found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
    if found == OWN and "TransformerPolicy" in OWN.read_text(encoding="utf-8"):
        return None
    other = f"another one, {found}" if found != OWN else f"{found}, which another package has overwritten"
    return (
        f"textenv needs its own package `agents` ({OWN.parent}), but Python finds {other}. OpenAI's Agents SDK "
        "(openai-agents) installs a module of that name too: install each into a virtual environment of its own."
    )
