"""`vlp demo`: open the model and the index, serve the page until it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlp.demo.page import CSS, Demo, library, make_page
from vlp.features.job import fingerprint
from vlp.search.index import SearchIndex
from vlp.searching import open_searcher
from vlp.vision_language_model import VisionLanguageModel

MAX_UPLOAD = "32mb"


def serve(model: str, index: Path | None, data: str | None, host: str, port: int) -> None:
    """Serve the page; returns when it is interrupted."""
    library()  # before a model is read for nothing
    page = make_page(open_demo(model, index, data))
    address = launch(page, host, port)
    print(f"demo: {address} (stop it with Ctrl-C)", flush=True)
    page.block_thread()


def open_demo(model: str, index: Path | None = None, data: str | None = None) -> Demo:
    """The model to ask; and the index, if there is one, with the model that its vectors came from (which may be
    another: one is fine-tuned to answer, the other to find)."""
    asked = VisionLanguageModel.from_pretrained(model)
    if index is None:
        return Demo(asked)
    own = fingerprint(asked) == SearchIndex(index).facts["model"]["fingerprint"]
    return Demo(asked, open_searcher(index, model if own else None, data, needs_source=False))


def launch(page: Any, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serve the page in the background; returns its address. Nothing is fetched from elsewhere, by it or by us.

    Args:
        port: 0 takes a free one.
    """
    gr = library()
    plain = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port or None,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        theme=plain,
        css=CSS,
    )
    return str(address)
