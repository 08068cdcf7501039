"""metrics.jsonl, plain lines, TensorBoard."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vlp.distributed import World
from vlp.errors import ConfigError
from vlp.train.logs import LogConfig, Logs, Spike
from vlp.train.trackers import WandbConfig

MAIN = World(0, 2, 0, torch.device("cpu"))
OTHER = World(1, 2, 1, torch.device("cpu"))


def record(step: int, loss: float = 2.0) -> dict[str, float]:
    return {"step": step, "loss": loss, "loss/mlm": loss, "lr": 1e-4, "grad_norm": 1.0, "tokens_per_second": 5.0}


def lines(directory: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def logs(
    directory: Path, world: World = MAIN, resume_from: int = 0, tensorboard: bool = False, every: int = 10
) -> Logs:
    config = LogConfig(every=every, tensorboard=tensorboard)
    return Logs(directory, config, world, steps=30, resume_from=resume_from, terminal=False)


def test_one_line_per_step_is_there_at_once(tmp_path: Path) -> None:
    with logs(tmp_path) as written:
        written.step(record(1))
        assert lines(tmp_path) == [record(1)]
        written.evaluation(1, {"accuracy": 0.5})
        assert lines(tmp_path)[1] == {"step": 1, "eval/accuracy": 0.5}


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    with logs(tmp_path) as written:
        written.step(record(1, float("nan")))
    assert lines(tmp_path)[0]["loss"] is None


def test_a_resumed_run_repeats_no_step_and_keeps_no_half_line(tmp_path: Path) -> None:
    with logs(tmp_path) as written:
        for step in range(1, 6):
            written.step(record(step))
        written.quarantine(2, [{"shard": "a"}])
        written.quarantine(5, [{"shard": "b"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with logs(tmp_path, resume_from=3) as written:
        written.step(record(4))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / "quarantine.jsonl").read_text() == '{"step": 2, "shard": "a"}\n'


def test_spikes_are_recorded_once_with_their_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs(tmp_path) as written:
        written.spike(3, Spike("mlm", 9.0, 2.0, 0.5), ["a", "b"])
        written.spike(7, Spike("itm", 5.0, 0.7, 0.1), ["c"])
    assert "step 3: loss of mlm leapt to 9 (recent mean 2, deviation 0.5)" in capsys.readouterr().out
    with logs(tmp_path, resume_from=5) as written:
        written.spike(7, Spike("itm", 5.0, 0.7, 0.1), ["c"])
    found = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert [(line["step"], line["objective"], line["examples"]) for line in found] == [
        (3, "mlm", ["a", "b"]),
        (7, "itm", ["c"]),
    ]


def bad(key: str, member: str = "jpg", data: str = "d") -> dict[str, str]:
    return {"data": data, "shard": "a.tar", "key": key, "member": member, "error": "does not decode"}


def test_a_bad_sample_is_recorded_once(tmp_path: Path) -> None:
    def told() -> list[tuple[int, str, str, str]]:
        lines = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
        return [(line["step"], line["data"], line["key"], line["member"]) for line in lines]

    with logs(tmp_path) as written:
        written.quarantine(1, [bad("x"), bad("x"), bad("y")])
        written.quarantine(9, [bad("y"), bad("x", "json"), bad("x", data="e")])
    first = [(1, "d", "x", "jpg"), (1, "d", "y", "jpg"), (9, "d", "x", "json"), (9, "e", "x", "jpg")]
    assert told() == first
    with logs(tmp_path, resume_from=4) as written:  # what steps after the checkpoint recorded is recorded anew
        written.quarantine(5, [bad("x"), bad("x", "json")])
        written.quarantine(6, [bad("y"), bad("x", "json")])
    assert told() == [*first[:2], (5, "d", "x", "json")]


def test_plain_lines_come_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs(tmp_path, every=10) as written:
        for step in range(1, 26):
            written.step(record(step))
        written.evaluation(25, {"accuracy": 0.5})
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in shown] == ["1/30", "10/30", "20/30", "25:"]
    assert "loss 2.0000  mlm 2.0000  lr 1.00e-04" in shown[0]
    assert shown[-1] == "step 25: evaluation: accuracy 0.5"


def test_only_rank_0_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs(tmp_path, world=OTHER) as written:
        written.step(record(1))
        written.note("hello")
        written.evaluation(1, {"accuracy": 0.5})
    assert not list(tmp_path.iterdir())
    assert not capsys.readouterr().out


def test_tensorboard_holds_the_numbers(tmp_path: Path) -> None:
    with logs(tmp_path, tensorboard=True) as written:
        written.step(record(1, 3.0))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 3.0)]


class FakeWandb(ModuleType):
    """As much of wandb as is used; keeps what it is told, and a step once, as wandb does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = SimpleNamespace(Error=RuntimeError)
        self.util = SimpleNamespace(generate_id=lambda: f"id{len(self.started)}")
        self.started: list[dict[str, Any]] = []
        self.rows: dict[str, dict[int, dict[str, float]]] = {}
        self.finished = 0
        self.refuses = False

    def init(self, **settings: Any) -> SimpleNamespace:
        if self.refuses:
            raise RuntimeError("api key not configured")
        self.started.append(settings)
        rows = self.rows.setdefault(settings["id"], {})

        def log(numbers: dict[str, float], step: int) -> None:
            if step >= max(rows, default=0):
                rows.setdefault(step, {}).update(numbers)

        def finish() -> None:
            self.finished += 1

        return SimpleNamespace(log=log, finish=finish)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def tracked(directory: Path, resume_from: int = 0, world: World = MAIN) -> Logs:
    config = LogConfig(tensorboard=False, wandb=WandbConfig(project="p", mode="offline"))
    return Logs(directory, config, world, steps=9, resume_from=resume_from, facts={"seed": 3}, terminal=False)


def test_wandb_gets_steps_and_evaluations_and_a_resumed_run_goes_on_with_its_own(
    tmp_path: Path, wandb: FakeWandb
) -> None:
    with tracked(tmp_path / "a") as written:
        written.step(record(1, 3.0))
        written.step(record(2, float("nan")))
        written.evaluation(2, {"accuracy": 0.5})
    with tracked(tmp_path / "a", resume_from=1) as written:
        written.step(record(2, 9.0))
        written.step(record(3, 1.0))
    (first, again), (rows,) = wandb.started, wandb.rows.values()
    assert first["id"] == again["id"]
    assert (first["project"], first["mode"], first["name"]) == ("p", "offline", "a")
    assert first["config"] == {"seed": 3}
    assert wandb.finished == 2
    assert [row.get("loss") for row in rows.values()] == [3.0, 9.0, 1.0]
    assert rows[2]["eval/accuracy"] == 0.5
    with tracked(tmp_path / "b"):
        assert wandb.started[-1]["id"] != first["id"]


def test_wandb_belongs_to_rank_0(tmp_path: Path, wandb: FakeWandb) -> None:
    with tracked(tmp_path, world=OTHER) as written:
        written.step(record(1))
    assert not wandb.started


def test_wandb_that_is_missing_or_refuses_is_told_with_a_remedy(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb.refuses = True
    with pytest.raises(ConfigError, match=r"log.wandb: api key .*offline"):
        tracked(tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is missing: pip install wandb"):
        tracked(tmp_path)


def test_the_bar_shows_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Logs(tmp_path, LogConfig(tensorboard=False), MAIN, steps=30, terminal=True) as written:
        written.step(record(7))
        written.note("a note [with brackets]")
    shown = capsys.readouterr().out
    assert "a note [with brackets]" in shown
    assert "7/30" in shown
