"""docs/features.ipynb runs as it stands, cell by cell, on small models and photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.unit.feature_making import ANSWERS, pixel_model, vqa
from tests.unit.pictures import ramps

NOTEBOOK = ROOT / "docs" / "features.ipynb"


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook()["cells"] if cell["cell_type"] == kind]


def notebook() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pixel_model().save_pretrained("runs/search/model")
    pixel_model(task=vqa()).save_pretrained("runs/answers/model")
    Path("photos").mkdir()
    for number in range(4):
        ramps(30 + 20 * number, 40).save(f"photos/{number}.jpg")
    Path("photos/4.jpg").write_bytes(b"no photo")
    code = cells("code")
    assert len(code) >= 8
    names: dict[str, Any] = {}
    for cell in code:
        exec(compile(cell, NOTEBOOK.name, "exec"), names)
    assert names["features"].pooled.shape[0] == 2
    np.testing.assert_allclose(np.linalg.norm(names["vectors"], axis=1), 1, atol=1e-5)
    assert names["odds"].shape == (4, 2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "4 photos, 1 that cannot be used"
    assert {line.split()[1] for line in said[-3:]} == set(ANSWERS)


def test_it_is_kept_without_results() -> None:
    """Numbers of somebody's machine would be no documentation."""
    assert all(
        not cell["outputs"] and cell["execution_count"] is None for cell in notebook()["cells"] if "outputs" in cell
    )
    assert len({cell["id"] for cell in notebook()["cells"]}) == len(notebook()["cells"])
    assert "features.ipynb" in (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
