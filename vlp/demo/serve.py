"""`vlp demo`: open the model and the index, serve the page until it is stopped."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import Any

from vlp.demo.page import CSS, Demo, library, make_page
from vlp.errors import ConfigError
from vlp.features.job import fingerprint
from vlp.search.index import SearchIndex
from vlp.searching import open_searcher
from vlp.vision_language_model import VisionLanguageModel

MAX_UPLOAD = "32mb"


def serve(model: str, index: Path | None, data: str | None, host: str, port: int) -> None:
    """Serve the page; returns when it is interrupted."""
    library()  # before a model is read for nothing, as below
    check_address(host, port)
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
    own = fingerprint(asked) == SearchIndex(index).facts.model.fingerprint
    searcher = open_searcher(index, model if own else None, data, "wanted")
    if searcher.source is None:
        print(f"demo: {_no_photos(searcher.index)}", file=sys.stderr)
    return Demo(asked, searcher)


def _no_photos(index: SearchIndex) -> str:
    return (
        f"no found photo is shown: '{index.facts.source.place.found(index.folder)}', which {index.folder} was made of, "
        "is gone or has changed since; say with --data where it is now, or extract and index it again"
    )


def check_address(host: str, port: int) -> None:
    """Raises ConfigError: the page cannot be served there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"--port: {port} is taken; give another, or 0 for a free one") from None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ConfigError(
                f"--port: {port} is not for all users; give one above 1023, or 0 for a free one"
            ) from None
        raise ConfigError(f"--host: '{host}' is no address of this machine ({error.strerror})") from None


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
