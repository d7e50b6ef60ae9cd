"""Benchmarks as part of a run: added, changed and cleaned around, in reports, metrics, cards and W&B's families."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import metadata_load
from tiny_run import ROOT, World, call, folders, tiny, typed

from src.artifact import Node
from src.config import UserError
from src.evaluation.metrics import write_metrics
from src.evaluation.plan import RESERVED, of_benchmark
from src.generation.stage import Generate
from src.provenance import CARD
from src.tracking.families import TRIAL, experiment_of, family_of, job_type_of
from src.tracking.metrics import METRICS

Capture = pytest.CaptureFixture[str]
MATRIX = "benchmark=win_matrix"


@pytest.fixture(scope="module")
def world(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two iterations, and then a matrix of its policies."""
    place = tmp_path_factory.mktemp("world")
    made = World(place, [*tiny(llama, place), "name=mine"])
    assert made.run("iter=2") == 0
    assert made.run("iter=2", MATRIX) == 0
    return made


def rows(world: World) -> list[dict[str, float]]:
    return [json.loads(line) for line in (world.folder / METRICS).read_text().splitlines()]


@pytest.mark.full
def test_a_benchmark_added_to_a_finished_run_is_shown_everywhere(world: World) -> None:
    report = (world.folder / "report.md").read_text()
    assert "## Benchmarks" in report and "plots/win_matrix_it2_matrix.png" in report
    assert (world.folder / "plots" / "win_matrix_it2_matrix.png").read_bytes()
    told = [row for row in rows(world) if "win_matrix/it2_over_base" in row]
    assert [row["iteration"] for row in told] == [2] and told[0]["win_matrix/items"] == 6
    card = world.artifact("it2/policy") / CARD
    (model,) = metadata_load(card)["model-index"]  # pyright: ignore
    (found,) = [result for result in model["results"] if result["dataset"]["type"] == "win_matrix"]
    assert {"low", "high"} <= found["metrics"][0]["args"].keys()


@pytest.mark.full
def test_the_same_run_without_the_word_keeps_what_is_shown(world: World) -> None:
    before = {path: path.read_bytes() for path in (world.folder / METRICS, world.folder / "report.md")}
    assert world.run("iter=2") == 0
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.full
def test_clean_leaves_what_a_benchmark_made(world: World, capsys: Capture) -> None:
    made = world.artifact("it2/win_matrix/scores").resolve()
    assert world.run("iter=2", MATRIX) == 0
    capsys.readouterr()
    assert call("clean", "--yes", *world.words, *folders(world.place)) == 0
    assert made.is_dir() and list((world.place / "store" / ".cells").glob("responses-*"))
    assert call("verify", *world.words, *folders(world.place)) == 0


@pytest.mark.full
def test_another_setting_replaces_the_benchmark_alone(world: World) -> None:
    policies = [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)]
    scores = world.artifact("it2/win_matrix/scores").resolve()
    other = world.run("iter=2", MATRIX, "benchmark.win_matrix.of=[base,it2]")
    assert other == 0 and world.artifact("it2/win_matrix/scores").resolve() != scores
    assert [world.artifact(f"it{t}/policy").resolve() for t in (1, 2)] == policies
    assert world.run("iter=2", MATRIX) == 0
    assert world.artifact("it2/win_matrix/scores").resolve() == scores


@pytest.mark.full
def test_a_damaged_config_of_a_run_folder_is_written_again(world: World) -> None:
    (world.folder / "config.yaml").write_text("a: [")
    assert world.run("iter=2", MATRIX) == 0
    assert "win_matrix" in (world.folder / "config.yaml").read_text()


