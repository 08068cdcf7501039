"""Rules of the house that neither the linter nor the type checker knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

LONGEST_FILE = 400
FAMILIES = re.compile(
    r"uniter|lxmert|vilbert|visual_?bert|vl[_-]bert|unicoder|vlmo|albef|(?<![a-z])(vilt|meter|beit)(?![a-z])",
    re.IGNORECASE,
)
ADDRESS = re.compile(r"index-url|find-links|\"resolved\":|git\+https?:|file:///", re.IGNORECASE)
"""What would tie the tree to one registry."""
MACHINE_PATH = re.compile(r"(?<![\w./~$}>)\]-])/(?:home|root|Users|work|mnt|opt|srv|data|tmp)/[A-Za-z0-9_.-]+")
"""An absolute path that exists on one machine only."""


def _code(root: Path) -> list[Path]:
    return sorted(path for top in ("vlp", "data_tools") for path in (root / top).rglob("*.py"))


def _tracked(root: Path) -> list[Path]:
    """Files that are, or would be, in the repository."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for path in (root / line for line in listed.stdout.splitlines()) if path.is_file()]


def test_every_package_says_what_lives_there(root: Path) -> None:
    folders = {path.parent for path in _code(root)}
    silent = [
        folder.relative_to(root).as_posix()
        for folder in sorted(folders)
        if not (folder / "__init__.py").is_file()
        or not ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    ]
    assert not silent, f"no __init__.py with a docstring in {silent}"


def test_no_file_needs_a_table_of_contents(root: Path) -> None:
    lengths = {path.relative_to(root).as_posix(): len(path.read_bytes().splitlines()) for path in _code(root)}
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}


def test_a_family_is_a_config_and_not_code(root: Path) -> None:
    # Sources are cited by authors, year and number. models/convert* knows the names inside the published checkpoints.
    found = []
    for path in sorted((root / "vlp").rglob("*.py")):
        inside = path.relative_to(root / "vlp")
        if inside.parts[0] == "models" and inside.parts[1].startswith("convert"):
            continue
        lines = [str(inside), *path.read_text(encoding="utf-8").splitlines()]
        found += [f"vlp/{inside}:{number}: {line}" for number, line in enumerate(lines) if FAMILIES.search(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('if name == "uniter_base":', True),
        ("class VilbertError(Exception):", True),
        ('"""As in ALBEF."""', True),
        ("the code of Chen et al. 2020 (arXiv 1909.11740)", False),
        ("parameters = 3", False),
        ("the parameter of a beitel", False),
    ],
)
def test_a_family_is_known_when_seen(line: str, named: bool) -> None:
    assert bool(FAMILIES.search(line)) == named


def test_no_file_knows_a_machine_or_a_registry(root: Path) -> None:
    found = []
    for path in _tracked(root):
        if path == Path(__file__) or path.name == "LICENSE":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if ADDRESS.search(line) or MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:120]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("data: /home/me/shards", True),
        ("run('/tmp/out')", True),
        ("data: runs/tmp/out", False),
        ("see ../shared/data/x", False),
        ("https://example.org/data/x", False),
        ("${HOME}/data/x", False),
    ],
)
def test_a_machine_path_is_known_when_seen(line: str, bad: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) == bad
