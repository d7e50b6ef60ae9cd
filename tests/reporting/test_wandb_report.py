"""The W&B report and workspace of a comparison: every metric is one that is written."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up_run import made_up
from made_up_sweep import grid, write
from wandb_server import KEY, WandbServer

from src.compare.points import Comparison, compare_folders
from src.compare.select import folders, identity
from src.compare.wandb_panels import COLUMNS, PLOTS, SUMMARY, TABLES, load_library, sections
from src.compare.wandb_report import publish, report, shown, specs, workspace
from src.config import UserError
from src.tracking import columns, samples
from src.tracking.families import FAMILIES, family_of
from src.tracking.metrics import rows_of
from src.tracking.opening import STEP
from src.tracking.state import Place, followed, fresh, run_id, write_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    load_library()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folders = write(tmp_path_factory.mktemp("sweep"), grid((100.0, 1000.0), (5e-7, 1e-6)), sweep="eta_lr")
    return compare_folders(folders, "η and lr ⭐ of a sweep")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of `metrics.jsonl`, and a step with all that a training says of itself."""
    import torch
    from transformers import Trainer

    from src.methods.pair_logps import PairLogps
    from src.training.metrics import StepMetrics

    story = made_up(tmp_path_factory.mktemp("run"))
    written = [row for _, row in rows_of(story.nodes, story.store)]
    one = PairLogps(*[torch.ones(1)] * len(PairLogps._fields))
    parts = StepMetrics(story.run.method)._parts(one, torch.ones(1))
    assert 'logs["learning_rate"]' in inspect.getsource(Trainer._maybe_log_save_evaluate)
    return [*written, {f"train/{name}": 0.0 for name in (*parts, "learning_rate")}]


def lines() -> Iterator[tuple[str, Any]]:
    """Family -> a line plot of its section."""
    for section in sections(["eta", "lr"]):
        for panel in section.panels:
            if hasattr(panel, "y") and isinstance(panel.y, list):
                yield section.family, panel


def test_every_metric_of_a_panel_is_written_by_the_family_whose_runs_it_shows(rows: list[dict[str, Any]]) -> None:
    written, seen = {name for row in rows for name in row} | {STEP}, 0
    for family, panel in lines():
        assert {panel.x, *panel.y} <= written
        for name in panel.y:
            stage = name.partition("/")[0]
            assert family_of(f"it1/{'policy' if stage == 'train' else stage}") == family, name
            seen += 1
    assert seen > 15


def test_every_column_is_one_that_the_mirror_fills(rows: list[dict[str, Any]]) -> None:
    """The docstring of the mirror's columns is what documents them."""
    assert set(SUMMARY) <= set(columns.summary_of(rows))
    told = (columns.__doc__ or "").partition("Columns of the config:")[2].partition(";")[0]
    assert set(COLUMNS) <= {word.strip() for word in told.replace("\n", " ").replace(" and ", ",").split(",")}
    assert set(TABLES.values()) == {samples.TRAINING, samples.HELD_OUT}
    assert (family_of("it1/pairs"), family_of("it1/evaluation")) == tuple(TABLES)
    pictures = "".join((ROOT / "src" / "report" / name).read_text() for name in ("plots.py", "matrices.py"))
    assert all(f'"{name}.png"' in pictures for name in PLOTS)


