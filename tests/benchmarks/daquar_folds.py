"""DAQUAR in five folds by image: does the model see? With images against questions alone, on the same questions.

    python -m tests.benchmarks.daquar_folds --data ../shared/data --out runs/daquar_folds [KEY=VALUE ...]

Single-answer questions only. Trains ten models by the shipped `daquar` config (overrides go to all); a fold that
is there already is not trained again, and one that was stopped goes on. Prints both accuracies and the paired 95 %
interval of their difference, drawn by image, and writes them to OUT/result.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_tools.cli import main as vlp_data
from tests.e2e.conftest import call, done
from vlp.assemble import open_dataset
from vlp.cli import main as vlp
from vlp.distributed import world
from vlp.evaluate import evaluate
from vlp.metrics.bootstrap import interval
from vlp.tasks.outcomes import Outcome
from vlp.tasks.saved import load_trained

FOLDS = tuple(f"f{number}" for number in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The folder of real data.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    given = parser.parse_args()
    shards = _shards(given.data, given.out)
    seeing: dict[str, Outcome] = {}
    asking: dict[str, Outcome] = {}
    with world():  # one process group for all: DeepSpeed keeps that of its first start
        for fold in FOLDS:
            seeing |= _judged(given.out, shards, fold, "null", given.overrides)
            asking |= _judged(given.out, shards, fold, "image", given.overrides)
    result = _compared(seeing, asking)
    (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def _shards(data: Path, out: Path) -> Path:
    """Folds of the questions that have one answer, and a tokenizer."""
    shards = out / "data"
    if (out / "tokenizer").exists():
        return shards
    out.mkdir(parents=True, exist_ok=True)
    lines = (data / "daquar" / "qa.894.raw.train.format_triple").read_text(encoding="utf-8").splitlines()
    triples = [lines[start : start + 3] for start in range(0, len(lines) - 2, 3)]
    single = out / "single.txt"
    kept = [line for triple in triples if "," not in triple[1] for line in triple]
    single.write_text("\n".join(kept) + "\n", encoding="utf-8")
    split = ",".join(f"{fold}=0.2" for fold in FOLDS)
    images = ("--images", data / "daquar" / "images", "--regions", data / "regions" / "daquar")
    done(call(vlp_data, "daquar", "--qa", single, *images, "--split", split, "--out", shards))
    folders = [shards / fold for fold in FOLDS]
    done(call(vlp_data, "tokenizer", *folders, "--vocab-size", 1500, "--out", out / "tokenizer"))
    return shards


def _judged(out: Path, shards: Path, fold: str, without: str, overrides: list[str]) -> dict[str, Outcome]:
    """The outcomes of a fold's questions by a model that was trained on the other folds; by fold and question id."""
    run = out / f"{fold}_without_{without}"
    if not (run / "model").exists():
        others = ", ".join(str(shards / other) for other in FOLDS if other != fold)
        data = (f"data.train=[{others}]", f"data.val={shards / fold}", f"data.without={without}")
        given = (*data, f"tokenizer={out / 'tokenizer'}", f"run.dir={run}", "checkpoint.every=200", *overrides)
        done(call(vlp, "finetune", "daquar", *given, *(["--resume"] if (run / "checkpoints").exists() else [])))
    trained = load_trained(run / "model")
    dataset = open_dataset(shards / fold, "questions", trained.task.setting.text)
    with world() as ranks:
        judgement = evaluate(trained, dataset, ranks, micro_tokens=4096)
    print(f"{fold} without {without}: {judgement.metrics}", flush=True)
    return {f"{fold}/{outcome.id}": outcome for outcome in judgement.outcomes}


def _compared(seeing: dict[str, Outcome], asking: dict[str, Outcome]) -> dict[str, object]:
    ids = sorted(seeing)
    assert ids == sorted(asking)
    scores = [(seeing[id].scores["vqa_accuracy"], asking[id].scores["vqa_accuracy"]) for id in ids]
    places = [seeing[id].place for id in ids]
    gains = [one - other for one, other in scores]
    return {
        "questions": len(ids),
        "images": len(set(places)),
        "with_images": sum(one for one, _ in scores) / len(ids),
        "questions_alone": sum(other for _, other in scores) / len(ids),
        "gain": sum(gains) / len(ids),
        "gain_95": interval(gains, places),
    }


if __name__ == "__main__":
    main()
