"""The tools that may stand in, as a part of docs/acceleration.md.

    python -m maid.acceleration.describe FILE

writes the tables between the two marks in FILE anew; a test holds the file against them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from maid.acceleration import basics, compilers, golang, llvm, packaging, perl, shells
from maid.acceleration.model import Need, Tool
from maid.acceleration.records import Rule

BEGIN = "<!-- written by python -m maid.acceleration.describe; begin -->"
END = "<!-- end -->"

_TABLES = (
    ("Everyday tools", basics.TOOLS),
    ("Shells, make, m4", shells.TOOLS),
    ("Compilers and binutils", compilers.TOOLS),
    ("Go", golang.TOOLS),
    ("clang and LLVM", llvm.TOOLS),
    ("perl", perl.TOOLS),
    ("Packages", packaging.TOOLS),
)

_NEEDS = {
    Need.WIDTH: "pointers as wide",
    Need.ORDER: "the same byte order",
    Need.SIGNALS: "the same numbers of signals and errors",
}


def markdown() -> str:
    """All tables: tools with the same reasons and rules share a line."""
    parts = []
    for title, tools in _TABLES:
        parts += [f"### {title}", "", "| tools | why | left to QEMU |", "|---|---|---|"]
        rows: dict[tuple[str, str], list[str]] = {}
        for tool in tools:
            names = rows.setdefault((tool.why, _aside(tool)), [])
            if _name(tool) not in names:
                names.append(_name(tool))
        for (why, aside), names in rows.items():
            parts.append(f"| {', '.join(names)} | {why} | {aside} |")
        parts.append("")
    return "\n".join(parts)


def rewritten(text: str) -> str:
    """`text`, a document with both marks, with the tables between them."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def _name(tool: Tool) -> str:
    """Its name, without the version that compilers have theirs by."""
    return f"`{re.sub(r'[- ][0-9.]+$', '', tool.name)}`"


def _aside(tool: Tool) -> str:
    """When the tool steps aside, in words. What nearly all have in common is said in the text."""
    words = []
    needs = [text for need, text in _NEEDS.items() if need in tool.needs]
    if tool.foreign:
        words.append(f"on other architectures than {', '.join(tool.foreign)}")
    elif needs:
        words.append(f"without {' and '.join(needs)}")
    if tool.features:
        words.append(f"on a host without {', '.join(tool.features)}")
    texts: dict[str, list[str]] = {}
    for rule in tool.rules:
        kind, text = _rule(rule)
        if kind:
            known = texts.setdefault(kind, [])
            if text:
                known.append(f"`{text}`")
    words += [f"{kind} {', '.join(names)}".strip() for kind, names in texts.items()]
    if tool.decisive:
        names = ", ".join(f"`{Path(each).name}`" for each in tool.decisive)
        words.append(f"with another build of {names}")
    return "; ".join(words)


def _rule(rule: Rule) -> tuple[str, str]:
    """What a rule is about and its text; an empty one for what is not worth a word."""
    # A compiler's directories have its version in their names.
    text = re.sub(r"/[0-9]+/", "/N/", rule.text).replace("|", "\\|")
    match rule.letter:
        case "a" | "A":
            return "option", text
        case "c":
            return "an argument with", text
        case "o":
            return "an option with", text
        case "e":
            return "with the variable", text
        case "E":
            return "unless the variable is", text
        case "x" if "libnss_" in text:
            return "where names of users or hosts come from further nss modules", ""
        case "x":
            return "where there is", text
        case "+":
            return "unless there is", text
        case "1":
            return "unless the first argument is", text
    return "", ""


def main() -> int:
    """Rewrite the file that is named."""
    path = Path(sys.argv[1])
    path.write_text(rewritten(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
