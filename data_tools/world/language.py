"""What can be said and asked about a scene: every text that is true, and names only objects that nothing else fits.

Each function lists candidates; `Balance` chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

from data_tools.world.balance import Candidate, Guess
from data_tools.world.scene import COLOURS, SHAPES, SIZES, Scene, Thing

_COLOURS = tuple(COLOURS)
_SIZES = tuple(SIZES)
_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

MOST_COUNTED = 3
"""The answers to "how many" are 0 to this."""


def mentions(scene: Scene, thing: Thing, attributes: tuple[tuple[str, ...], ...]) -> list[str]:
    """The ways to name an object by some of its attributes ("small", "red", "circle") that no other object fits."""
    result = []
    for names in attributes:
        words = [getattr(thing, name) for name in names]
        if sum(words == [getattr(other, name) for name in names] for other in scene) == 1:
            result.append(" ".join(words if names[-1] == "shape" else [*words, "object"]))
    return result


# ------------------------------------------------------------------------------------------------- questions


def _question(form: str, text: str, answer: str, answers: tuple[str, ...]) -> Candidate:
    return Candidate(form, text, answer, (Guess(form, answer, answers), Guess(text, answer, answers)))


def colour_questions(scene: Scene) -> Iterator[Candidate]:
    """what colour is the small circle ?"""
    for thing in scene:
        for name in mentions(scene, thing, (("shape",), ("size", "shape"))):
            yield _question("colour", f"what colour is the {name} ?", thing.colour, _COLOURS)


def shape_questions(scene: Scene) -> Iterator[Candidate]:
    """what shape is the large red object ?"""
    for thing in scene:
        for name in mentions(scene, thing, (("colour",), ("size", "colour"))):
            yield _question("shape", f"what shape is the {name} ?", thing.shape, SHAPES)


def size_questions(scene: Scene) -> Iterator[Candidate]:
    """what size is the red circle ?"""
    for thing in scene:
        for name in mentions(scene, thing, (("shape",), ("colour",), ("colour", "shape"))):
            yield _question("size", f"what size is the {name} ?", thing.size, _SIZES)


def existence_questions(scene: Scene) -> Iterator[Candidate]:
    """is there a red circle ?"""
    present = {(thing.colour, thing.shape) for thing in scene}
    for colour in COLOURS:
        for shape in SHAPES:
            answer = "yes" if (colour, shape) in present else "no"
            yield _question("existence", f"is there a {colour} {shape} ?", answer, ("yes", "no"))


def relation_questions(scene: Scene) -> Iterator[Candidate]:
    """is the red circle left or right of the blue square ?"""
    named = [(thing, mentions(scene, thing, (("shape",), ("colour", "shape")))) for thing in scene]
    for (one, names), (other, other_names) in permutations(named, 2):
        for name in names:
            for other_name in other_names:
                if one.column != other.column:
                    text = f"is the {name} left or right of the {other_name} ?"
                    yield _question("side", text, _side(one, other), ("left", "right"))
                if one.row != other.row:
                    text = f"is the {name} above or below the {other_name} ?"
                    yield _question("height", text, _height(one, other), ("above", "below"))


def count_questions(scene: Scene) -> Iterator[Candidate]:
    """how many red objects are there ?"""
    answers = tuple(str(number) for number in range(MOST_COUNTED + 1))
    colours = [thing.colour for thing in scene]
    shapes = [thing.shape for thing in scene]
    kinds = [(f"{colour} objects", colours.count(colour)) for colour in COLOURS]
    kinds += [(_PLURALS[shape], shapes.count(shape)) for shape in SHAPES]
    for kind, number in kinds:
        if number <= MOST_COUNTED:
            yield _question("count", f"how many {kind} are there ?", str(number), answers)


QUESTIONS = {
    "colour": (colour_questions, 2),
    "shape": (shape_questions, 2),
    "size": (size_questions, 1),
    "existence": (existence_questions, 1),
    "relation": (relation_questions, 1),
    "count": (count_questions, 1),
}
"""The kinds of questions, and how many of each are asked of a scene at most."""


# -------------------------------------------------------------------------------------------------- captions


def _caption(kind: str, text: str, things: tuple[Thing, ...], names: tuple[str, ...]) -> Candidate:
    """A caption whose every colour word must be guessed from the image only: not from its noun, nor from its neighbour.

    `names` are unique without the colour, so that a hidden colour is decided even where all colours are hidden.
    """
    colours = [thing.colour for thing in things]
    guesses = [Guess(f"{kind} {name}", colour, _COLOURS) for name, colour in zip(names, colours, strict=True)]
    guesses += [Guess(f"{kind} after {a}", b, _COLOURS) for a, b in pairwise(colours)]
    guesses += [Guess(kind, colour, _COLOURS) for colour in colours]
    return Candidate(kind, text, "", tuple(guesses))


def _named(scene: Scene) -> list[tuple[Thing, str]]:
    ways = (("shape",), ("size", "shape"))
    return [(thing, name) for thing in scene for name in mentions(scene, thing, ways)]


def attribute_captions(scene: Scene) -> Iterator[Candidate]:
    """the small circle is red and the square is blue"""
    for (one, name), (other, other_name) in combinations(_named(scene), 2):
        if one is not other:
            text = f"the {name} is {one.colour} and the {other_name} is {other.colour}"
            yield _caption("attribute", text, (one, other), (name, other_name))


def relation_captions(scene: Scene) -> Iterator[Candidate]:
    """the small red circle is above the blue square"""
    for (one, name), (other, other_name) in combinations(_named(scene), 2):
        if one is other:
            continue
        for differ, relation in (
            (one.column != other.column, f"{_side(one, other)} of"),
            (one.row != other.row, _height(one, other)),
        ):
            if differ:
                text = f"the {_coloured(one, name)} is {relation} the {_coloured(other, other_name)}"
                yield _caption("relation", text, (one, other), (name, other_name))


def list_captions(scene: Scene) -> Iterator[Candidate]:
    """a small red circle , a large blue square and a small pink star"""
    named = [(thing, f"{thing.size} {thing.shape}") for thing in scene]
    named = [(thing, name) for thing, name in named if mentions(scene, thing, (("size", "shape"),))]
    for chosen in combinations(named, min(3, len(named))):
        phrases = [f"a {_coloured(thing, name)}" for thing, name in chosen]
        text = f"{' , '.join(phrases[:-1])} and {phrases[-1]}"
        things, names = zip(*chosen, strict=True)
        yield _caption("list", text, things, names)


CAPTIONS = {"attribute": attribute_captions, "relation": relation_captions, "list": list_captions}
"""The kinds of captions; a scene gets one of each."""


def _coloured(thing: Thing, name: str) -> str:
    size = f"{thing.size} " if name.startswith(thing.size) else ""
    return f"{size}{thing.colour} {thing.shape}"


def _side(one: Thing, other: Thing) -> str:
    return "left" if one.column < other.column else "right"


def _height(one: Thing, other: Thing) -> str:
    return "above" if one.row < other.row else "below"
