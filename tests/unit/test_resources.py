from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vlp import resources
from vlp.errors import ConfigError
from vlp.resources import Kind, names, shipped

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

KINDS: tuple[Kind, ...] = ("model", "pretrain", "finetune", "deepspeed")
FOLDERS = {"model": "configs/model", "pretrain": "configs/pretrain", "finetune": "configs/finetune"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_shipped_config_is_found_by_its_name(kind: Kind, root: Path) -> None:
    folder = root / FOLDERS.get(kind, "deepspeed_configs")
    files = sorted(path for path in folder.glob("*") if path.suffix in (".yaml", ".json"))
    assert names(kind) == tuple(path.stem for path in files)
    assert [shipped(kind, path.stem).read_bytes() for path in files] == [path.read_bytes() for path in files]


def test_a_typo_is_refused_with_the_nearest_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _installed(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"no shipped model config is called 'tiny_a' \(did you mean 'a_tiny'\?\)"):
        shipped("model", "tiny_a")


def test_an_installed_package_looks_inside_itself_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = _installed(tmp_path, monkeypatch)
    assert shipped("model", "a_tiny") == inside / "a_tiny.yaml"


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inside, beside = folder / "vlp" / "configs" / "model", folder / "configs" / "model"
    for place in (inside, beside):
        place.mkdir(parents=True)
        (place / "a_tiny.yaml").touch()
    monkeypatch.setattr(resources, "_PACKAGE", folder / "vlp")
    return inside


def test_every_folder_of_code_and_configs_is_packaged(root: Path) -> None:
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    code = {path.parent for top in ("vlp", "data_tools") for path in (root / top).rglob("*.py")}
    configs = {path.parent for top in ("configs", "deepspeed_configs") for path in (root / top).rglob("*.*")}
    wanted = {_package(folder.relative_to(root)) for folder in code}
    wanted |= {"vlp." + _package(folder.relative_to(root)) for folder in configs if folder.is_dir()}
    listed = set(settings["packages"])
    assert wanted <= listed, "add the missing ones to [tool.setuptools] packages in pyproject.toml"
    assert listed <= wanted, "git keeps no empty folder, so a fresh clone that lists one cannot be installed"


def _package(folder: Path) -> str:
    return ".".join(folder.parts)


def test_a_built_wheel_holds_the_code_and_the_configs(root: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # a copy: building leaves files in the tree
    tree.mkdir()
    for name in ("vlp", "data_tools", "configs", "deepspeed_configs"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, tree]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vlp-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(root) for top in ("vlp", "data_tools") for path in (root / top).rglob("*.py")}
    configs = {Path("vlp") / shipped(kind, name).relative_to(root) for kind in KINDS for name in names(kind)}
    assert {path.as_posix() for path in code | configs} <= held
