"""The `vlp` command. Heavy imports wait until a command runs, so that `--help` is quick."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vlp.errors import VlpError

app = typer.Typer(
    help="Pre-train vision-language transformers, fine-tune them, and extract their features.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped config.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="section.key=value, as in batch.size=64 model.dropout=0.2.", metavar="KEY=VALUE"),
]
ModelName = Annotated[
    str, typer.Argument(help="A YAML file, the name of a shipped model, or the model/ of a run.", show_default=False)
]
ModelOverrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value of the model, as in text.layer.width=256.", metavar="KEY=VALUE"),
]
Nproc = Annotated[int, typer.Option(help="Start so many ranks on this machine.", min=1)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in run.dir from its newest checkpoint.")]
Model = Annotated[Path, typer.Option(help="The model/ directory of a run.", show_default=False)]
AnyModel = Annotated[
    str, typer.Option("--model", help="The model/ directory of a run, or a hub id.", show_default=False)
]
Data = Annotated[Path, typer.Option(help="A directory of indexed shards.", show_default=False)]
Tokens = Annotated[int, typer.Option(help="Most tokens of a batch; bounds memory.", min=1)]
Precision = Annotated[str, typer.Option(help="Of weights and arithmetic: fp32 or bf16.")]


@app.callback()
def _started(
    local_rank: Annotated[
        int | None, typer.Option("--local_rank", hidden=True, help="From `deepspeed --module`.")
    ] = None,
) -> None:
    """Pre-train vision-language transformers, fine-tune them, and extract their features."""
    # The environment tells the rank too, so nothing is done with the option but to bear it.


@app.command()
def pretrain(config: Config, overrides: Overrides = None, nproc: Nproc = 1, resume: Resume = False) -> None:
    """Pre-train a model as a config says."""
    if _launched(nproc):
        return
    from vlp.job import train

    _finish(train(config, overrides or [], "pretrain", resume=resume))


@app.command()
def finetune(config: Config, overrides: Overrides = None, nproc: Nproc = 1, resume: Resume = False) -> None:
    """Fine-tune a trained model for a task."""
    if _launched(nproc):
        return
    from vlp.job import train

    _finish(train(config, overrides or [], "finetune", resume=resume))


@app.command()
def evaluate(
    model: Model,
    data: Data,
    task: Annotated[
        str | None, typer.Option(help="pretrain, vqa, retrieval, classify; by default what the model was trained for.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the report as JSON here.")] = None,
    results: Annotated[Path | None, typer.Option(help="Write the answers as the VQA challenge's results file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page of failures, with pictures.")] = None,
    failures: Annotated[int, typer.Option(help="Failures on that page.", min=1)] = 100,
    without: Annotated[str | None, typer.Option(help="Leave out image or text, to see what the other does.")] = None,
    limit: Annotated[int | None, typer.Option(help="Judge only so many examples (retrieval: images).", min=1)] = None,
    folds: Annotated[int | None, typer.Option(help="Of retrieval: rank within so many parts.", min=1)] = None,
    micro_tokens: Tokens = 8192,
    precision: Precision = "fp32",
    nproc: Nproc = 1,
) -> None:
    """Judge a trained model on a dataset."""
    if _launched(nproc):
        return
    from vlp.inference import Asked, evaluate_model

    asked = Asked(task, without, folds, limit, out, results, html, failures)
    evaluate_model(model, data, asked, micro_tokens=micro_tokens, precision=precision)


@app.command()
def extract(
    model: AnyModel,
    data: Annotated[
        str, typer.Option(help="Indexed shards, a folder of images, or a .csv, .tsv or .jsonl file of pairs.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the features; an extraction that was killed goes on there.")],
    what: Annotated[
        str,
        typer.Option(
            help="By commas: pooled, text, image, text.unimodal, image.unimodal, text.layer.N, image.layer.N, "
            "text.vector, image.vector, itm, attention, attention.N."
        ),
    ] = "pooled",
    format: Annotated[str, typer.Option(help="Of the files: parquet, npz, safetensors or webdataset.")] = "parquet",
    dtype: Annotated[
        str, typer.Option(help="Of numbers in the files: fp32, fp16, or bf16 (safetensors only).")
    ] = "fp32",
    texts: Annotated[
        str | None,
        typer.Option(help="Of shards: captions, questions, both, or none; by default what the model was trained with."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Of a table, what it calls ours: image=file,text=title,key=sku.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Of a table: folder that its images' paths are relative to.")
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="Of images or a table: folder with <key>.npz, for a model that reads regions.")
    ] = None,
    part_examples: Annotated[
        int,
        typer.Option(help="Most examples saved at once: of a file, but tars of shards are cut as they are.", min=1),
    ] = 1024,
    micro_tokens: Tokens = 8192,
    precision: Annotated[str, typer.Option(help="Of weights and arithmetic: fp32, fp16 or bf16.")] = "fp32",
    workers: Annotated[int, typer.Option(help="Processes of each rank that read ahead.", min=0)] = 0,
    nproc: Nproc = 1,
) -> None:
    """Write the features of every example of some data."""
    if _launched(nproc):
        return
    from vlp.extraction import Inputs, extract_features
    from vlp.features.job import Request

    request = Request(what, format, dtype, part_examples)  # type: ignore[arg-type]
    inputs = Inputs(data, texts, columns, images, regions)
    extract_features(model, inputs, out, request, micro_tokens=micro_tokens, precision=precision, workers=workers)


@app.command()
def index(
    features: Annotated[
        Path, typer.Option(help="What `vlp extract --what image.vector,text.vector` wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the index.", show_default=False)],
    kind: Annotated[str, typer.Option(help="exact, ivf or hnsw.")] = "exact",
) -> None:
    """Build a search index of extracted vectors, and measure what it finds (shards are indexed by vlp-data index)."""
    from vlp.searching import build

    build(features, out, kind)


@app.command()
def search(
    index: Annotated[Path, typer.Option(help="What `vlp index` wrote.", show_default=False)],
    text: Annotated[str | None, typer.Option(help="Words to search by.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo to search by.")] = None,
    regions: Annotated[Path | None, typer.Option(help="Its regions (npz), for a model that reads them.")] = None,
    model: Annotated[str | None, typer.Option(help="By default the one that the vectors came from.")] = None,
    data: Annotated[str | None, typer.Option(help="By default what the features were extracted of.")] = None,
    side: Annotated[
        str | None, typer.Option("--for", help="images or texts; by default images for words, texts for a photo.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many are shown.", min=1)] = 10,
    rerank: Annotated[
        int,
        typer.Option(
            help="So many of the nearest are ranked anew by the model's head for matching; the best K are shown.", min=0
        ),
    ] = 0,
    breadth: Annotated[
        float, typer.Option(help="Of an ivf or hnsw search: 2 looks at twice as many candidates (up to 1000).")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
) -> None:
    """Find images or texts by words or by a photo."""
    from vlp.searching import search as run

    means = {"regions": regions, "model": model, "data": data, "side": side}
    run(index, text, image, **means, k=k, rerank=rerank, breadth=breadth, as_json=as_json)  # type: ignore[arg-type]


@app.command()
def demo(
    model: AnyModel,
    index: Annotated[Path | None, typer.Option(help="What `vlp index` wrote of this model's vectors.")] = None,
    data: Annotated[str | None, typer.Option(help="By default what the index was made of.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 shows the page to other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 7860,
) -> None:
    """Serve a page to ask about photos, to search, and to see what words look at."""
    from vlp.demo.serve import serve

    serve(model, index, data, host, port)


@app.command()
def describe(
    config: ModelName,
    overrides: ModelOverrides = None,
    text_tokens: Annotated[int, typer.Option(help="Of the example whose operations are counted.", min=3)] = 20,
    regions: Annotated[int, typer.Option(help="Of its image, for a model that reads regions.", min=0)] = 36,
) -> None:
    """Show a model config: its blocks, who looks at whom, parameters and operations."""
    from vlp.describe import describe_model

    describe_model(config, overrides or [], text_tokens=text_tokens, regions=regions)


@app.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(help="A published checkpoint; with --to, the model/ directory of a run.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write; with --to, a file.", show_default=False)],
    source: Annotated[str | None, typer.Option("--from", help="The kind of checkpoint it is.", metavar="NAME")] = None,
    target: Annotated[str | None, typer.Option("--to", help="The kind to write.", metavar="NAME")] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped model.")] = None,
    official_config: Annotated[Path | None, typer.Option(help="The authors' own config, instead of --config.")] = None,
) -> None:
    """Turn a checkpoint that authors published into a model, and back; every tensor is accounted for."""
    from vlp.convert import convert as run

    run(file, source=source, target=target, config=config, official=official_config, out=out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)],
    step: Annotated[int | None, typer.Option(help="Of the checkpoint; the newest by default.", min=1)] = None,
    best: Annotated[bool, typer.Option("--best", help="The checkpoint of the best evaluation instead.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where to; by default model/ in the run's directory.")] = None,
) -> None:
    """Write the model of a run's checkpoint."""
    from vlp.export import export_run

    print(f"model: {export_run(run, step, best=best, out=out)}")


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help="A run's YAML file or shipped name, or a model's.", show_default=False)],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="Ranks over all nodes.", min=1)] = 8,
    gpu_memory: Annotated[float, typer.Option(help="GiB of each GPU.", min=0.1)] = 80.0,
    nodes: Annotated[int | None, typer.Option(help="Machines; one for every 8 GPUs by default.", min=1)] = None,
    peak: Annotated[float | None, typer.Option(help="TFLOPS of a GPU in the run's precision (312).", min=0.001)] = None,
    mfu: Annotated[
        float | None, typer.Option(help="Share of the peak that is reached (0.4).", min=0.001, max=1)
    ] = None,
    text_tokens: Annotated[
        int | None, typer.Option(help="Of an example, specials included; the data's mean, or 20.", min=3)
    ] = None,
    regions: Annotated[int | None, typer.Option(help="Of an image; the data's mean, or 36.", min=1)] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="The memory of ranks that are processes without a GPU.")] = False,
) -> None:
    """Work out what a run needs before it is launched: memory, time, network, data."""
    from vlp.plan.show import plan_run

    plan_run(
        config,
        overrides or [],
        gpus=gpus,
        gpu_memory=gpu_memory,
        nodes=nodes,
        peak=peak,
        mfu=mfu,
        text_tokens=text_tokens,
        regions=regions,
        cpu=cpu,
    )


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(help="A run's config, to check its data too.")] = None,
    overrides: Overrides = None,
    build: Annotated[bool, typer.Option("--build", help="Compile now what the config needs compiled.")] = False,
) -> None:
    """Check whether this machine is fit for a run."""
    from vlp.doctor import examine, show

    findings = examine(config, overrides or [], build)
    show(findings)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _launched(nproc: int) -> bool:
    """Start the same command on several ranks, if asked to and not one of them already."""
    if nproc == 1 or "RANK" in os.environ:
        return False
    from vlp.launch import launch

    code = launch(sys.argv[1:], nproc)
    if code:
        raise typer.Exit(code)
    return True


def _finish(outcome: Any) -> None:
    """A run that a signal stopped is not a success to a script."""
    if not outcome.finished:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a user's mistake gives one sentence and exit code 2 or 1, no traceback."""
    # A request for a checkpoint that comes before the first step must not end the process, as it would by default.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        app(prog_name="vlp")
    except VlpError as error:
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that may not be written
        place = f"{error.filename}: " if error.filename else ""
        print(f"vlp: {place}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("vlp: interrupted", file=sys.stderr)
        sys.exit(130)
