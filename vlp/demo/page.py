"""The page: a tab for each thing that the model can do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlp.data.image import PixelImages
from vlp.data.samples import Fault, check_characters
from vlp.data.shards import BadSample
from vlp.demo.gaze import gaze, overlay, upright_picture
from vlp.errors import ConfigError, DataError, VlpError
from vlp.features.preparing import Files
from vlp.search.index import Hit
from vlp.search.searcher import Searcher
from vlp.tasks.abilities import matcher_of
from vlp.tasks.vqa import VqaTask

if TYPE_CHECKING:
    from vlp.vision_language_model import VisionLanguageModel

CSS = """
.gradio-container { max-width: 1000px !important; width: 100%; margin: auto; }
.gallery .grid-wrap { max-height: none; min-height: 0; }
.gallery .thumbnail-item { display: flex; flex-direction: column; aspect-ratio: auto; height: auto; }
.gallery .thumbnail-item img { aspect-ratio: 4 / 3; height: auto; min-height: 0; }
.gallery .caption-label { position: static; max-width: 100%; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 600px) { .gallery .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; } }
footer { display: none !important; }
"""
_ANSWERS, _HITS, _RERANKED = 5, 12, 50
_CAPTION = 40
"""Characters of a text below a photo."""
_MOST_CHARACTERS = 2000
"""Of what is typed: models read some dozen words."""


def library() -> Any:
    """Gradio, which is an extra, told to stay at home.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError:
        raise ConfigError("the demo needs gradio; install it with `pip install 'vlp[demo]'`") from None
    return gradio


