"""The demo page as people use it: in a browser, without the internet, on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.unit.feature_making import ANSWERS, JOINT, extract, trained, vqa
from tests.unit.hostile import large_png, png
from tests.unit.pictures import ramps
from vlp.demo.gaze import gaze, overlay, upright_picture
from vlp.errors import ConfigError

pytest.importorskip("gradio", reason="the extra `demo` is not installed")
pytest.importorskip("faiss", reason="the extra `search` is not installed")

PATCHES = {"kind": "patches", "size": 32, "patch": 8}
SHOTS = os.environ.get("VLP_TEST_SCREENSHOTS")
"""A folder for pictures of the page, to be looked at."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in (("red", (220, 40, 40)), ("blue", (40, 60, 220)), ("green", (40, 180, 60))):
        picture = Image.new("RGB", (160, 120), "white")
        picture.paste(colour, (20, 20, 100, 90))
        picture.save(folder / f"{name}.jpg")
        (folder / f"{name}.txt").write_text(f"a {name} square")
    return folder


@pytest.fixture(scope="module")
def opened(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that answers, and an index of another one's vectors."""
    from vlp.demo.serve import open_demo
    from vlp.extraction import Inputs, open_source
    from vlp.features.reading import Features
    from vlp.search.building import build_index

    folder = tmp_path_factory.mktemp("models")
    trained(JOINT, PATCHES, vqa()).save_pretrained(folder / "answers")
    finds = trained(source=PATCHES)
    finds.save_pretrained(folder / "finds")
    source, name = open_source(Inputs(str(photos)), finds), str(folder / "finds")
    extract(folder / "vectors", finds, source, what="text.vector,image.vector", model_name=name)
    build_index(Features(folder / "vectors"), folder / "index")
    return open_demo(str(folder / "answers"), folder / "index")


def test_words_gaze_is_their_attention_on_the_photo(photos: Path) -> None:
    import vlp

    model = trained(JOINT, PATCHES, vqa())
    seen = gaze(model, photos / "red.jpg", "red circle")
    assert seen.words == ["red", "circle"]
    assert seen.weights_WRC.shape == (2, 4, 4)
    np.testing.assert_allclose(seen.weights_WRC.sum((1, 2)), 1, atol=1e-5)
    (row,) = vlp.extract(model, [(photos / "red.jpg", "red circle")], "attention")
    looked = row.arrays["attention"][:, 1, 4:].mean(0)
    np.testing.assert_allclose(seen.weights_WRC[0].ravel(), looked / looked.sum(), atol=1e-5)
    picture = upright_picture(photos / "red.jpg")
    shown = overlay(picture, seen, 1)
    assert shown.size == picture.size
    assert np.asarray(shown).std() > 0


def test_the_hottest_cell_is_the_reddest(photos: Path) -> None:
    from vlp.demo.gaze import Gaze

    weights_WRC = np.zeros((1, 4, 4), np.float32)
    weights_WRC[0, 3, 0] = 1
    seen = Gaze(["x"], weights_WRC, (0.25, 0, 0.75, 1))
    shown = np.asarray(overlay(Image.new("RGB", (80, 40), "white"), seen, 0), int)
    warm = shown[:, :, 0] - shown[:, :, 2]
    row, column = np.unravel_index(warm.argmax(), warm.shape)
    assert row >= 30, "in the lowest row of cells"
    assert 20 <= column < 32, "in the first cell of the part that the model sees"


def test_a_model_of_regions_has_no_page() -> None:
    from vlp.demo.page import Demo

    with pytest.raises(ConfigError, match="reads regions of a detector, and the page takes photos"):
        Demo(trained())


@pytest.mark.parametrize("data", [png(60000, 60000), b"words", large_png()[:1000]], ids=["bomb", "words", "cut"])
def test_a_hostile_upload_is_told_in_a_sentence(data: bytes, opened: Any, tmp_path: Path) -> None:
    import gradio

    (tmp_path / "x.png").write_bytes(data)
    for call in (opened.ask, opened.look):
        with pytest.raises(gradio.Error, match=r"pixels|is not a JPEG|does not decode"):
            call(str(tmp_path / "x.png"), "what is it")
    with pytest.raises(gradio.Error, match=r"pixels|is not a JPEG|does not decode"):
        opened.find("", str(tmp_path / "x.png"), False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("red " * 1_500_000, r"has 6,000,000 characters, more than 2,000; shorten it"),
        ("what \ud800", r"half a surrogate pair"),
        ("\u0301" * 1500, r"combining marks"),
        (" \n", r"give a"),
    ],
    ids=["megabytes", "surrogate", "marks", "blank"],
)
def test_a_hostile_text_is_told_in_a_sentence(text: str, sentence: str, opened: Any, photos: Path) -> None:
    import gradio

    for call in (opened.ask, opened.look):
        with pytest.raises(gradio.Error, match=sentence):
            call(str(photos / "red.jpg"), text)
    if text.strip():
        with pytest.raises(gradio.Error, match=sentence):
            opened.find(text, None, False)


