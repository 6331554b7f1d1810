"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

    python .ci/oldest.py test > oldest.txt && pip install -c oldest.txt ".[test]"

covers the dependencies and the extras named. A requirement without a lowest version is an error.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?(?P<versions>[^;]*)")


def oldest(extras: list[str]) -> dict[str, str]:
    """Lowest version of each package that is required, the extras' packages among them."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    required = list(project["dependencies"])
    for extra in extras:
        required += project["optional-dependencies"][extra]
    found: dict[str, str] = {}
    for requirement in required:
        parts = _REQUIREMENT.match(requirement)
        lowest = re.search(r">=\s*([\w.]+)", parts["versions"]) if parts else None
        if parts is None or lowest is None:
            raise SystemExit(f"pyproject.toml: {requirement!r} has no lowest version")
        name, version = parts["name"].lower(), lowest[1]
        if found.setdefault(name, version) != version:
            raise SystemExit(f"pyproject.toml: {name} has two lowest versions")
    return found


if __name__ == "__main__":
    for package, lowest_version in oldest(sys.argv[1:]).items():
        print(f"{package}=={lowest_version}")
