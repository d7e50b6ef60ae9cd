"""benchmark=win_matrix as the real command: what it plans, refuses and makes of a tiny run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import build_policy
from pydantic import ValidationError
from test_pairwise_ranker import Duel
from tiny_run import HELD_OUT, ROOT, World, call, tiny, typed

from src import records
from src.artifact import Node
from src.checkpoints import Checkpoint
from src.config import UserError
from src.evaluation.win_matrix.benchmark import FIRST_TURN, MOST, WinMatrix
from src.evaluation.win_matrix.scores import PICTURE
from src.generation.stage import Generate
from src.pipeline import Run
from src.refusals import check_settings

NAME = "benchmark.win_matrix"
DPO = f"+model@{NAME}.policies.dpo=mistral_7b_instruct_v02"


def matrix_nodes(*words: str, run: Run | None = None) -> dict[str, Node]:
    return {node.name: node for node in (run or typed("benchmark=win_matrix", *words)).nodes()}


def duelling(*words: str) -> Run:
    """A run whose matrix is judged by a pairwise ranker of its own."""
    run = typed("iter=1", "benchmark=win_matrix", *words)
    return replace(run, benchmark={"win_matrix": replace(run.benchmark["win_matrix"], ranker=Duel(name="duel"))})


def test_own_policies_bring_the_held_out_answers_that_they_have() -> None:
    nodes = matrix_nodes("iter=2", DPO)
    merged, ranking, scores = (nodes[f"it2/win_matrix/{n}"] for n in ("joint_answers", "joint_ranking", "scores"))
    answers = ["base/answers", "it1/answers", "it2/answers", "win_matrix/dpo/answers"]
    assert [node.name for node in merged.inputs] == answers
    assert scores.inputs == (merged, ranking) and scores.stage.names == ("base", "it1", "it2", "dpo")  # pyright: ignore
    dpo, it2 = nodes["win_matrix/dpo/answers"], nodes["it2/answers"]
    assert dpo.inputs == (nodes["held_out/prompts"], nodes["win_matrix/dpo/policy"])
    assert isinstance(dpo.stage, Generate) and isinstance(it2.stage, Generate)
    assert dpo.stage.sampling == it2.stage.sampling and dpo.stage.seed == FIRST_TURN + 1
    assert {node.job for node in (dpo, merged, ranking, scores)} == {"evaluation"}


def test_no_two_policies_share_a_seed_nor_do_benchmarks() -> None:
    """The last iteration there may be, 900, has turn 901; benchmarks begin at 950."""
    more = [DPO, DPO.replace("dpo", "ipo")]
    nodes = matrix_nodes("iter=3", "seed=2", *more)
    answers = [
        node.stage for name, node in nodes.items() if name.endswith("answers") and isinstance(node.stage, Generate)
    ]
    seeds = [stage.seed - 2000 for stage in answers]
    assert len(set(seeds)) == len(seeds) == 7 and 1 + 901 < max(seeds) < 950


def test_a_policy_of_the_run_named_beside_others_is_all_that_is_compared() -> None:
    nodes = matrix_nodes("iter=3", f"{NAME}.of=[base,it2]")
    assert nodes["it2/win_matrix/scores"].stage.names == ("base", "it2")  # pyright: ignore
    assert "it3/win_matrix/scores" not in nodes


def test_the_start_policy_alone_beside_a_checkpoint() -> None:
    stage: Any = matrix_nodes("iter=0", DPO)["base/win_matrix/scores"].stage
    assert (stage.names, stage.last, stage.main) == (("base", "dpo"), "base", (0, 1))


@pytest.mark.full
def test_another_ranker_judges_and_the_run_s_own_keeps_its_work() -> None:
    plain, other = matrix_nodes("iter=1", "ranker=pairrm"), matrix_nodes(run=duelling(DPO))
    assert plain["it1/win_matrix/joint_ranking"].work == plain["it1/win_matrix/joint_answers"].rows * 2
    ranking = other["it1/win_matrix/joint_ranking"]
    assert ranking.work == ranking.rows * 3 * 2 and ranking.stage.ranker == Duel(name="duel")  # pyright: ignore
    assert other["it1/win_matrix/scores"].stage.judge == "duel"  # pyright: ignore
    chosen = matrix_nodes("iter=1", f"ranker@{NAME}.ranker=pairrm")["it1/win_matrix/joint_ranking"]
    assert [node.name for node in chosen.inputs[1:]] == ["win_matrix/ranker/model0", "win_matrix/ranker/model1"]
    assert chosen.stage.ranker.name == "pairrm"  # pyright: ignore


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/ranker").glob("*.yaml")))
def test_every_ranker_can_be_its_own(name: str) -> None:
    """Beside a ranker of the run that has none of its keys."""
    nodes = matrix_nodes("iter=1", f"ranker@{NAME}.ranker={name}")
    assert nodes["it1/win_matrix/joint_ranking"].stage.ranker.name == name  # pyright: ignore


def test_its_ranker_is_trusted_by_its_own_key() -> None:
    def told(*words: str) -> str:
        try:
            check_settings(typed("iter=1", "benchmark=win_matrix", *words).nodes())
        except UserError as error:
            return str(error).partition(":")[0]
        return ""

    own, run = f"ranker@{NAME}.ranker=armorm", "ranker=armorm"
    assert told(own) == f"{NAME}.ranker.trust_remote_code"
    assert told(own, f"{NAME}.ranker.trust_remote_code=true") == ""
    assert told(own, run, "ranker.trust_remote_code=true") == f"{NAME}.ranker.trust_remote_code"
    assert told(own, run, f"{NAME}.ranker.trust_remote_code=true") == "ranker.trust_remote_code"


def test_another_ranker_is_read_with_an_estimator_of_its_own() -> None:
    def read(*words: str) -> tuple[str, float]:
        stage: Any = matrix_nodes("iter=1", "estimator.tau=0.1", *words)["it1/win_matrix/scores"].stage
        return stage.estimator.kind, stage.estimator.tau

    assert read() == ("pairwise", 0.1)
    assert read(f"estimator@{NAME}.estimator=score") == ("score", 1.0)
    assert read(f"estimator@{NAME}.estimator=pairwise", f"{NAME}.estimator.tau=3") == ("pairwise", 3.0)
    nodes = matrix_nodes("iter=1", f"estimator@{NAME}.estimator=score", f"{NAME}.best_of=2")
    assert nodes["it1/win_matrix/best"].stage.estimator.kind == "pairwise"  # pyright: ignore


def test_the_best_of_several_is_kept_by_the_run_s_ranker() -> None:
    """Whoever compares them then; the first of them is the answer that there is without."""
    nodes = matrix_nodes(run=duelling(f"{NAME}.best_of=4"))
    assert [node.name for node in nodes["it1/win_matrix/joint_answers"].inputs] == [
        "base/win_matrix/best",
        "it1/win_matrix/best",
    ]
    many, one = nodes["it1/win_matrix/answers"], nodes["it1/answers"]
    assert isinstance(many.stage, Generate) and isinstance(one.stage, Generate)
    assert many.stage.shared() == one.stage.shared() and many.stage.sampling.K == 4 and many.work == 4 * many.rows
    assert nodes["it1/win_matrix/ranking"].stage.ranker.name == "embedded"  # pyright: ignore


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((f"{NAME}.of=[base,base]",), f"{NAME}.of: base is named twice"),
        ((f"{NAME}.of=[it7]",), f"{NAME}.of: this run has no policy it7; there are base, it1"),
        ((f"{NAME}.of=[]",), f"{NAME}.of: name at least one of base, it1: the scores are its own"),
        ((f"{NAME}.of=[it1]",), f"{NAME}: it1 alone has no matrix; raise iter, take more in .of, or name other"),
        ((DPO.replace("dpo", "it1"),), f"{NAME}: policies.it1: policies of the run are called so"),
        ((DPO.replace("dpo", "base"),), f"{NAME}: policies.base: policies of the run are called so"),
        ((f"+{NAME}.policies.x={{_target_: src.generation.merge.Merge}}",), f"{NAME}: policies.x: brings no policy"),
        (
            (f"+{NAME}.policies.x=mistral",),
            f"{NAME}.policies.x: text is no value of it; +model@<this key>=<file of conf/model>",
        ),
        ((f"{NAME}.ranker=pairrm",), f"{NAME}.ranker: text is no value of it; ranker@<this key>=<file of conf/ranker>"),
        ((f"{NAME}.resamples=0",), f"{NAME}.resamples: "),
        ((f"{NAME}.best_of=1",), f"{NAME}.best_of: Input should be greater than or equal to 2"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as error:
        typed("iter=1", "benchmark=win_matrix", *words).nodes()
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_seeds_are_enough_for_the_most_policies_there_may_be() -> None:
    stage = Checkpoint(name="x", repo="x", revision="main")
    matrix = typed("benchmark=win_matrix").benchmark["win_matrix"]
    assert FIRST_TURN + MOST < 950
    replace(matrix, policies={f"x{i}": stage for i in range(MOST)})  # pyright: ignore
    with pytest.raises(ValidationError, match="policies: 41 are more than the 40 that there are seeds for"):
        replace(matrix, policies={f"x{i}": stage for i in range(MOST + 1)})  # pyright: ignore


@pytest.mark.full
def test_a_whole_run_and_a_policy_of_elsewhere(
    llama: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """base, it1 and another checkpoint: the numbers of the held-out evaluation, a picture, the best of two."""
    other = build_policy(tmp_path_factory.mktemp("other"), "llama", seed=5)
    words = tiny(
        llama, tmp_path, "benchmark=win_matrix", f"{NAME}.resamples=100", DPO, f"{NAME}.policies.dpo.repo={other}"
    )
    world = World(tmp_path, words)
    assert call(*words, "iter=1") == 0, capsys.readouterr().err
    scores = world.metrics("it1/win_matrix/scores")
    told = world.metrics("it1/evaluation")
    assert scores["win"] == scores["it1_over_base"] == pytest.approx(told["win_over_base"], abs=1e-6)
    assert scores["base_over_dpo"] + scores["dpo_over_base"] == 1 and scores["items"] == HELD_OUT
    assert scores["dpo_tokens"] <= 8 and scores["it1_tokens"] == told["tokens"]
    rows = pq.read_table(world.artifact("it1/win_matrix/scores") / records.ROWS).to_pylist()
    prompts = records.read_rows(world.artifact("held_out/prompts"), records.PROMPTS)
    assert [row["item_id"] for row in rows] == [row["prompt_id"] for row in prompts]
    assert (world.artifact("it1/win_matrix/scores") / PICTURE).read_bytes().startswith(b"\x89PNG")
    table = [json.loads(line) for line in (world.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("win_matrix/it1_over_dpo" in row for row in table)
    assert "Win-rate matrix" in (world.folder / "report.md").read_text()
    assert call(*words, "iter=1", f"{NAME}.best_of=2", "only=it1/win_matrix/scores") == 0
    assert isinstance(typed(*words).benchmark["win_matrix"], WinMatrix)
