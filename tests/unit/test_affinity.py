"""Ranks share the cores of a machine, each on one NUMA node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlp import affinity
from vlp.affinity import Share, cores_in, divided, nodes_of, share_of
from vlp.launch import launch

EIGHT = frozenset(range(8))
TWO_NODES = [frozenset({0, 1, 4, 5}), frozenset({2, 3, 6, 7})]


def test_cores_of_a_list() -> None:
    assert cores_in("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cores_in("\n") == frozenset()


def test_nodes_come_in_their_order(tmp_path: Path) -> None:
    for number, cores in {0: "0-1", 10: "4-5", 2: "2-3", 11: ""}.items():
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{cores}\n")
    (tmp_path / "possible").write_text("0-11\n")
    assert nodes_of(tmp_path) == [{0, 1}, {2, 3}, {4, 5}, frozenset()]


@pytest.mark.parametrize(("ranks", "threads"), [(1, 8), (2, 4), (3, 2), (16, 1)])
def test_one_node_is_shared_without_binding(ranks: int, threads: int) -> None:
    assert divided(ranks - 1, ranks, EIGHT, [EIGHT]) == Share(threads, None)


def test_neighbouring_ranks_share_a_node() -> None:
    shares = [divided(rank, 4, EIGHT, TWO_NODES) for rank in range(4)]
    assert [share.cores for share in shares] == [TWO_NODES[0], TWO_NODES[0], TWO_NODES[1], TWO_NODES[1]]
    assert {share.threads for share in shares} == {2}


def test_ranks_that_nodes_do_not_divide() -> None:
    shares = [divided(rank, 3, EIGHT, TWO_NODES) for rank in range(3)]
    assert [(share.cores, share.threads) for share in shares] == [
        (TWO_NODES[0], 2),
        (TWO_NODES[0], 2),
        (TWO_NODES[1], 4),
    ]


def test_fewer_ranks_than_nodes_lose_no_core() -> None:
    assert divided(0, 1, EIGHT, TWO_NODES) == Share(8, None)


def test_cores_that_are_not_allowed_are_no_one_s() -> None:
    allowed = frozenset({1, 2, 3, 6, 7})
    assert divided(0, 2, allowed, TWO_NODES) == Share(1, frozenset({1}))
    assert divided(1, 2, allowed, TWO_NODES) == Share(4, TWO_NODES[1])
    assert divided(0, 2, frozenset({2, 3}), TWO_NODES) == Share(1, None)  # all on one node


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores are bound on Linux alone")
def test_launched_ranks_keep_to_their_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core cannot be shared")
    for number, core in enumerate(cores[:2]):
        (tmp_path / f"node{number}").mkdir()
        (tmp_path / f"node{number}" / "cpulist").write_text(f"{core}\n")
    monkeypatch.setattr(affinity, "NODES", tmp_path)
    assert share_of(1, 2) == Share(1, frozenset({cores[1]}))
    package = tmp_path / "vlp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        f"import os\nopen('{tmp_path}/said-' + os.environ['RANK'], 'w').write(str(os.sched_getaffinity(0)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launch([], 2) == 0
    assert [(tmp_path / f"said-{rank}").read_text() for rank in range(2)] == [f"{{{core}}}" for core in cores[:2]]
