"""Folders and tables that attack: every bad row is told and left out, at a bounded cost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.unit.feature_making import extract, pixel_model
from tests.unit.hostile import large_png, pickled, png, scans_jpeg
from tests.unit.pictures import encoded, ramps
from vlp import Features
from vlp.extraction import Inputs, open_source
from vlp.features.files import FORMATS, Format


def hostile(folder: Path) -> dict[str, str | None]:
    """Files that attack, in a folder and a table; what is said of each row, None for the good ones."""
    jpeg = encoded(ramps())
    files = {
        "good.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "claims.png": png(60000, 60000),
        "scans.jpg": scans_jpeg(),
        "text.jpg": b"only words",
        "pickle.jpg": pickled(),
        "empty.jpg": b"",
        "black.png": large_png(),
        "gif.jpg": encoded(Image.new("RGB", (9, 9)), "GIF"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    good = {"image": "good.jpg", "text": "red"}
    rows: list[tuple[Any, str | None]] = [
        (good, None),
        ({"image": "cut.jpg", "text": "red"}, "does not decode"),
        ({"image": "claims.png"}, "pixels"),
        ({"image": "scans.jpg"}, "scans"),
        ({"image": "text.jpg"}, "is not a JPEG"),
        ({"image": "pickle.jpg"}, "is not a JPEG"),
        ({"image": "empty.jpg"}, "is not a JPEG"),
        ({"image": "gif.jpg"}, "is not a JPEG"),
        ({"image": "black.png"}, None),
        ({"image": "pipe.jpg"}, "is not a file"),
        ({"image": "folder.jpg"}, "is not a file"),
        ({"image": "/dev/zero"}, "is not a file"),
        ({"image": "x" * 5000}, "File name too long"),
        ({"image": "good.jpg\0.png"}, "zero byte"),
        ({"image": "good.jpg", "text": "red " * (10 << 18)}, "characters, more than"),
        ({"image": "good.jpg", "text": "a" * 500_000}, None),
        ({"image": "good.jpg", "text": "e" + "\u0301\u0316" * 200_000}, "combining marks"),
        ({"image": "good.jpg", "text": "\ud800"}, "half a surrogate pair"),
        ({"image": "good.jpg", "text": 7}, "has no text under 'text'"),
        ({"image": ["good.jpg"]}, "has no text under 'image'"),
        ([1, 2], "is not a JSON object"),
        ("[" * 100_000, "recursion"),
        ({"image": "good.jpg", "key": "../../../outside"}, None),
        ({"image": "good.jpg", "key": "/etc/passwd"}, None),
        ({"image": "good.jpg", "key": "a.b.c\\d\n"}, None),
        ({"image": "good.jpg", "key": "k" * 5000}, "key of 5000 characters"),
    ]
    lines = [row if isinstance(row, str) else json.dumps(row) for row, _ in rows]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return {f"{number:09d}": fault for number, (_, fault) in enumerate(rows)}


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_rows_end_nothing(format: Format, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    faults = hostile(folder)
    model = pixel_model()
    before = set(tmp_path.rglob("*"))
    source = open_source(Inputs(str(folder / "pairs.jsonl")), model)
    done = extract(tmp_path / "out", model, source, what="pooled,itm,text", format=format, part_examples=7)
    good = [number for number, fault in faults.items() if fault is None]
    records = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    said = {record["id"]: record["error"] for record in records}
    wanted = {number: fault for number, fault in faults.items() if fault is not None}
    assert said.keys() == wanted.keys()
    for number, fault in wanted.items():
        assert fault in said[number], f"row {number}: {said[number]}"
    assert (done.rows, done.quarantined) == (len(good), len(wanted))
    assert len(list(Features(tmp_path / "out"))) == len(good)
    made = set(tmp_path.rglob("*")) - before
    assert all(path == tmp_path / "out" or tmp_path / "out" in path.parents for path in made)


def test_a_bomb_costs_bounded_memory(tmp_path: Path) -> None:
    """Five images of 190 KB that unpack to 192 MB each; and a cell of 40 MB in a CSV."""
    import resource

    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(large_png())
    with (tmp_path / "pairs.csv").open("w") as file:
        file.write("image,text\n" + "".join(f"{number}.png,red\n" for number in range(5)))
        file.write('0.png,"' + "never ends " * (4 << 20))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            model = pixel_model()
            _, hard = resource.getrlimit(resource.RLIMIT_AS)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), hard))
            torch.set_num_threads(1)
            source = open_source(Inputs(str(tmp_path / "pairs.csv")), model)
            items = list(source.items(0, 0, source.groups[0].examples))
            bad = [item for item in items if item.example is None]
            code = 0 if len(items) - len(bad) == 5 and len(bad) >= 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
