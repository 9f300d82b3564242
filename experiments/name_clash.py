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
    if spec is None:
        found = "none"
    else:
        # a folder without __init__.py has no origin, only locations
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
        if [Path(place).resolve() for place in places] != [OWN]:
            found = f"another one, {', '.join(places)}"
        elif "TransformerPolicy" in OWN.read_text(encoding="utf-8", errors="replace"):
            return None
        else:
            found = f"{OWN}, which another package has overwritten"
    return (
        f"textenv needs its own package `agents` ({OWN.parent}), but Python finds {found}. OpenAI's Agents SDK "
        "(openai-agents) installs a module of that name too: install each into a virtual environment of its own."
    )
