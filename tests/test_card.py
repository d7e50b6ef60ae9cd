"""Model cards: numbers of the run under their own names, what others published beside them, and no word that misleads.

Run: python -m pytest -q tests/test_card.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from made_up_run import MadeUp, evaluation, made_up
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tiny_run import ROOT, World, call, folders, tiny, typed
from toy_stages import Copy

from src import runner
from src.artifact import Node, Store, locked
from src.card import write
from src.card.facts import Facts, title
from src.card.licences import KNOWN
from src.card.markdown import fenced, literal, scrubbed
from src.card.metadata import DIVERGENCE, EVALUATION, metadata
from src.card.write import text, write_cards
from src.checkpoints import Checkpoint
from src.config import UserError
from src.pipeline import Run
from src.provenance import CARD, RECORD, damage
from src.published import published
from src.report.benchmarks import NOT_MEASURED

pytestmark = pytest.mark.slow

Capture = pytest.CaptureFixture[str]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
COMMAND = "python -m src.main iter=2"


@pytest.fixture(scope="module")
def finished(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("finished")
    world = World(place, tiny(llama, place, "++data.card_datasets=[me/prompts]"))
    assert world.run("iter=2") == 0
    return world


@pytest.fixture
def world(finished: World, tmp_path: Path) -> World:
    """A copy of the finished run that a test may change."""
    shutil.copytree(finished.place, tmp_path / "copy", symlinks=True)
    return finished._replace(place=tmp_path / "copy")


def card(world: World, t: int) -> Path:
    return world.artifact(f"it{t}/policy").resolve() / CARD


def cards(story: MadeUp, t: int) -> Path:
    node = next(node for node in story.nodes if node.name == f"it{t}/policy")
    return story.store.path(node) / CARD


def written(story: MadeUp, command: str = COMMAND, **changes: Any) -> str:
    """The card of iteration 1, by a run with `changes`."""
    assert write_cards(dataclasses.replace(story.run, **changes), story.nodes, story.store, command) == []
    return cards(story, 1).read_text()


def body(card: str) -> list[Token]:
    """As GitHub reads it: CommonMark with HTML, tables and strikethrough."""
    source = ModelCard(card).text
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(source)


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def links(card: str) -> list[str]:
    return [str(token.attrs["href"]) for token in flat(body(card)) if token.type == "link_open"]


def facts(run: Run, place: Path, command: str = COMMAND, **changes: Any) -> Facts:
    """Of the first policy of a run that was never made."""
    record = {"files": {}, "commit": "c0ffee", "versions": {"torch": "9.9"}}
    nodes = {node.name: node for node in run.nodes()}
    return Facts(dataclasses.replace(run, **changes), 1, nodes, Store(place), command, record, None, None, [])


# What a card says --------------------------------------------------------------------------------------------------


def test_trained_policies_have_a_card_and_no_other_artifact_has_one(finished: World) -> None:
    trained = {card(finished, t) for t in (1, 2)}
    assert set((finished.place / "store").rglob(CARD)) == trained
    assert len(trained) == 2


@pytest.mark.parametrize("t", [1, 2])
def test_the_model_index_gives_back_the_numbers_of_the_run(t: int, finished: World) -> None:
    name, results = model_index_to_eval_results((metadata_load(card(finished, t)) or {})["model-index"])
    told = finished.metrics(f"it{t}/evaluation")
    kl = finished.metrics(f"it{t}/divergence")
    assert name == f"tiny-sppo-Iter{t}"
    assert {one.metric_type: one.metric_value for one in results} == {
        measure.metric: told[measure.key] for measure in EVALUATION
    } | {measure.metric: kl[measure.key] for measure in DIVERGENCE}
    for one, measure in zip(results, EVALUATION, strict=False):
        args = one.metric_args or {}
        assert args["prompts"] == told["prompts"]
        if measure.interval:
            assert (args["low"], args["high"]) == tuple(told[f"{measure.key}_{side}"] for side in ("low", "high"))
            assert (args["confidence"], args["ranker"]) == (0.95, "embedded")
    assert (results[-1].metric_args or {})["prompts"] == kl["prompts"] == 3


def test_the_head_says_what_the_hub_wants_to_know(finished: World) -> None:
    """And survives the hub's own reader and writer unchanged."""
    data = metadata_load(card(finished, 2)) or {}
    assert (data["license"], data.get("base_model")) == ("apache-2.0", None), "the base is a stand-in"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["datasets"] == ["me/prompts"]
    assert data["tags"] == ["sppo", "preference-optimisation", "iteration-2", "iterpref"]
    assert str(ModelCard.load(card(finished, 2))) == card(finished, 2).read_text()