def test_a_run_that_trains_nothing_has_a_folder_of_its_own() -> None:
    from src.run_folder import run_name

    start, trained = typed("iter=0", "benchmark=mt_bench"), typed("iter=2", "benchmark=mt_bench")
    assert run_name(start) == f"start-{run_name(trained)}"
    assert run_name(trained) == run_name(typed("iter=1"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["iter=0"], "iter: 0 trains nothing; choose what to do"),
        (["iter=0", MATRIX, "push_to_hub=me/mine"], "push_to_hub: iter=0 trains nothing"),
        (["+benchmark@benchmark.it2=mt_bench"], "benchmark.it2: this name is taken"),
        (["+benchmark@benchmark.ranking=mt_bench"], "benchmark.ranking: this name is taken"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        typed(*words)


def test_every_artifact_of_a_run_without_benchmarks_is_core_and_its_names_are_reserved() -> None:
    run = typed("iter=2")
    names = [node.name for node in run.nodes()]
    assert not any(map(of_benchmark, names))
    assert all(RESERVED.fullmatch(part) for name in names for part in name.split("/") if not part.startswith("model"))
    more = typed("iter=2", "benchmark=[mt_bench,win_matrix]")
    assert {name for name in (node.name for node in more.nodes()) if of_benchmark(name)} == {
        node.name for node in more.nodes()
    } - set(names)


def test_a_benchmark_is_a_family_of_its_own_and_leaves_the_experiments_identity_alone() -> None:
    assert family_of("it2/mt_bench/turn_1_at_0.7") == family_of("base/mt_bench/scores") == "mt_bench"
    assert [job_type_of(family) for family in ("mt_bench", "train", TRIAL)] == ["evaluate", "train", TRIAL]
    assert family_of("mt_bench/questions") is None and family_of("it2/evaluation") == "evaluate"
    plain, more = typed("iter=2").nodes(), typed("iter=2", "benchmark=mt_bench").nodes()
    assert experiment_of(plain) == experiment_of(more)
    start = typed("iter=0", "benchmark=mt_bench")
    assert experiment_of(start.nodes()) != experiment_of(plain)


def test_roots_of_benchmarks_are_made_before_anything_is_sampled() -> None:
    nodes: list[Node] = typed("iter=2", "benchmark=mt_bench").nodes()
    names = [node.name for node in nodes]
    assert names.index("mt_bench/questions") < names.index("it1/responses")


LABELLED = {
    "mt_bench": ("files.package=null", "files.questions: no file .*; mend it, or benchmark.mine.files.package"),
    "alpaca_eval": ("gamed=none.csv", "gamed: no file none.csv"),
    "ifeval": ("of=[it7]", "of: this run has no policy it7"),
    "win_matrix": ("of=[it7]", "of: this run has no policy it7"),
    "open_llm_v1": ("include_path=none", "include_path: no folder none"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_messages_name_the_keys_of_a_benchmark_under_another_label(name: str) -> None:
    """What its stages say when they run, too."""
    word, line = LABELLED[name]
    words = ["iter=1", f"+benchmark@benchmark.mine={name}"]
    told: list[Any] = [node.stage for node in typed(*words).nodes() if of_benchmark(node.name)]
    keys = {stage.key for stage in told if hasattr(stage, "key")} - {"ranker"}  # the run's own
    assert all(key.startswith("benchmark.mine") for key in keys)
    with pytest.raises(UserError, match=f"^benchmark.mine.{line}"):
        typed(*words, f"benchmark.mine.{word}").nodes()


def test_what_an_engine_says_of_the_sampling_names_the_benchmark_s_keys() -> None:
    """Engines know one sampling only, the run's."""
    nodes = {node.name: node.stage for node in typed("iter=1", "benchmark=[alpaca_eval,ifeval,mt_bench]").nodes()}
    told: dict[str, str] = {}
    for name, stage in nodes.items():
        if isinstance(stage, Generate):
            with pytest.raises(UserError) as error, stage.naming():
                raise UserError("lower sampling.max_prompt_tokens or max_new_tokens; no sampling.")
            told[name] = str(error.value)
    said = {name: line.removeprefix("lower ").partition(".max_prompt_tokens or")[0] for name, line in told.items()}
    assert all(line.endswith("; no sampling.") for line in told.values())
    assert said["it1/responses"] == said["it1/answers"] == "sampling"
    assert said["base/alpaca_eval/answers"] == "benchmark.alpaca_eval.decodings.default"
    assert said["it1/ifeval/answers"] == "benchmark.ifeval"
    assert said["it1/mt_bench/turn_1_at_0.7"] == said["it1/mt_bench/turn_2_at_0"] == "benchmark.mt_bench"


def test_no_stage_of_a_benchmark_imports_another() -> None:
    """They share rows, names and readers in modules without a stage."""
    folder = ROOT / "src" / "evaluation"
    trees = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
        for path in folder.rglob("*.py")
    }
    stages = {name for name, tree in trees.items() if any(map(_is_stage, ast.walk(tree)))}
    assert {"src.evaluation.best_of", "src.evaluation.mt_bench.judge"} <= stages
    for name in sorted(stages):
        taken = {node.module for node in ast.walk(trees[name]) if isinstance(node, ast.ImportFrom)}
        assert not taken & stages, f"{name} imports {taken & stages}"


def _is_stage(node: ast.AST) -> bool:
    """A class that names the folder of its artifacts."""
    lines = node.body if isinstance(node, ast.ClassDef) else []
    return any(isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "kind" and one.value for one in lines)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_not_written(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, {"score": 1.0, "score_low": value})
    assert not list(tmp_path.iterdir())
    write_metrics(tmp_path, {"score": 0.1, "longer_wins": None, "items": 3})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"score": 0.1, "longer_wins": None, "items": 3}


def test_every_benchmark_writes_its_numbers_through_that() -> None:
    """It alone refuses NaN; a file is named in quotes or as METRICS."""
    files = [path for path in (ROOT / "src/evaluation").glob("*/*.py") if path.name != "__init__.py"]
    assert len(files) > 20
    assert not [path for path in files if _names_metrics(path.read_text())]
    told = ('(out / METRICS).write_text("")', 'Path(out, "metrics.json")', "open(f'{out}/metrics.json', 'w')")
    assert all(map(_names_metrics, told)) and not _names_metrics('"""Out: `metrics.json`."""\nMEASURES = METRIC = 1')


def _names_metrics(code: str) -> bool:
    """In what runs: docstrings may."""
    tree = ast.parse(code)
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    names = any(getattr(node, "id", getattr(node, "name", None)) == "METRICS" for node in ast.walk(tree))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in said]
    return names or any(isinstance(text, str) and "metrics.json" in text for text in texts)
