"""plan: it shows what is there and what is to make, and makes nothing. Its forecasts: rates are of one device."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_run import call, folders, made_point, tiny, typed
from toy_stages import Copy
from toy_store import tree

from src.experiment.forecast import device_seconds, rates, seconds
from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.kernel.artifact import Node
from src.kernel.record import RECORD, read_record
from src.kernel.store import Store

EIGHT = ["experiment=mistral_7b_pairrm_sppo", "hardware=8xa100_80gb", "iter=1"]
ANSWERS = "it1/responses"
Capture = pytest.CaptureFixture[str]


def rows_of_plan(text: str) -> dict[str, list[str]]:
    """Return artifact or stage -> the other cells of its line."""
    cells = [[cell.strip() for cell in line.strip("│\n").split("│")] for line in text.splitlines() if "│" in line]
    return {name: rest for name, *rest in cells if name}


def test_plan_shows_what_is_kept_and_to_make_and_makes_nothing(tmp_path: Path, capsys: Capture) -> None:
    words, store = tiny(Path("nowhere"), tmp_path, "iter=2"), Store(tmp_path / "store")
    nodes = {node.name: node for node in nodes_of(typed(*words))}
    assert call("plan", *words) == 0
    assert not store.root.exists() and not (tmp_path / "runs").exists()
    text = capsys.readouterr().out
    assert {name: cells[1] for name, cells in rows_of_plan(text).items()} == dict.fromkeys(nodes, "to make")
    assert f"{len(nodes)} of {len(nodes)} to make" in text

    prompts, responses = nodes["it1/prompts"], nodes["it1/responses"]
    store.make(prompts)
    store.path(responses).with_name(f"{responses.key}.partial").mkdir(parents=True)
    before = tree(tmp_path)
    assert call("plan", *words) == 0
    assert tree(tmp_path) == before
    rows = rows_of_plan(text := capsys.readouterr().out)
    assert rows["it1/prompts"] == [prompts.key[:8], "kept", "", "4", ""]
    assert rows["it1/responses"][:4] == [responses.key[:8], "to resume", "it1/prompts, base/policy", "4"]
    assert rows["it2/prompts"][1] == "to make" and f"{len(nodes) - 1} of {len(nodes)} to make" in text


def test_a_forecast_is_the_median_rate_of_records_of_the_same_workload(tmp_path: Path, capsys: Capture) -> None:
    """4 prompts x 3 answers at 1, 10 and 100 seconds per answer: 120 s. Records of interrupted stages do not count."""
    words, store = tiny(Path("nowhere"), tmp_path, "iter=1", "~hardware.seconds_per_unit.embedded"), tmp_path / "store"
    node = node_of(typed(*words))
    for rate, resumed in [(1, False), (10, False), (100, False), (7000, True), (8000, True)]:
        leave_record(Store(store), node, rate, resumed)
    assert call("plan", *words) == 0
    rows = rows_of_plan(text := capsys.readouterr().out)
    assert (rows["it1/responses"][-1], rows["it1/ranking"][-1]) == ("2 min", "not measured")
    assert re.search(r"to make, about .* \(rates from records\); \d+ without a measured rate", text)


# Rates ------------------------------------------------------------------------------------------------------------


def node_of(run: Run, name: str = ANSWERS) -> Node:
    return next(node for node in nodes_of(run) if node.name == name)


def in_job(*words: str) -> Run:
    """Return the run as a SLURM job has it."""
    return typed(*words, "hardware.generation.workers=1", "hardware.ranking.workers=1")


def leave_record(store: Store, node: Node, rate: float, resumed: bool = False) -> None:
    """Leave the record of a stage of the node's workload that took `rate` seconds per unit."""
    folder = store.make(Node(node.name, Copy(text=f"{node.workload} {rate}"), work=5, workload=node.workload))
    (folder / RECORD).write_text(json.dumps(read_record(folder) | {"seconds": 5 * rate, "resumed": resumed}))


def test_a_record_says_how_many_devices_its_stage_takes() -> None:
    whole, job = typed(*EIGHT), in_job(*EIGHT)
    for name, devices in {"responses": (8, 1), "ranking": (8, 1), "reference": (1, 1), "policy": (8, 8)}.items():
        nodes = [node_of(run, f"it1/{name}") for run in (whole, job)]
        assert [int(node.workload.split()[-1]) for node in nodes] == list(devices), name
        assert nodes[0].key == nodes[1].key and nodes[0].workload.split()[:-1] == nodes[1].workload.split()[:-1]


def test_hours_are_those_of_the_devices_that_worked(tmp_path: Path, capsys: Capture) -> None:
    """.8 s an answer on one device is .1 s on eight, whoever has made it; a plan and a sweep's plan say the same."""
    run, job = typed(*EIGHT), in_job(*EIGHT)
    node = node_of(run)
    assert node.work
    for made, rate in ((run, 0.1), (job, 0.8)):
        words = [*EIGHT, *folders(tmp_path / str(rate))]
        store = Store(tmp_path / str(rate) / "store")
        leave_record(store, node_of(made), rate)
        known = rates([made_point(run)], store)
        assert device_seconds(node, known) == pytest.approx(0.8 * node.work)
        assert seconds(node, known) == pytest.approx(0.1 * node.work)
        assert seconds(node_of(job), rates([made_point(job)], store)) == pytest.approx(0.8 * node.work)
        assert call("plan", *words) == call("plan", "-m", *words, "method.eta=1,2") == 0
        one, sweep = capsys.readouterr().out.split("one graph")
        assert rows_of_plan(one)[ANSWERS][-1] == f"{0.1 * node.work / 3600:.1f} h"
        assert rows_of_plan(sweep)["it1 generation"][-2:] == [f"{n * 0.8 * node.work / 3600:.2f}" for n in (1, 2)]


def test_what_is_assumed_is_spread_over_all_devices(tmp_path: Path) -> None:
    run = typed(*EIGHT)
    known = rates([made_point(run)], Store(tmp_path))
    for node in nodes_of(run):
        if needed := seconds(node, known):
            assert device_seconds(node, known) == pytest.approx(8 * needed)


def test_llm_blender_ranks_on_one_device_and_the_model_of_its_template_costs_nothing(tmp_path: Path) -> None:
    costs = []
    for variant in ("paper", "code"):
        run = typed("experiment=mistral_7b_pairrm_sppo", f"+variant={variant}")
        known, (node,) = (
            rates([made_point(run)], Store(tmp_path)),
            [n for n in nodes_of(run) if n.name == "it1/ranking"],
        )
        costs.append((device_seconds(node, known), seconds(node, known)))
    (devices, hours), (others, longer) = costs
    assert devices and hours and (others, longer) == pytest.approx((devices, 8 * hours))


def test_a_record_replaces_the_hardwares_table(tmp_path: Path) -> None:
    run, store = typed("iter=1", "hardware.generation.workers=2"), Store(tmp_path)
    node, table = node_of(run), run.hardware.seconds_per_unit["smollm2_135m_instruct"]["responses"]
    for rate, source in ((table, "the hardware's table"), (0.125, "records")):
        known = rates([made_point(run)], store)
        assert node.work and known["responses smollm2_135m_instruct cpu"].source == source
        assert seconds(node, known) == device_seconds(node, known) == rate * node.work
        leave_record(store, node, 0.125)