class Demo:
    """What the page's buttons do. One at a time: a model is not made for several threads.

    Args:
        searcher: an index to search in.
    Raises:
        ConfigError: the model does not read photos.
    """

    def __init__(self, model: VisionLanguageModel, searcher: Searcher | None = None) -> None:
        if not isinstance(model.images, PixelImages):
            raise ConfigError(
                "--model: it reads regions of a detector, and the page takes photos; give a model that reads pixels"
            )
        self.model, self.searcher = model, searcher
        self._lock = Lock()

    @property
    def answers(self) -> bool:
        return isinstance(self.model.trained_task, VqaTask)

    def ask(self, photo: str | None, question: str) -> dict[str, float]:
        """The top answers and their scores."""
        with self._alone():
            found = self.model.answer(_given(photo), _words(question, "question"), _ANSWERS)
            return {one.answer: one.score for one in found}

    def look(self, photo: str | None, text: str) -> list[tuple[Image.Image, str]]:
        """For each word the photo with what the word looks at."""
        with self._alone():
            path = _given(photo)
            seen = gaze(self.model, path, _words(text, "text"))
            picture = upright_picture(path)
            return [(overlay(picture, seen, number), word) for number, word in enumerate(seen.words)]

    def find(self, words: str, photo: str | None, again: bool) -> tuple[list[tuple[Image.Image, str]], list[list[str]]]:
        """Photos and texts that go with words, or with a photo where there are none."""
        assert self.searcher is not None
        with self._alone():
            if (words or "").strip():
                _words(words, "text")
                rerank = _RERANKED if again else 0
                hits = {side: self._by_words(words, side, rerank) for side in self.searcher.index.sides}
            else:
                files = Files(_given(photo, "give some words, or a photo"))
                hits = {side: self.searcher.by_picture(files, side, _HITS) for side in self.searcher.index.sides}
            photos = [self._photo(hit) for hit in hits.get("image", [])]
            return photos, [[hit.words, hit.image, f"{hit.score:.3f}"] for hit in hits.get("text", [])]

    def _by_words(self, words: str, side: Any, rerank: int) -> list[Hit]:
        assert self.searcher is not None
        return self.searcher.by_words(words, side, _HITS, rerank if side == "image" else 0)

    def _photo(self, hit: Hit) -> tuple[Image.Image, str]:
        """The photo of a hit and what is said of it; an empty one where it is gone since, or there was none."""
        assert self.searcher is not None
        said = f"{hit.image} ({hit.score:.3f}) {' '.join(hit.words.split())[:_CAPTION]}".rstrip()
        try:
            photo = None if self.searcher.source is None else self.searcher.source.photo(hit.image)
            return Image.new("RGB", (4, 3), "lightgrey") if photo is None else upright_picture(photo), said
        except (DataError, BadSample, OSError):
            return Image.new("RGB", (4, 3), "lightgrey"), said

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call at a time; what is wrong with its input is said on the page."""
        with self._lock:
            try:
                yield
            except VlpError as error:
                raise library().Error(str(error), print_exception=False) from None


def make_page(demo: Demo) -> Any:
    """The page, ready to be launched."""
    gr = library()
    with gr.Blocks(title="vlp") as page:
        gr.Markdown(f"# vlp\n{_about(demo.model)}")
        if demo.answers:
            with gr.Tab("Ask"):
                _ask(gr, demo)
        if demo.searcher is not None:
            with gr.Tab("Search"):
                _search(gr, demo, demo.searcher)
        with gr.Tab("Look"):
            _look(gr, demo)
    return page


def _ask(gr: Any, demo: Demo) -> None:
    with gr.Row():
        with gr.Column():
            photo = _upload(gr, "asked")
            question = gr.Textbox(label="Question", placeholder="what is on the photo?", elem_id="question")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
        answers = gr.Label(label="Answers", num_top_classes=_ANSWERS, elem_id="answers")
    _on(demo.ask, [photo, question], answers, button.click, question.submit)


def _search(gr: Any, demo: Demo, searcher: Searcher) -> None:
    with gr.Row():
        words = gr.Textbox(label="Words", placeholder="a red circle", elem_id="words")
        photo = _upload(gr, "picture", "or a photo")
    again = gr.Checkbox(
        label="Look again at the best, words and photo together",
        visible=searcher.source is not None and matcher_of(searcher.model.trained_task) is not None,
    )
    button = gr.Button("Search", variant="primary", elem_id="search")
    photos = _pictures(gr, 4, "photos", visible="image" in searcher.index.sides)
    texts = gr.Dataframe(
        headers=["Text", "Photo", "Score"],
        label="Texts",
        wrap=True,
        interactive=False,
        visible="text" in searcher.index.sides,
        elem_id="texts",
    )
    _on(demo.find, [words, photo, again], [photos, texts], button.click, words.submit)


def _look(gr: Any, demo: Demo) -> None:
    with gr.Row():
        with gr.Column():
            photo = _upload(gr, "seen")
            text = gr.Textbox(label="Text", placeholder="a red circle on a blue square", elem_id="text")
            button = gr.Button("Look", variant="primary", elem_id="look")
        words = _pictures(gr, 2, "gaze")
    _on(demo.look, [photo, text], words, button.click, text.submit)


def _upload(gr: Any, name: str, label: str = "Photo") -> Any:
    # As a path, in whatever mode it is: our own reader decodes it, within its limits.
    sources = ["upload", "clipboard"]
    return gr.Image(label=label, type="filepath", image_mode=None, sources=sources, height=280, elem_id=name)


def _pictures(gr: Any, columns: int, name: str, *, visible: bool = True) -> Any:
    # Whole pictures, as tall as they are, without a label that would lie over the first.
    return gr.Gallery(
        show_label=False,
        columns=columns,
        height="auto",
        object_fit="contain",
        visible=visible,
        elem_id=name,
        elem_classes="gallery",
        buttons=[],
    )


def _on(call: Callable[..., Any], inputs: Any, outputs: Any, *events: Any) -> None:
    for event in events:
        event(call, inputs, outputs, api_visibility="private")


def _about(model: VisionLanguageModel) -> str:
    task = f"trained for {model.task.task.name}" if model.task else "of unknown training"
    return f"A model {task}, on this machine: nothing that you give it leaves the machine."


def _given(photo: str | None, otherwise: str = "give a photo") -> Path:
    if photo is None:
        raise ConfigError(otherwise)
    return Path(photo)


def _words(text: str, what: str) -> str:
    """What was typed, if a model can read it."""
    if not (text or "").strip():
        raise ConfigError(f"give a {what}")
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"the {what} has {len(text):,} characters, more than {_MOST_CHARACTERS:,}; shorten it")
    try:
        check_characters(text, what)
    except Fault as fault:
        raise ConfigError(f"the {what} {fault.reason}; give plain text") from None
    return text
