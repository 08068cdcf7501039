"""The small world: what its hard rules promise, checked on the written shards and on what they are drawn from."""

import hashlib
import json
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

from data_tools.world.balance import Balance, Candidate, Guess
from data_tools.world.detector import CLASSES, detect
from data_tools.world.language import CAPTIONS, QUESTIONS, mentions
from data_tools.world.samples import WorldSample, world_samples
from data_tools.world.scene import COLOURS, PHOTO, SHAPES, SIZES, Scene, Thing, draw_scene, layouts
from data_tools.world.shapes import shapes, write_split
from vlp.data.index import Index, open_index
from vlp.data.shards import ShardReader
from vlp.errors import ConfigError, DataError
from vlp.seeds import generator
from vlp.types import Regions, Sample

ANSWERS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "existence": ("yes", "no"),
    "side": ("left", "right"),
    "height": ("above", "below"),
    "count": ("0", "1", "2", "3"),
}


def form_of(question_id: str) -> str:
    return question_id.split("-")[2]


@pytest.fixture(scope="module")
def world() -> list[WorldSample]:
    return list(world_samples("train", 300, seed=0, dev_share=0.1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    result = CliRunner().invoke(app(), ["--out", str(out), "--samples", "60", "--samples-per-shard", "25"])
    assert result.exit_code == 0, result.output
    return out


def app() -> Typer:
    made = Typer()
    made.command()(shapes)
    return made


def read_all(index: Index) -> list[tuple[Sample, Scene, str]]:
    """Every sample, its scene, and the shard it lies in."""
    reader = ShardReader(index)
    result = []
    for shard, entry in enumerate(index.manifest.shards):
        for row in range(entry.samples):
            sample = reader.read(shard, row, image=True, regions=True, texts=True)
            member = reader.member(index.table(shard), shard, row, "json")
            assert member is not None
            things = json.loads(member)["scene"]
            scene = tuple(Thing(**{**thing, "centre": tuple(thing["centre"])}) for thing in things)
            result.append((sample, scene, entry.name))
    return result


# ----------------------------------------------------------------------------------------------- what is written


def test_shards_hold_every_scene_and_an_index(written: Path) -> None:
    train, dev = open_index(written / "train"), open_index(written / "dev")
    assert [entry.samples for entry in train.manifest.shards] == [25, 25, 4]
    assert dev.manifest.samples == 6
    assert (train.manifest.feature_width, train.manifest.class_count) == (176, len(CLASSES))
    report = json.loads((written / "train" / "import_report.json").read_text())
    samples = read_all(train)
    assert report["written"]["questions"] == sum(len(sample.questions) for sample, _, _ in samples)
    assert all(len(sample.captions) == 3 for sample, _, _ in samples)


def test_regions_come_from_the_photo_alone(written: Path) -> None:
    for sample, _, _ in read_all(open_index(written / "dev")):
        assert sample.image is not None
        assert sample.regions is not None
        again = detect(sample.image, sample.regions.boxes_R4)
        np.testing.assert_allclose(again.features_RD, sample.regions.features_RD, atol=1e-5)
        np.testing.assert_allclose(detected(again)[1], detected(sample.regions)[1], atol=1e-5)


def test_dev_shares_no_layout_with_train(written: Path) -> None:
    seen = [
        {tuple(sorted(thing.cell for thing in scene)) for _, scene, _ in read_all(open_index(written / split))}
        for split in ("train", "dev")
    ]
    assert not seen[0] & seen[1]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    def digest(name: str, seed: int, workers: int = 1) -> str:
        write_split(tmp_path / name, "train", 120, seed, 0.1, 200, workers)
        return hashlib.sha256((tmp_path / name / "shard-000000.tar").read_bytes()).hexdigest()

    assert digest("a", 3) == digest("b", 3, workers=2) != digest("c", 4)


def test_command_refuses_what_makes_no_sense(written: Path) -> None:
    result = CliRunner().invoke(app(), ["--out", str(written), "--samples", "10"])
    assert isinstance(result.exception, DataError)
    result = CliRunner().invoke(app(), ["--out", str(written / "x"), "--samples", "10", "--dev-share", "0.9"])
    assert isinstance(result.exception, ConfigError)
    assert not (written / "x").exists()


# ------------------------------------------------------------------------------------------------ layouts, scenes


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_layouts_are_dealt_once(share: float) -> None:
    train, dev = layouts("train", share), layouts("dev", share)
    for one, other, total in zip(train, dev, (36, 84, 126, 126), strict=True):
        assert not set(one) & set(other)
        assert len(one) + len(other) == total
        assert len(other) == max(1, round(share * total))


def test_attributes_of_a_scene_tell_nothing_of_each_other() -> None:
    choices = layouts("train", 0.1)
    scenes = [draw_scene(choices, generator(1, "scene", number)) for number in range(4000)]
    colours = Counter((scene[0].colour, scene[1].colour) for scene in scenes)
    assert len(colours) == 64
    assert max(colours.values()) < 4000 / 64 * 1.6  # 62 each in the mean, standard deviation 8
    first = Counter(scene[0].cell for scene in scenes)
    assert max(first.values()) < 1.4 * min(first.values())  # the order of objects does not follow their place


# ------------------------------------------------------------------------------------------- photos and regions


def test_boxes_are_off_by_pixels_but_tell_small_from_large(world: list[WorldSample]) -> None:
    widths: dict[str, list[float]] = defaultdict(list)
    offsets = []
    for sample in world:
        boxes = sample.regions.boxes_R4 * PHOTO
        middles = (boxes[:, :2] + boxes[:, 2:]) / 2
        for thing in sample.scene:
            distance = np.abs(middles - thing.centre).max(1)
            offsets.append(distance.min())
            box = boxes[distance.argmin()]
            widths[thing.size].append(float(max(box[2] - box[0], box[3] - box[1])))
    assert 0.2 < np.mean(offsets) < 1.5
    assert max(widths["small"]) < min(widths["large"])


def detected(regions: Regions) -> tuple[NDArray[Any], NDArray[Any]]:
    """Confidence and class probabilities, which every region here has."""
    assert regions.confidence_R is not None
    assert regions.class_probs_RC is not None
    return regions.confidence_R, regions.class_probs_RC


def test_detector_sees_what_is_there(world: list[WorldSample]) -> None:
    right = []
    for sample in world:
        confidence, probs = detected(sample.regions)
        assert np.all(np.diff(confidence) <= 0)
        np.testing.assert_allclose(probs.sum(1), 1, atol=1e-4)
        seen = Counter(CLASSES[column] for column in probs.argmax(1))
        true = Counter(f"{thing.colour} {thing.shape}" for thing in sample.scene)
        right.append((seen & true).total() / true.total())
    assert np.mean(right) > 0.97


def test_features_are_about_standard(world: list[WorldSample]) -> None:
    rows = np.concatenate([sample.regions.features_RD for sample in world])
    for part in (rows[:, :48], rows[:, 48:112], rows[:, 112:]):
        assert abs(part.mean()) < 0.2
        assert abs(part.std() - 1) < 0.2


# ----------------------------------------------------------------------------------------------------- language


def test_a_mention_fits_one_object_only(world: list[WorldSample]) -> None:
    for sample in world[:50]:
        for thing in sample.scene:
            for name in mentions(sample.scene, thing, (("shape",), ("size", "shape"), ("colour", "shape"))):
                words = set(name.split())
                fits = [t for t in sample.scene if words <= {t.shape, t.colour, t.size}]
                assert fits == [thing]


def parse(phrase: str, scene: Scene) -> Thing:
    """The one object that "the small red circle" or "a red object" names."""
    words = set(phrase.split()) - {"the", "a", "object"}
    fits = [thing for thing in scene if words <= {thing.shape, thing.colour, thing.size}]
    assert len(fits) == 1, (phrase, scene)
    return fits[0]


def test_answers_are_true(world: list[WorldSample]) -> None:
    for sample in world:
        for question in sample.questions:
            words = question.text.removesuffix(" ?").split()
            assert question.answers == (answer_to(words, sample.scene),), question


def answer_to(words: list[str], scene: Scene) -> str:
    text = " ".join(words)
    if words[0] == "what":
        return str(getattr(parse(" ".join(words[3:]), scene), words[1]))
    if words[0] == "how":
        kind = words[2] if words[3] == "objects" else words[2].removesuffix("es" if "crosses" in text else "s")
        return str(sum(kind in (thing.colour, thing.shape) for thing in scene))
    if text.startswith("is there a"):
        return "yes" if any([thing.colour, thing.shape] == words[3:] for thing in scene) else "no"
    across = " left or right of " in text
    phrases = text.removeprefix("is ").split(" left or right of " if across else " above or below ")
    one, other = (parse(phrase, scene) for phrase in phrases)
    if across:
        return "left" if one.centre[0] < other.centre[0] else "right"
    return "above" if one.centre[1] < other.centre[1] else "below"


def test_captions_are_true_and_decide_a_hidden_colour(world: list[WorldSample]) -> None:
    for sample in world:
        for caption in sample.captions:
            parts = caption.replace(" , ", " and ").split(" and ")
            if " is " in caption and " of " not in caption and " above " not in caption and " below " not in caption:
                for part in parts:
                    name, colour = part.split(" is ")
                    assert parse(name, sample.scene).colour == colour
            elif " is " not in caption:
                for part in parts:
                    assert parse(part, sample.scene).colour in part.split()
                    parse(" ".join(word for word in part.split() if word not in COLOURS), sample.scene)
            else:
                for relation in ("left of", "right of", "above", "below"):
                    if relation in caption:
                        phrases = caption.split(f" is {relation} ")
                        question = ["is", *phrases[0].split(), *asked(relation), *phrases[1].split()]
                        assert answer_to(question, sample.scene) == relation.split()[0]


def asked(relation: str) -> list[str]:
    return ["left", "or", "right", "of"] if "of" in relation else ["above", "or", "below"]


def test_answers_are_balanced_per_form_and_per_words(world: list[WorldSample]) -> None:
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in world:
        for question in sample.questions:
            forms[form_of(question.id)][question.answers[0]] += 1
            words[question.text][question.answers[0]] += 1
    assert forms.keys() == ANSWERS.keys()
    for form, counts in forms.items():
        numbers = [counts[answer] for answer in ANSWERS[form]]
        assert sum(numbers) == counts.total()
        assert max(numbers) - min(numbers) <= 2
    for counts in words.values():
        assert max(counts.values()) - (min(counts.values()) if len(counts) > 1 else 0) <= 2


def test_colour_words_are_not_told_by_the_rest_of_a_caption(world: list[WorldSample]) -> None:
    colours: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for sample in world:
        for caption in sample.captions:
            named = [word for word in caption.split() if word in COLOURS]
            colours.update(named)
            pairs.update(pairwise(named))
    assert max(colours.values()) < 1.25 * min(colours.values())
    assert len(pairs) == 64
    assert max(pairs.values()) < 2.2 * pairs.total() / 64


def test_every_kind_is_used(world: list[WorldSample]) -> None:
    assert {form_of(question.id) for sample in world for question in sample.questions} == set(ANSWERS)
    assert len(CAPTIONS) == 3
    assert sum(most for _, most in QUESTIONS.values()) >= max(len(sample.questions) for sample in world) >= 8


def test_balance_refuses_what_would_tip_it() -> None:
    def candidate(answer: str) -> Candidate:
        return Candidate("form", f"text {answer}", answer, (Guess("form", answer, ("yes", "no")),))

    balance = Balance(slack=2)
    rng = generator(0, "test")
    assert [balance.choose([candidate("yes")], rng) is None for _ in range(3)] == [False, False, True]
    chosen = balance.choose([candidate("yes"), candidate("no")], rng)
    assert chosen is not None
    assert chosen.answer == "no"
    assert balance.choose([candidate("yes")], rng) is not None
