"""Does each objective teach by itself? One short run for each, on the shapes world, and one without the other modality.

    python -m tests.benchmarks.objectives [NAME ...]

Every run is `vlp pretrain` of a tiny model with one objective, judged on scenes that training has not seen. What is
reachable without the other modality is the same run with `data.without`, unless the objective's pairs are drawn so that
it is known: half of the pairs match, one of so many images is the right one. Captions are written, and patches guessed,
of the same scenes with one text for each that the scene decides (`tell`): of the world's own captions, many more are
true than its 3, and none says in which part of the picture a thing is.
Data and runs lie in runs/objectives; the table comes as Markdown, and stands in docs/objectives.md.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.world.scene import COLOURS, GRID
from data_tools.writer import ShardWriter
from tests.benchmarks.results import save
from vlp.data.build import build_index
from vlp.data.index import open_index
from vlp.data.shards import ShardReader
from vlp.distributed import world

RUNS = Path("runs/objectives")
WORLD, TOLD, PLACED = RUNS / "world", RUNS / "told", RUNS / "placed"
SCENES = 4000
PLAIN = "task.combine=all model.dropout=0 model.attention_dropout=0 optimizer.betas=[0.9,0.98] log.every=100"
BLIND = 0.4 / 80**2
"""Captions that can be right without an image: two objects, as 40 % of the scenes have, of 80 looks each."""
HIDDEN = "probability: 0.3, mask: 1, random: 0"
"""Captions are short, so more is hidden than usual."""


@dataclass(frozen=True)
class Trial:
    """One objective and how it is judged."""

    title: str
    """What is measured."""
    objectives: str
    """`task.objectives`, as on the command line."""
    metric: str
    settings: str = ""
    model: str = "uniter_tiny"
    data: Path = WORLD
    steps: int = 600
    without: str = ""
    """The modality that the run to compare with lacks; or else that level is known:"""
    level: float = 0.0
    below: str = ""
    """A second metric that is taken off the first."""


TRIALS = {
    "masked_language": Trial(
        "hidden colour words",
        f"{{mlm: {{kind: masked_language, {HIDDEN}}}}}",
        "word_accuracy",
        f"task.probe=[{','.join(COLOURS)}]",
        steps=1000,
        without="image",
    ),
    "whole_words": Trial(
        "hidden colour words",
        f"{{mlm: {{kind: masked_language, unit: word, {HIDDEN}}}}}",
        "word_accuracy",
        f"task.probe=[{','.join(COLOURS)}]",
        steps=700,
        without="image",
    ),
    "region_class_soft": Trial(
        "class of a hidden region", "{mrc: {kind: region_class}}", "mrc_accuracy", steps=400, without="text"
    ),
    "region_class_hard": Trial(
        "class of a hidden region",
        "{mrc: {kind: region_class, labels: hard}}",
        "mrc_accuracy",
        steps=400,
        without="text",
    ),
    "region_feature": Trial(
        "cosine of the feature of a hidden region", "{mrfr: {kind: region_feature}}", "mrfr_cosine", without="text"
    ),
    "region_contrast": Trial(
        "the feature of a hidden region, among 31",
        "{nce: {kind: region_contrast, negatives: 30}}",
        "nce_accuracy",
        without="text",
    ),
    # A patch is a cell of the world's grid, so what it hides shows in no other one.
    "patch_feature": Trial(
        "cosine of the pixels of a hidden patch",
        "{mpf: {kind: patch_feature}}",
        "mpf_cosine",
        "model=vilt_tiny model.image.source.patch=32 task.patch_hiding.probability=0.5",
        model="uniter_tiny_pixels",
        data=PLACED,
        steps=1200,
        without="text",
    ),
    # From random weights the pooled vector says nothing of words and regions together, so pairs begin to be told only
    # where noise is small and attention sharp: with the batches and the start of the others it stays at 50 %.
    "matching": Trial(
        "pairs told",
        "{itm: {kind: matching}}",
        "itm_accuracy",
        "batch.size=256 model.init_std=0.15 optimizer.learning_rate=0.001",
        steps=400,
        level=0.5,
    ),
    "contrast": Trial(
        "the one of 400 scenes that a caption is of, found first",
        "{itc: {kind: contrast, width: 64}}",
        "itc_text_to_image_recall@1",
        model="lxmert_tiny",
        steps=300,
        level=1 / 400,
    ),
    "contrast_momentum": Trial(
        "the one of 400 scenes that a caption is of, found first",
        "{itc: {kind: contrast, width: 64, momentum: {decay: 0.98, queue: 512, ramp: 100}}}",
        "itc_text_to_image_recall@1",
        model="lxmert_tiny",
        steps=300,
        level=1 / 400,
    ),
    "matching_hard": Trial(
        "pairs told, of the block",
        "{itm: {kind: matching, negatives: hard}, itc: {kind: contrast, width: 64}}",
        "itm_accuracy",
        model="lxmert_tiny",
        steps=300,
        level=0.5,
    ),
    "word_region_alignment": Trial(
        "cost of a mismatched pair above that of a matched one",
        "{itm: {kind: matching, weight: 0}, wra: {kind: word_region_alignment}}",
        "wra_distance_mismatched",
        steps=300,
        below="wra_distance_matched",
    ),
    "question_answering": Trial(
        "answers",
        "{qa: {kind: question_answering}}",
        "qa_accuracy",
        "task.texts=questions",
        steps=600,
        without="image",
    ),
    "prefix_language_next": Trial(
        "captions written, word by word the scene's",
        "{lm: {kind: prefix_language}}",
        "caption_exact_match",
        data=TOLD,
        steps=800,
        level=BLIND,
    ),
    "prefix_language_masked": Trial(
        "captions written, word by word the scene's",
        f"{{lm: {{kind: prefix_language, guess: masked, {HIDDEN}}}}}",
        "caption_exact_match",
        data=TOLD,
        steps=800,
        level=BLIND,
    ),
}


def command(name: str, without: str = "") -> str:
    """The run of a trial."""
    trial = TRIALS[name]
    run = RUNS / (name if not without else f"{name}-without-{without}")
    lacking = f"data.without={without} " if without else ""
    return (
        f"pretrain {trial.model} data.train={trial.data}/train data.val={trial.data}/dev tokenizer={RUNS}/tokenizer "
        f"run.dir={run} run.steps={trial.steps} {PLAIN} {lacking}{trial.settings} "
        f"{shlex.quote('task.objectives=' + trial.objectives)}"
    )


def run(arguments: str) -> dict[str, Any]:
    """The last evaluation of a run that is made here."""
    from vlp.cli import app

    words = shlex.split(arguments)
    directory = Path(next(word for word in words if word.startswith("run.dir=")).removeprefix("run.dir="))
    shutil.rmtree(directory, ignore_errors=True)
    start = time.monotonic()
    app(words, standalone_mode=False)
    last = json.loads((directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {**last, "seconds": time.monotonic() - start}


def measured(trial: Trial, found: dict[str, Any]) -> float:
    value = float(found[f"eval/{trial.metric}"])
    return value - float(found[f"eval/{trial.below}"]) if trial.below else value


def look(thing: Mapping[str, str]) -> str:
    """What an object looks like: "large red circle"."""
    return f"{thing['size']} {thing['colour']} {thing['shape']}"


def place(thing: Mapping[str, str]) -> str:
    """Where in the picture an object is, in words that the world's questions have too; nothing for the middle."""
    row, column = divmod(int(thing["cell"]), GRID)
    return " ".join(word for word in (("above", "", "below")[row], ("left", "", "right")[column]) if word)


