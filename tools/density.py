#!/usr/bin/env python3
"""How dense the lines of hpc_llm/ are, per 1,000 lines of code; `tools/density.py [--rooms]`.

Packed assignments are `a, b = x, y`. A line of code is one that is neither blank nor a comment.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "hpc_llm"
TARGETS = {"packed assignments": 3, "comprehensions": 25, "ternaries": 15}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def counted(source: str) -> Counter[str]:
    """Lines of code, and how often each of TARGETS occurs in them."""
    count: Counter[str] = Counter()
    for line in source.splitlines():
        count["lines"] += bool(line.strip()) and not line.strip().startswith("#")
    for node in ast.walk(ast.parse(source)):
        count["packed assignments"] += is_packed(node)
        count["comprehensions"] += isinstance(node, COMPREHENSIONS)
        count["ternaries"] += isinstance(node, ast.IfExp)
    return count


def is_packed(node: ast.AST) -> bool:
    """Whether it assigns several values to several names at once."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def line_of(name: str, count: Counter[str]) -> str:
    """One line of the report."""
    per_thousand = 1000 / max(1, count["lines"])
    figures = [f"{what} {count[what] * per_thousand:4.1f}" for what in TARGETS]
    return f"{name:<12} {count['lines']:>6} lines: {', '.join(figures)}"


def main() -> None:
    """Print the whole package, and every room of it with --rooms."""
    rooms: dict[str, Counter[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0]
        rooms.setdefault(room, Counter()).update(counted(path.read_text()))
    if "--rooms" in sys.argv[1:]:
        for name, count in rooms.items():
            print(line_of(name, count))
    aims = ", ".join(f"{what} < {most}" for what, most in TARGETS.items())
    print(f"{line_of('hpc_llm', sum(rooms.values(), Counter()))} (aims: {aims})")


if __name__ == "__main__":
    main()