def test_a_photo_that_is_gone_is_told_by_its_name(opened: Any) -> None:
    source, opened.searcher.source = opened.searcher.source, None
    try:
        found, _ = opened.find("a red square", None, False)
    finally:
        opened.searcher.source = source
    wanted, _ = opened.find("a red square", None, False)
    assert [said for _, said in found] == [said for _, said in wanted]


def test_photos_that_are_gone_are_told_at_the_start(
    opened: Any, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlp.demo.serve import open_demo

    index = opened.searcher.index.folder
    assert open_demo(str(index.parent / "answers"), index).searcher.source is not None
    assert not capsys.readouterr().err
    moved = photos.rename(photos.with_name("moved"))
    try:
        found, _ = open_demo(str(index.parent / "answers"), index).find("a red square", None, False)
    finally:
        moved.rename(photos)
    assert len(found) == 3
    said = capsys.readouterr().err
    assert f"no found photo is shown: '{photos}', which {index} was made of, is gone" in said
    assert "--data" in said


def test_an_address_that_cannot_be_served_is_told() -> None:
    import socket

    from vlp.demo.serve import check_address

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: {port} is taken; give another, or 0 for a free one"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"--host: '203.0.113.7' is no address of this machine"):
        check_address("203.0.113.7", 0)
    with pytest.raises(ConfigError, match="--host: 'no such host' is no address"):
        check_address("no such host", 0)


# ---------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def address(opened: Any) -> Iterator[str]:
    from vlp.demo.page import make_page
    from vlp.demo.serve import launch

    page = make_page(opened)
    yield launch(page, port=0)
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.mark.parametrize("size", SIZES)
def test_the_page_in_a_browser(size: str, browser: Any, address: str, opened: Any, photos: Path) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url) if not _local(request.url, address) else None)
    page.on("pageerror", lambda error: pytest.fail(f"the page says: {error}"))
    page.goto(address)
    _ask(page, opened, photos, size)
    _search(page, opened, photos, size)
    _look(page, size)
    _too_long(page)
    assert not elsewhere, "nothing comes from the internet"
    page.close()


def _local(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("127.0.0.1", "localhost"), "data:", "blob:"))


def _ask(page: Any, opened: Any, photos: Path, size: str) -> None:
    page.get_by_role("tab", name="Ask").click()
    page.locator("#asked input[type=file]").set_input_files(photos / "red.jpg")
    page.locator("#question textarea, #question input").first.fill("what is the colour")
    page.locator("#ask").click()
    answers = page.locator("#answers")
    wanted = list(opened.ask(str(photos / "red.jpg"), "what is the colour").items())
    answers.get_by_text(wanted[0][0]).first.wait_for(timeout=20_000)
    said = answers.inner_text().lower()
    assert all(answer in said for answer in ANSWERS)
    assert f"{wanted[0][1]:.0%}" in said
    _shot(page, size, "ask")


def _search(page: Any, opened: Any, photos: Path, size: str) -> None:
    page.get_by_role("tab", name="Search").click()
    page.locator("#words textarea, #words input").first.fill("a red square")
    page.locator("#search").click()
    wanted, texts = opened.find("a red square", None, False)
    page.locator("#photos img").nth(len(wanted) - 1).wait_for(timeout=20_000)
    page.locator("#texts").get_by_text(texts[0][0]).first.wait_for(timeout=20_000)
    first = wanted[0][1].split(" ")[0]
    assert first in page.locator("#photos").inner_text()
    assert first in {path.name for path in photos.iterdir()}
    photo, caption = page.locator("#photos img").first.bounding_box(), page.locator("#photos .caption-label").first
    assert caption.bounding_box()["y"] >= photo["y"] + photo["height"], "what is said of a photo does not cover it"
    _shot(page, size, "search")
    page.locator("#words textarea, #words input").first.fill("")
    page.locator("#picture input[type=file]").set_input_files(photos / "blue.jpg")
    wanted, texts = opened.find("", str(photos / "blue.jpg"), False)
    assert wanted[0][1].startswith("blue.jpg"), "a photo is most like itself"
    page.locator("#picture img").first.wait_for(timeout=20_000)
    page.locator("#search").click()
    page.locator("#photos").get_by_text(wanted[0][1]).first.wait_for(timeout=20_000)
    assert texts[0][1] in page.locator("#texts").inner_text()
    _shot(page, size, "search-by-picture")


def _look(page: Any, size: str) -> None:
    page.get_by_role("tab", name="Look").click()
    page.locator("#seen input[type=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": _png()})
    page.locator("#text textarea, #text input").first.fill("red circle left of the blue square")
    page.locator("#look").click()
    page.locator("#gaze img").nth(6).wait_for(timeout=20_000)
    assert "circle" in page.locator("#gaze").inner_text()
    overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, "the page is no wider than the screen"
    _shot(page, size, "look")


def _too_long(page: Any) -> None:
    page.get_by_role("tab", name="Ask").click()
    page.locator("#question textarea, #question input").first.fill("what " * 1000)
    page.locator("#ask").click()
    page.get_by_text("has 5,000 characters, more than 2,000").first.wait_for(timeout=20_000)


def _png() -> bytes:
    from tests.unit.pictures import encoded

    return encoded(ramps(200, 150), "PNG")


def _shot(page: Any, size: str, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(SHOTS) / f"{size}-{name}.png"), full_page=True)