def tell(directory: Path, split: str, words: Callable[[Mapping[str, str]], str]) -> None:
    """A split of the world with one caption for each scene: all of its objects, in the order in which one reads.

    Args:
        words: what is said of one object.
    """
    reader = ShardReader(open_index(WORLD / split))
    with ShardWriter(directory / split, 500) as writer:
        for shard in range(len(reader.index.manifest.shards)):
            table = reader.index.table(shard)
            for row, key in enumerate(table.keys):
                sample = reader.read(shard, row, image=True, regions=True, texts=False)
                scene = json.loads(reader.member(table, shard, row, "json") or b"")["scene"]
                things = sorted(scene, key=lambda thing: int(thing["cell"]))
                caption = " , ".join(words(thing) for thing in things)
                writer.write(key, sample.image, "jpg", sample.regions, [caption])
    build_index(directory / split)


def material() -> None:
    """The worlds and their tokenizer, made once."""
    from data_tools.cli import app

    if not (RUNS / "tokenizer").is_dir():
        app(["shapes", "--out", str(WORLD), "--samples", str(SCENES)], standalone_mode=False)
        tokenizer = ["tokenizer", str(WORLD / "train"), "--vocab-size", "200", "--out", str(RUNS / "tokenizer")]
        app(tokenizer, standalone_mode=False)
    for split in ("train", "dev"):
        if not (TOLD / split).is_dir():
            tell(TOLD, split, look)
        if not (PLACED / split).is_dir():
            tell(PLACED, split, lambda thing: f"{place(thing)} {look(thing)}".strip())


def main(names: Sequence[str]) -> None:
    material()
    rows, found = [], {}
    with world():
        for name in names or TRIALS:
            trial = TRIALS[name]
            own = run(command(name))
            other = run(command(name, trial.without)) if trial.without else None
            level = measured(trial, other) if other else trial.level
            source = f"measured without {trial.without}" if other else "by construction"
            found[name] = {"value": measured(trial, own), "level": level, "run": own, "without": other}
            rows.append(
                f"| `{name}` | {trial.title} | {measured(trial, own):.3f} | {level:.3f} ({source}) | {trial.steps} | "
                f"{own['seconds']:.0f} s |"
            )
            print(rows[-1], flush=True)
    print("| objective | what is judged | alone | without the other modality | steps | time |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))
    save("objectives", found)


if __name__ == "__main__":
    main(sys.argv[1:])
