"""What `vlp doctor` says of a machine; nothing here starts a run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_on_ranks
from vlp import doctor
from vlp.distributed import World
from vlp.doctor import Finding, examine
from vlp.models import kernels


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_this_machine_is_fit() -> None:
    found = by_name(examine(None, [], build=False))
    assert {"python", "packages", "torch and torchvision", "GPU", "open files", "disk", "network"} <= found.keys()
    assert [finding for finding in found.values() if finding.state == "bad"] == []


def test_whatever_is_amiss_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: "/bin/nvidia-smi" if name == "nvidia-smi" else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    monkeypatch.setattr(doctor, "_NEEDED_FILES", 1 << 40)
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    found = by_name(examine(None, [], build=False))
    for name in ("compiler", "GPU", "disk", "shared memory", "open files", "network"):
        assert found[name].state != "good", name
        assert found[name].remedy, name


@pytest.mark.parametrize(("slow", "state"), [(frozenset({torch.bfloat16}), "note"), (frozenset(), "good")])
def test_a_cpu_that_does_not_multiply_bf16_is_told(
    slow: frozenset[torch.dtype], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "_SLOW", slow)
    finding = by_name(examine(None, [], build=False))["bf16"]
    assert finding.state == state
    assert ("precision=fp32" in finding.remedy) == (state == "note")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package>=1", "pytest; extra == 'dev'"])
    (finding,) = [found for found in doctor._packages() if found.state == "bad"]
    assert "no-such-package is missing" in finding.found
    assert "torch" in finding.found
    assert "pytest" not in finding.found


def test_a_broken_pair_of_torch_and_torchvision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision

    def broken(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(torchvision.ops, "nms", broken)
    (finding,) = doctor._torchvision()
    assert (finding.state, finding.found) == ("bad", "operator torchvision::nms does not exist")


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpu", lambda: 1 / 0)
    assert any("ZeroDivisionError" in finding.found for finding in examine(None, [], build=False))


def test_a_config_is_checked_with_its_data(tmp_path: Path) -> None:
    def states(*overrides: str) -> dict[str, str]:
        return {f.check: f.state for f in examine("uniter_tiny", list(overrides), build=False)}

    where = [f"run.dir={tmp_path / 'run'}"]
    assert states(*where, "batch.sise=3")["config"] == "bad"
    found = states(*where, f"data.train={tmp_path}", f"tokenizer={tmp_path}")
    assert (found["config"], found["data"]) == ("good", "bad")


def test_what_deepspeed_compiles_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from deepspeed.ops.op_builder.builder import OpBuilder

    from vlp.train.quiet import import_deepspeed

    def load(self: Any, verbose: bool = True) -> str:
        (tmp_path / self.name).mkdir(exist_ok=True)
        (tmp_path / self.name / f"{self.name}.so").touch()
        return "loaded"

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(OpBuilder, "jit_load", load)
    import_deepspeed()
    import_deepspeed()  # announces no line twice
    builder = SimpleNamespace(name="some_op")
    assert [OpBuilder.jit_load(builder) for _ in range(2)] == ["loaded", "loaded"]
    assert capsys.readouterr().out.count("compiling DeepSpeed's some_op") == 1


@pytest.mark.parametrize("deepspeed", [None, "zero2_offload", "zero3"])
def test_a_first_start_compiles_nothing(deepspeed: str | None) -> None:
    assert run_on_ranks(1, first_start, deepspeed=deepspeed) == [[]]


def first_start(world: World, deepspeed: str | None) -> list[str]:
    from vlp.train.firststart import start_once

    return start_once(deepspeed, "bf16")


def test_the_table_shows_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show([Finding("disk", "bad", "full [really]", "free some space")])
    out = capsys.readouterr().out
    assert "full [really]" in out
    assert "free some space" in out