def plain(value: Any) -> Any:
    """Text reads back without the comments that it has not."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if (key, inner) != ("inlineComments", [])}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


def test_the_library_reads_both_back_unchanged(found: Comparison) -> None:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.reports.v2.internal import ReportViewspec
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.internal import View

    texts = specs(found)
    for name, kind in (("report", ReportViewspec), ("workspace", View)):
        model: Any = kind.model_validate_json(texts[name])
        assert plain(model.model_dump(by_alias=True, exclude_none=True, mode="json")) == plain(json.loads(texts[name]))
    blocks = Report._from_model(ReportViewspec.model_validate_json(texts["report"])).blocks
    assert len([block for block in blocks if type(block).__name__ == "PanelGrid"]) == 7
    assert not any("Unknown" in type(panel).__name__ for block in blocks for panel in getattr(block, "panels", []))
    read = Workspace._from_model(View.model_validate_json(texts["workspace"]))
    assert [section.name for section in read.sections] == [section.name for section in sections(["eta", "lr"])]


@pytest.mark.full
def test_equal_comparisons_give_equal_bytes(found: Comparison, tmp_path: Path) -> None:
    """In another process too: the library draws names by lot when it is imported."""
    folders = ",".join(str(run.path) for run in found.runs)
    code = (
        "import sys; from pathlib import Path; from src.compare.points import compare_folders; "
        "from src.compare.wandb_report import specs; "
        "found = compare_folders([Path(p) for p in sys.argv[1].split(',')], sys.argv[2]); "
        "print(end=''.join(specs(found).values()))"
    )
    words = [sys.executable, "-c", code, folders, found.title]
    told = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert told.stdout == "".join(specs(found).values()), told.stderr


def test_no_two_panels_or_run_sets_of_a_report_have_one_name_and_none_covers_another(found: Comparison) -> None:
    model = report(shown(found))
    grids = [block for block in model.blocks if type(block).__name__ == "PanelGrid"]
    names = [each._id for grid in grids for each in (*grid.panels, *grid.runsets)]
    assert len(names) == len(set(names))
    for each in grids:
        cells = [
            (x, y)
            for at in (panel.layout for panel in each.panels)
            for x in range(at.x, at.x + at.w)
            for y in range(at.y, at.y + at.h)
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_a_report_shows_the_runs_of_the_sweep_by_family(found: Comparison) -> None:
    text = json.loads(specs(found, "me/there")["report"])
    assert text["project"] == {"name": "there", "entityName": "me"}
    grids = [block for block in text["spec"]["blocks"] if block["type"] == "panel-grid"]
    filters = [grid["metadata"]["runSets"][0]["filters"]["filters"] for grid in grids]
    assert {tuple((each["key"]["name"], *each["value"]) for each in both) for both in filters} == {
        (("name", *(run_id(run.path, family) for run in found.runs)),) for family in ("train", "rank", "evaluate")
    }
    assert "python -m src.main" in json.dumps(text)


def test_the_runs_are_those_that_the_mirror_has(tmp_path: Path) -> None:
    """Another experiment had the first folder before; the second is a trial of a W&B sweep; the third has none yet."""
    folders = write(tmp_path, grid((100.0, 300.0, 1000.0), (5e-7,)), sweep="eta")
    place = Place(folders[0], "train", "p", None, "plan")
    write_state(place, followed(place, fresh(place, 0)))
    (folders[1] / ".wandb").mkdir()
    trial = dataclasses.asdict(fresh(place, 0)) | {"id": "its-agent-s"}
    (folders[1] / ".wandb" / "trial.json").write_text(json.dumps(trial))
    ids = shown(compare_folders(folders, "three")).ids
    assert ids["train"] == [run_id(folders[0], "train", 1), "its-agent-s", run_id(folders[2], "train")]
    assert ids["rank"] == [run_id(folders[0], "rank"), "its-agent-s", run_id(folders[2], "rank")]


@pytest.mark.parametrize("text", ["{", "[]", '{"past": 1}', '{"id": 1, "past": []}'])
def test_a_damaged_mirror_is_as_if_there_were_none(text: str, tmp_path: Path) -> None:
    (folder,) = write(tmp_path, grid((100.0,), (5e-7,)))
    (folder / ".wandb").mkdir()
    (folder / ".wandb" / "train.json").write_text(text)
    found = compare_folders([folder], "one")
    assert shown(found).ids == {family: [run_id(folder, family)] for family in FAMILIES} and specs(found)


def test_a_project_that_is_a_number_is_its_name(tmp_path: Path) -> None:
    (folder,) = write(tmp_path, grid((100.0,), (5e-7,)))
    settings = json.loads((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(json.dumps(settings | {"tracking": {"project": 2024, "entity": 7}}))
    of = shown(compare_folders([folder], "one"))
    assert (of.entity, of.project) == ("7", "2024") and report(of)


def test_a_sweep_is_seen_in_its_varied_columns(found: Comparison) -> None:
    """Parallel coordinates, and of two settings a grid with the win rate as its colour."""
    assert shown(found).varied == ("eta", "lr")
    wide, heat, *_, importance = sections(["lr", "eta"])[0].panels
    names = [column.metric if isinstance(column.metric, str) else column.metric.name for column in wide.columns]  # pyright: ignore
    assert names == ["eta", "lr", "tokens", "kl_per_token", "win_rate"]
    assert (heat.x.name, heat.y.name, heat.z, heat.log_x, heat.log_y) == ("eta", "lr", "win_rate", True, True)  # pyright: ignore
    assert importance.with_respect_to == "win_rate"  # pyright: ignore
    one = [panel.title for panel in sections(["K"])[0].panels if hasattr(panel, "title")]  # pyright: ignore
    assert one == ["Settings and win rate", "Win rate by K", "Win rate and length", "Win rate and KL"]
    none = [panel.title for panel in sections([])[0].panels if hasattr(panel, "title")]  # pyright: ignore
    assert none == ["Settings and win rate", "Win rate and length", "Win rate and KL"]


def test_settings_without_a_column_are_told_in_words(found: Comparison) -> None:
    of = shown(found)._replace(apart=("pairing",))
    assert "They differ also in pairing" in report(of)._to_model().model_dump_json()


def test_a_name_with_an_emoji_is_taken_without_it(found: Comparison) -> None:
    assert workspace(shown(found)).name == "η and lr  of a sweep"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    import wandb

    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with WandbServer() as found:
        monkeypatch.setenv("WANDB_BASE_URL", found.url)
        wandb.teardown()  # its settings are read once a process
        yield found
        wandb.teardown()


PAGE = {"endCursor": None, "hasNextPage": False}


def has(server: WandbServer, found: Comparison, reports: list[tuple[str, str, str]]) -> None:
    """Reports that the project has, each with its id, title and description."""
    rest = {"name": "x", "spec": "{}", "updatedAt": ""}
    nodes = [{"id": i, "displayName": title, "description": told} | rest for i, title, told in reports]
    views = {"edges": [{"node": node, "cursor": "c"} for node in nodes], "pageInfo": PAGE}
    server.answers["ProjectViews"] = {"project": {"allViews": views}}
    server.answers["GetProjects"] = {"models": {"pageInfo": PAGE, "edges": []}}
    server.answers["CreateProject"] = {"upsertModel": {"model": {"id": "UA==", "name": "p"}, "inserted": True}}
    spec = json.dumps(json.loads(specs(found, "me/p")["report"])["spec"])
    view = {"id": "old", "displayName": found.title, "description": "", "spec": spec}
    project = {"name": "p", "entityName": "me"}
    server.answers["upsertView"] = {"upsertView": {"view": view | {"project": project}, "inserted": False}}
    server.answers["UpsertView2"] = {"upsertView": {"view": {"id": "v", "name": "nw-abc-v"}, "inserted": True}}


def test_a_sweep_that_has_grown_is_updated_and_somebody_else_s_of_the_same_title_is_left_alone(
    server: WandbServer, tmp_path: Path
) -> None:
    for user in ("me", "you"):
        write(tmp_path / user, grid((100.0, 1000.0), (5e-7,)), sweep="eta")

    def compared(user: str) -> Comparison:
        word = f"{tmp_path}/{user}/runs/eta"
        chosen = folders(word)
        return compare_folders(chosen, f"eta: {len(chosen)} runs compared", identity(word))

    first, yours = compared("me"), compared("you")
    kept = [json.loads(specs(each, "me/p")["report"]) for each in (first, yours)]
    assert kept[0]["displayName"] == kept[1]["displayName"] and str(tmp_path) not in kept[0]["description"]
    has(server, first, [(f"of-{i}", each["displayName"], each["description"]) for i, each in enumerate(kept)])
    write(tmp_path / "me", grid((300.0,), (5e-7,)), sweep="eta")  # the note has the new point alone
    grown = compared("me")
    publish(grown, "p")
    has(server, yours, [("of-0", kept[1]["displayName"], kept[0]["description"])])
    publish(yours, "p")
    updated, new = server.told("upsertView")
    assert (updated["id"], updated["displayName"]) == ("of-0", grown.title) and grown.title != first.title
    assert not new.get("id") and new["displayName"] == kept[0]["displayName"]
    names = [view["name"] for view in server.told("UpsertView2")]
    assert names == [workspace(shown(each, "me/p"))._internal_name for each in (first, yours)]
    assert len(set(names)) == 2


def test_both_are_saved_in_place_of_what_was_saved_before(
    found: Comparison, server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report under the id of the one of that mark, the workspace under a name that follows from it."""
    saved = json.loads(specs(found, "me/p")["report"]) | {"id": "old"}
    has(server, found, [("old", "another title", f"{saved['description']} My own words.")])
    addresses = publish(found, "p")
    assert [name for name in ("reports", "nw=") if any(name in address for address in addresses)] == ["reports", "nw="]
    assert capsys.readouterr().out.splitlines() == [f"report: {addresses[0]}", f"workspace: {addresses[1]}"]
    (asked,) = server.told("upsertView")
    assert (asked["id"], asked["entityName"], asked["projectName"]) == ("old", "me", "p")
    assert json.loads(asked["spec"]) == saved["spec"] and asked["description"] == saved["description"]
    (view,) = server.told("UpsertView2")
    assert view["name"].startswith("nw-") and view["name"] == workspace(shown(found, "me/p"))._internal_name


def test_what_w_and_b_refuses_is_one_line(found: Comparison, server: WandbServer) -> None:
    with pytest.raises(UserError, match="^report: W&B says .*") as caught:
        publish(found, "me/p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacks", ["a server", "a key"])
def test_where_nobody_answers_or_is_logged_in_w_and_b_is_not_even_asked(
    found: Comparison, server: WandbServer, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Its library would try for a minute."""
    monkeypatch.setattr("wandb.Api", lambda: pytest.fail("asked"))
    if lacks == "a key":
        monkeypatch.setattr("src.compare.wandb_report.has_key", lambda: False)
    else:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    said = "report: not logged in to W&B" if lacks == "a key" else "report: http://127.0.0.1:9 does not answer"
    with pytest.raises(UserError, match=f"^{said}"):
        publish(found, "me/p")
