"""The lower bounds of pyproject.toml, as constraints for pip; or a report on tests run with them.

python scripts/lower_bounds.py
python scripts/lower_bounds.py --report LOG SECONDS
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)$")
_SUMMARY = re.compile(r"\d+ (?:passed|failed)")


def lower_bounds(pyproject: Path) -> dict[str, str]:
    """Package → the lowest version that the project or an extra but ``dev`` allows.

    Raises:
        ValueError: a dependency states no lower bound.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    stated = [
        *project["dependencies"],
        *(d for name in extras if name != "dev" for d in extras[name]),
    ]
    found = {}
    for each in stated:
        if (match := _REQUIREMENT.match(each)) is None:
            raise ValueError(f"{pyproject}: {each!r} has no lower bound; write {each}>=VERSION")
        found[match[1]] = match[2]
    return found


def report(bounds: dict[str, str], log: str, seconds: int) -> str:
    """The page that is committed: when, where, with which versions, and how the tests ended."""
    summary = [line for line in log.splitlines() if _SUMMARY.search(line)]
    failed = sorted(
        {line.split(" - ")[0] for line in log.splitlines() if line.startswith("FAILED ")}
    )
    rows = []
    for name, bound in bounds.items():
        try:
            rows.append(f"| {name} | {bound} | {version(name)} |")
        except PackageNotFoundError:
            rows.append(f"| {name} | {bound} | not installed |")
    return "\n".join(
        [
            "# The fast tests at the lower bounds of pyproject.toml",
            "",
            "    bash scripts/test_bounds.sh",
            "",
            f"{datetime.date.today()}, {os.cpu_count()} cores, CPU, Python "
            f"{platform.python_version()}: {summary[-1].strip('= ') if summary else 'no result'}, "
            f"in {seconds:,} s.",
            "",
            *(f"- {line}" for line in failed),
            *([""] if failed else []),
            "| package | bound | installed |",
            "|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    stated = lower_bounds(Path(__file__).parent.parent / "pyproject.toml")
    if sys.argv[1:2] == ["--report"]:
        log = Path(sys.argv[2]).read_text(encoding="utf-8", errors="replace")
        print(report(stated, log, int(sys.argv[3])))
    else:
        print("\n".join(f"{name}=={bound}" for name, bound in stated.items()))