@pytest.mark.parametrize("t", [1, 2])
def test_every_link_of_the_lineage_leads_to_the_folder_of_that_policy(t: int, finished: World) -> None:
    place = card(finished, t)
    local = [place.parent / address for address in links(place.read_text()) if not address.startswith("https://")]
    others = {finished.artifact(f"{name}/policy").resolve() for name in ("base", f"it{3 - t}")}
    assert {path.resolve() for path in local} == others
    assert all(path.resolve().name in place.read_text() for path in local)


def test_on_the_hub_the_links_lead_to_the_other_repositories(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    found = links(written(story, push_to_hub="me/Tiny-SPPO"))
    assert [address for address in found if "/me/" in address] == ["https://huggingface.co/me/Tiny-SPPO-Iter2"]
    assert all(address.startswith("https://") for address in found)
    assert title(dataclasses.replace(story.run, push_to_hub="me/Tiny-SPPO"), 2) == "Tiny-SPPO-Iter2"


def test_the_settings_are_those_of_the_run_and_what_changes_no_result_is_not_among_them(finished: World) -> None:
    shown = card(finished, 1).read_text()
    for row in (
        "| method.eta | 1000.0 |",
        "| train.lr | 1e-05 |",
        "| sampling.K | 3 |",
        "| estimator.kind | pairwise |",
    ):
        assert row in shown
    for row in ("| pairing.rule | src.pairing.rules.BestWorst |", "| ranker.tau | 0.25 |", "| seed | 0 |"):
        assert row in shown
    table = shown[shown.index("## Hyper-parameters") : shown.index("## How to reproduce")]
    assert not any(word in table for word in ("row\\_tokens", "source\\_version", "tracking", "save\\_minutes"))
    assert "loss = [ (D_w - eta (P_w - c))^2" in shown


def test_the_card_says_how_the_policy_is_made_again(finished: World) -> None:
    shown, record = card(finished, 1).read_text(), json.loads((finished.artifact("it1/policy") / RECORD).read_text())
    (block,) = [token.content for token in body(shown) if token.type == "fence" and "src.main" in token.content]
    assert block == (finished.folder / "command.txt").read_text()
    assert record["commit"].replace("+dirty", "") in shown and f"torch {record['versions']['torch']}" in shown
    for place in (finished.folder / "artifacts" / "it1").iterdir():
        assert f"| {literal(f'it1/{place.name}')} | `{'/'.join(place.resolve().parts[-2:])}` |" in shown


def test_a_policy_that_is_not_evaluated_is_said_to_be_none(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    for kind in ("evaluation", "divergence"):
        shutil.rmtree(story.store.root / kind)
    shown = written(story)
    assert "This policy is not evaluated yet." in shown
    assert "model-index" not in (metadata_load(cards(story, 1)) or {})


def test_measures_that_a_ranker_does_not_have_are_left_out(tmp_path: Path) -> None:
    shown = written(made_up(tmp_path, tokens=None))
    assert "tokens of an answer of the start policy" in shown and "tokens of an answer, mean" not in shown


# Models and licences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")))
def test_every_start_policy_has_its_id_and_licence_in_head_and_text(model: str, tmp_path: Path) -> None:
    """What the hub's pages of them say."""
    expected = {
        "gemma2_9b_it": ("google/gemma-2-9b-it", "gemma"),
        "llama3_8b_instruct": ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3"),
        "mistral_7b_instruct_v02": ("mistralai/Mistral-7B-Instruct-v0.2", "apache-2.0"),
        "smollm2_135m_instruct": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    }
    base, licence = expected[model]
    shown = text(facts(typed(f"model={model}"), tmp_path))
    data = ModelCard(shown).data
    assert (data.get("base_model"), data.get("license")) == (base, licence)
    assert f"https://huggingface.co/{base}" in links(shown) and KNOWN[licence].address in links(shown)


@pytest.mark.parametrize("licence", [None, "My own: *terms*", "mit"])
def test_a_licence_without_words_of_ours_is_named_and_an_unknown_one_not_made_up(
    licence: str | None, tmp_path: Path
) -> None:
    run = typed("iter=1")
    shown = text(facts(run, tmp_path, model=dataclasses.replace(run.model, license=licence)))  # pyright: ignore
    assert ModelCard(shown).data.get("license") == ("mit" if licence == "mit" else None)
    assert (literal(licence) if licence else "is not said here") in shown.partition("## Licence")[2]


def test_a_stand_in_is_not_taken_for_the_model_that_it_stands_for(finished: World, tmp_path: Path) -> None:
    """The tiny model of the tests is read in place of Mistral's 7.24e9 parameters."""
    from transformers import AutoModelForCausalLM

    shown = card(finished, 1).read_text()
    count = AutoModelForCausalLM.from_pretrained(card(finished, 1).parent).num_parameters()
    (said,) = re.findall(r"This policy has about ([\d,]+) parameters, and .* has 7,240,000,000: .* a stand-in", shown)
    assert count <= int(said.replace(",", "")) < 1.2 * count, "the file has a header"
    told = facts(typed("model=gemma2_9b_it"), tmp_path)
    for size, alike in ((9.24e9, True), (9.3e9, True), (7.24e9, False), (1e5, False)):
        for dtype, width in (("float32", 4), ("bfloat16", 2)):
            train = dataclasses.replace(told.run.train, save_dtype=dtype)
            files = {"a.safetensors": {"bytes": size * width // 2}, "b.safetensors": {"bytes": size * width // 2}}
            run = dataclasses.replace(told.run, train=train)
            found = told._replace(run=run, record=told.record | {"files": files})
            assert (metadata(found).base_model == "google/gemma-2-9b-it") == alike == ("stand-in" not in text(found))


def test_what_the_hub_would_refuse_is_not_in_the_head(tmp_path: Path) -> None:
    run = typed("iter=1")
    model = dataclasses.replace(run.model, id="/home/me/my model")  # pyright: ignore
    data = dataclasses.replace(run.data, card_datasets=["me/prompts", "../prompts.jsonl"])  # pyright: ignore
    head = metadata(facts(run, tmp_path, model=model, data=data))
    assert (head.base_model, head.datasets) == (None, ["me/prompts"])


# What is published -------------------------------------------------------------------------------------------------


def test_every_experiment_has_its_published_numbers_or_is_said_to_have_none() -> None:
    assert sorted(published()) == EXPERIMENTS
    assert [name for name, known in published().items() if not known.tables] == ["gemma2_9b_it_dpo_hb"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_an_experiments_file_quotes_are_those_of_its_card(name: str) -> None:
    quoted = re.findall(r"\d+\.\d+/\d+\.\d+(?:/\d+)?", (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text())
    rows = [values for table in published()[name].tables for values in table.policies.values()]
    known = {"/".join(str(value) for value in map(plain, values) if value) for values in rows}
    assert {"/".join(str(plain(float(value))) for value in triple.split("/")) for triple in quoted} <= known
    assert quoted or not rows


def plain(value: float | None) -> float | int | None:
    """1855.0 is 1855."""
    return int(value) if value and value >= 1000 else value


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_tables_have_an_empty_row_for_what_was_not_measured_here(name: str, tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1"), tmp_path, experiment=name, variant="paper"))
    part = shown[shown.index("## Published results") : shown.index("## Hyper-parameters")]
    assert f"experiment {literal(name)} (variant paper)" in part and "docs/differences.md" in part
    tables = published()[name].tables
    here = [line for line in part.splitlines() if line.startswith("| **here, iteration 1**")]
    assert len(here) == len(tables)
    assert all(line.count(NOT_MEASURED) == len(table.measures) for line, table in zip(here, tables, strict=True))
    assert ("Nothing published" in part) == (not tables)


def test_a_run_of_ones_own_is_compared_with_nothing(tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1"), tmp_path))
    assert "reproduces no published system. AlpacaEval 2, MT-Bench and Arena-Hard: not measured." in shown


@pytest.mark.parametrize(
    ("words", "experiment", "said"),
    [
        ([], "gemma2_9b_it_wpo_hb", True),
        ([], "gemma2_9b_it_dpo_hb", True),
        (["method=wpo"], None, True),
        ([], "gemma2_9b_it_sppo", False),
        ([], None, False),
    ],
)
def test_wpos_terms_are_named_where_wpo_is(words: list[str], experiment: str, said: bool, tmp_path: Path) -> None:
    shown = text(facts(typed("iter=1", *words), tmp_path, experiment=experiment))
    assert ("for non-commercial use. None of it is used" in shown) == said


# Text of others ----------------------------------------------------------------------------------------------------

EVIL = [
    "---\nlicense: mit\n---",
    "<script>alert(1)</script>",
    "[link](http://evil.example) ![picture](http://evil.example/x.png)",
    "| a | b |\n|---|---|\n| c | d |",
    "```\n# a heading\n````\n",
    "~~~\n* item\n\n# heading",
    "**bold** `code` ~~out~~ &lt;b&gt; $x$",
    "one\rtwo\u2028three\x85four\udcff",
    "quote\" and ' and: {colon: [x}",
]


@pytest.mark.parametrize("evil", EVIL)
def test_text_of_others_marks_nothing_up_and_stays_out_of_the_head(evil: str, tmp_path: Path) -> None:
    def shown(word: str) -> str:
        run = typed("iter=1")
        model = dataclasses.replace(run.model, id=word, license=word)  # pyright: ignore
        sampled = dataclasses.replace(run.data, card_datasets=[word], parts=(Path(word),))  # pyright: ignore
        return text(facts(run, tmp_path, f"python -m src.main {word}", model=model, data=sampled))

    plain, found = shown("w !"), shown(evil)
    assert [(t.type, t.level) for t in body(plain)] == [(t.type, t.level) for t in body(found)], "the same blocks"
    assert links(plain) == links(found)
    kinds = {t.type for t in flat(body(found))} - {t.type for t in flat(body(plain))}
    assert kinds <= {"text_special", "softbreak"}
    assert ModelCard(found).data.to_dict() == ModelCard(plain).data.to_dict()
    cells = ["".join(c.content for c in t.children or []) for t in body(found) if t.type == "inline"]
    listed = json.dumps([str(Path(evil))], ensure_ascii=False)
    assert cells[cells.index("data.parts") + 1] == " ⏎ ".join(listed.splitlines()), "all of it, in its own cell"
    (block,) = [t.content for t in body(found) if t.type == "fence" and "src.main" in t.content]
    assert block.splitlines() == f"python -m src.main {evil}".strip().splitlines()


def test_what_can_be_said_as_text_can_be_read_again() -> None:
    for word in EVIL[:-2]:
        (inline,) = [token for token in MarkdownIt("commonmark").parse(f"x {literal(word)}") if token.type == "inline"]
        assert "".join(t.content for t in inline.children or []) == "x " + " ⏎ ".join(word.strip().splitlines())
    assert fenced("a ```` b").startswith("`````text\n")


def test_words_that_open_doors_are_taken_out_of_the_command(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    typed_in = "python -m src.main ranker.endpoint.base_url=https://me:word@host:1/v1?a=b x=hf_abcdefgh1234"
    shown = written(story, typed_in)
    assert "base_url=https://…@host:1/v1?a=b x=hf_…" in shown and "word@" not in shown
    assert scrubbed("mail me@host about x=hf_x") == "mail me@host about x=hf_x"


def test_a_card_of_odd_bytes_can_be_written(tmp_path: Path) -> None:
    """What a shell hands over that is no UTF-8."""
    assert "a=?" in written(made_up(tmp_path), "python -m src.main a=\udcff")


# When it is written ------------------------------------------------------------------------------------------------


def test_the_same_command_writes_nothing_again_and_a_lost_card_comes_back_to_the_byte(world: World) -> None:
    assert world.run("iter=2") == 0  # from now on the command names this folder
    before = {t: (card(world, t).read_bytes(), card(world, t).stat().st_mtime_ns) for t in (1, 2)}
    assert world.run("iter=2") == 0
    assert {t: (card(world, t).read_bytes(), card(world, t).stat().st_mtime_ns) for t in (1, 2)} == before
    card(world, 1).unlink()
    assert world.run("iter=2") == 0
    assert card(world, 1).read_bytes() == before[1][0]


def test_a_run_that_is_killed_before_its_report_has_its_cards(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = card(world, 1).read_bytes()
    card(world, 1).unlink()
    monkeypatch.setattr(runner, "report", killed)
    assert world.run("iter=2") == 130
    assert card(world, 1).read_bytes() == before


def test_a_finished_run_under_other_hardware_keeps_its_cards(world: World) -> None:
    """As it keeps its command: the other one had no part in it."""
    before = card(world, 1).read_bytes()
    assert world.run("iter=2", "hardware.devices.row_tokens=64") == 0
    assert card(world, 1).read_bytes() == before


def test_verify_knows_cards_and_still_finds_what_is_damaged(world: World, capsys: Capture) -> None:
    assert call("verify", *folders(world.place)) == 0
    card(world, 1).write_text("mine")
    (card(world, 1).with_name(".README.md.77.tmp")).write_text("half a card, of a process that was killed")
    assert call("verify", *folders(world.place)) == 0
    weights = card(world, 2).with_name("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    (card(world, 2).with_name("README.txt")).write_text("no card")
    capsys.readouterr()
    assert call("verify", *folders(world.place)) == 3
    found = capsys.readouterr().out.splitlines()
    assert f"{weights}: damaged (sha256 differs from the record)" in found
    assert f"{weights.with_name('README.txt')}: not in the record" in found and "2 problems" in found[2]


def test_only_writes_the_card_of_what_it_made_and_keeps_one_that_knows_more(world: World) -> None:
    """Without the evaluations it cannot know more than that the policy is there."""
    shown = card(world, 1).read_text()
    for kind in ("evaluation", "divergence"):
        shutil.rmtree(world.place / "store" / kind)
    assert world.run("iter=2", "only=it1/policy") == 0
    assert card(world, 1).read_text() == shown
    card(world, 1).unlink()
    assert world.run("iter=2", "only=it1/responses") == 0
    assert world.run("iter=2", "only=it1/responses", "part=1/2") == 0
    assert "not evaluated yet" in (shown := card(world, 1).read_text())
    assert "iter=2\n" in shown and "only=" not in shown, "the command makes all of the run"


def two_runs(tmp_path: Path) -> tuple[MadeUp, MadeUp]:
    """They share their policies; the second has an evaluation of its own, which is not made yet."""
    first = made_up(tmp_path)
    run = dataclasses.replace(first.run, held_out=dataclasses.replace(first.run.held_out, confidence=0.9))
    second = first._replace(run=run, nodes=run.nodes())
    assert cards(first, 1) == cards(second, 1)
    return first, second


def make(story: MadeUp, name: str, metrics: dict[str, Any]) -> None:
    place = story.store.path(next(node for node in story.nodes if node.name == name))
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    (place / RECORD).write_text('{"files": {}}')


def test_the_last_run_that_measured_a_policy_has_the_card(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    assert "95% interval" in shown and "0.600" in shown
    assert written(second, "python -m src.main second") == shown, "it has not measured yet"
    make(second, "it1/evaluation", evaluation() | {"win_over_base": 0.7})
    after = written(second, "python -m src.main second")
    assert "90% interval" in after and "0.700" in after and "src.main second" in after
    assert written(first) == shown, "the last one that was carried out"


def test_a_run_with_less_measured_does_not_take_measurements_away(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    make(second, "it1/evaluation", evaluation())
    for node in second.nodes:
        if node.name == "it1/divergence":
            shutil.rmtree(second.store.path(node))
    assert written(second) == shown


def test_the_card_there_is_looked_at_once_more_when_the_other_process_is_done(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    shown = written(first)
    cards(first, 1).unlink()
    waiting = threading.Thread(target=write_cards, args=(second.run, second.nodes, second.store, COMMAND))
    with locked(first.store.root / ".locks" / f"card-{cards(first, 1).parent.name}.lock", ""):
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive() and not cards(first, 1).exists()
        cards(first, 1).write_text(shown)
    waiting.join(20)
    assert cards(first, 1).read_text() == shown


@pytest.mark.parametrize(
    "there", ["mine", "---\n{[\n---\n", "---\nmodel-index: x\n---\n", "---\nmodel-index: [{results: 1}]\n---\n", "\xff"]
)
def test_a_card_that_is_none_is_written_anew(there: str, tmp_path: Path) -> None:
    story = made_up(tmp_path)
    cards(story, 1).write_bytes(there.encode("latin-1"))
    assert written(story).startswith("---\nbase_model: mistralai/")


def test_a_kill_while_it_is_written_leaves_the_old_one_and_the_next_run_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = made_up(tmp_path)
    shown = written(story)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        written(story, "python -m src.main again")
    assert cards(story, 1).read_text() == shown
    assert len(leftovers := [p.name for p in cards(story, 1).parent.iterdir() if p.suffix == ".tmp"]) == 1
    assert not [line for line in damage(cards(story, 1).parent) if leftovers[0] in line]
    assert "src.main again" in written(story, "python -m src.main again")
    assert [p.name for p in cards(story, 1).parent.iterdir() if p.suffix == ".tmp"] == []


def test_a_store_of_somebody_else_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    story = made_up(tmp_path)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(write, "write_atomic", refuse)
    failures = write_cards(story.run, story.nodes, story.store, COMMAND)
    assert failures[0] == f"card: {cards(story, 1)} cannot be written (Permission denied); all else is there"
    assert len(failures) == 2


def test_numbers_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    make(story, "it1/evaluation", {})
    place = story.store.path(next(node for node in story.nodes if node.name == "it1/evaluation"))
    (place / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: cannot be read .*; delete the folder"):
        written(story)


def test_a_readme_that_a_stage_wrote_is_part_of_the_artifact(tmp_path: Path) -> None:
    story = made_up(tmp_path)
    cards(story, 1).write_text("of the stage")
    record = json.loads((cards(story, 1).with_name(RECORD)).read_text()) | {
        "files": {CARD: {"bytes": 1, "sha256": "x"}}
    }
    cards(story, 1).with_name(RECORD).write_text(json.dumps(record))
    assert written(story) == "of the stage"
    assert f"{cards(story, 1)}: damaged (sha256 differs from the record)" in damage(cards(story, 1).parent)


def test_a_policy_that_another_run_starts_from_has_the_same_key_with_and_without_its_card(world: World) -> None:
    folder = world.artifact("it2/policy").resolve()
    start = Checkpoint(name="again", repo=str(folder), revision="main")
    before = Node("base/policy", start).key
    card(world, 2).write_text("another card")
    assert Node("base/policy", start).key == before
    card(world, 2).unlink()
    assert Node("base/policy", start).key == before


def test_a_card_in_a_deeper_folder_is_a_file_like_any_other(tmp_path: Path) -> None:
    store, node = Store(tmp_path), Node("x", Copy(text="x"))
    place = store.make(node)
    (place / CARD).write_text("card")
    assert damage(place) == []
    (place / "deep" / CARD).write_text("stray")
    assert damage(place) == [f"{place / 'deep' / CARD}: not in the record"]


def test_the_published_file_is_part_of_the_package() -> None:
    """A wheel takes all of src/; what is read must lie there."""
    project = (ROOT / "pyproject.toml").read_text()
    assert 'packages = ["src", ' in project
    assert isinstance(yaml.safe_load((ROOT / "src" / "published.yaml").read_text()), dict)
