"""Every experiment from its first stage to its cards at toy size: its own YAML, tiny models."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
import torch
from answer_server import AnswerServer, answering
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from rehearsal_models import build_mirror
from tiny_run import call, folders, typed
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.experiment.graph import nodes_of
from src.experiment.run import Run
from src.experiment.run_folder import LINKS
from src.kernel.rows import PAIRS, RANKING, RESPONSES, Row, read_rows
from src.methods.wpo import WPO as WPOLoss
from src.modeling.policy import stop_ids
from src.reporting.wandb_tables import name_of

SPPO = "mistral_7b_pairrm_sppo"
OF_SPPO = ["mistralai/Mistral-7B-Instruct-v0.2", "microsoft/deberta-v3-large", "llm-blender/PairRM"]
OF_SPPO += ["snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset"]
PAIRRM = [SPPO, "gemma2_9b_it_sppo", "llama3_8b_instruct_sppo"]
PAIRRM += ["mistral_7b_iterative_dpo", "mistral_7b_iterative_ipo", "mistral_7b_snorkel_dpo"]
WPO = ["gemma2_9b_it_wpo_hb", "gemma2_9b_it_dpo_hb"]
IN_ONE_PROCESS = [
    "hardware.devices.count=1",
    "~deepspeed@hardware.devices.deepspeed",
    *(f"{key}=float32" for key in ("hardware.devices.precision", "hardware.engine.dtype", "ranker.precision")),
    "iter=1",
]
"""In `make test`: no launcher, and no bf16, which most CPUs are slow at."""
SAMPLED = 5
"""Answers of the policy to a prompt, in every experiment."""
GPT = "gpt-4-turbo-2024-04-09"


class Venue(NamedTuple):
    """Where the rehearsals take place, with what stands for gpt-4-turbo: it answers, and gives points."""

    place: Path
    mirror: str
    server: AnswerServer

    def words(self, experiment: str, *more: str) -> list[str]:
        """More prompts where gpt-4-turbo answers too: some of its answers must come into pairs."""
        wpo = ["data.prompts_per_iteration=12"] if experiment in WPO else []
        trust = ["ranker.trust_remote_code=true"] if experiment in WPO and "+variant=paper" not in more else []
        words = [f"experiment={experiment}", "+size=rehearsal", f"mirror={self.mirror}", "tracking=off"]
        return [*words, *wpo, *trust, *folders(self.place), *more]


class Rehearsal(NamedTuple):
    """A finished one."""

    run: Run
    folder: Path

    def artifact(self, name: str) -> Path:
        return self.folder / LINKS / name

    def rows(self, name: str, schema: pa.Schema) -> list[Row]:
        return read_rows(self.artifact(name), schema)

    @property
    def iterations(self) -> list[str]:
        return [f"it{t}" for t in range(1, self.run.iter + 1)]

    @property
    def policies(self) -> list[Path]:
        return [self.artifact(f"{name}/policy") for name in ("base", *self.iterations)]


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    """One store for all; the models of the others come when the first of them is rehearsed."""
    place = tmp_path_factory.mktemp("rehearsal")
    with answering() as server, pytest.MonkeyPatch.context() as patch:
        server.say = lambda body, number: answer_or_points(body)
        patch.setenv("OPENAI_BASE_URL", server.url)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
        yield Venue(place, f"{place / 'hub'}/", server)


def answer_or_points(body: dict[str, Any]) -> str:
    asked = body["messages"][-1]["content"]
    return str(1 + zlib.crc32(asked.encode()) % 6) if "Count how many of these six" in asked else "Yes."


def rehearse(venue: Venue, experiment: str, *more: str) -> Rehearsal:
    words = venue.words(experiment, *more)
    assert call(*words) == 0
    run = typed(*words)
    return Rehearsal(run, run.folder)


def check_policies(done: Rehearsal) -> None:
    """Plain transformers loads each, and each differs from the one it was trained from."""
    for before, after in pairwise(done.policies):
        one, other = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (before, after))
        assert one.keys() == other.keys()
        assert not all(torch.equal(one[name], other[name]) for name in one)
        kept = [AutoTokenizer.from_pretrained(folder) for folder in (before, after)]
        assert kept[0].get_vocab() == kept[1].get_vocab() and kept[0].chat_template == kept[1].chat_template
        assert stop_ids(before) == stop_ids(after)


def check_tokens(done: Rehearsal) -> None:
    """BOS once and first in every prompt; in an answer what ends it once, last, and where it was sampled."""
    bos, stops = AutoTokenizer.from_pretrained(done.policies[0]).bos_token_id, stop_ids(done.policies[0])
    names = [f"{name}/answers" for name in ("base", "null", *done.iterations)]
    for name in names + [f"{it}/responses" for it in done.iterations]:
        for row in done.rows(name, RESPONSES):
            assert row["prompt_token_ids"][0] == bos and row["prompt_token_ids"].count(bos) == 1
            for answer in row["responses"]:
                ended = [place for place, token in enumerate(answer["token_ids"]) if token in stops]
                last = len(answer["token_ids"]) - 1
                assert ended == ([last] if answer["finish_reason"] == "stop" else [])


def check_gpt4(done: Rehearsal) -> None:
    """One answer of gpt-4-turbo's beside the policy's to each prompt, and some in pairs."""
    rows, pairs = done.rows("it1/responses", RESPONSES), done.rows("it1/pairs", PAIRS)
    assert {tuple(a["source"] for a in row["responses"]) for row in rows} == {("policy",) * SAMPLED + (GPT,)}
    assert GPT in {pair[f"{side}_source"] for pair in pairs for side in ("chosen", "rejected")}


def check_pairs(done: Rehearsal, candidates: int) -> None:
    """Of K candidates a win rate that counts the answer itself is in [1/2K, 1 - 1/2K]."""
    for it in done.iterations:
        answers = {row["prompt_id"]: row["responses"] for row in done.rows(f"{it}/responses", RESPONSES)}
        pairs = done.rows(f"{it}/pairs", PAIRS)
        assert pairs and all(len(given) == candidates for given in answers.values())
        for pair in pairs:
            assert 1 / (2 * candidates) <= pair["rejected_win"] <= pair["chosen_win"] <= 1 - 1 / (2 * candidates)
            assert 0 < pair["chosen_beats_rejected"] < 1
            for side in ("chosen", "rejected"):
                answer = answers[pair["prompt_id"]][pair[f"{side}_index"]]
                assert (pair[f"{side}_source"], pair[f"{side}_token_ids"]) == (answer["source"], answer["token_ids"])


def check_metrics(done: Rehearsal) -> None:
    shown = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {
        it: [row["train/loss"] for row in shown if f"it{row['iteration']}" == it and "train/loss" in row]
        for it in done.iterations
    }
    assert all(len(found) >= 2 and all(map(math.isfinite, found)) for found in losses.values())
    assert (done.folder / "report.md").exists()


def check_cards(done: Rehearsal) -> None:
    """The hub's library reads each: a stand-in's, under the licence of the base, with the numbers of this run.

    Nobody should take it for what it rehearses.
    """
    assert done.folder.name.startswith("rehearsal-") and name_of(done.run).startswith("rehearsal ")
    for t, folder in enumerate(done.policies[1:], 1):
        shown = (folder / "README.md").read_text()
        data = ModelCard(shown).data
        told = json.loads((done.artifact(f"it{t}/evaluation") / "metrics.json").read_text())
        assert (data.get("base_model"), data.get("license")) == (None, done.run.model.license)
        _, results = model_index_to_eval_results((metadata_load(folder / "README.md") or {})["model-index"])
        assert told["win_over_base"] in {one.metric_value for one in results}
        assert f"experiment={done.run.experiment}" in shown and "it was trained from a stand-in" in shown
        assert (f"**here, iteration {t}**" in shown) == (done.run.experiment != "gemma2_9b_it_dpo_hb"), "published"
        others = {path.resolve().name for path in done.policies} - {folder.resolve().name}
        assert all(key in shown for key in others)


def check_again(venue: Venue, done: Rehearsal, words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """A second call makes nothing, asks for nothing, and says what the first one said."""

    def made() -> dict[str, tuple[Path, int]]:
        found = (done.folder / LINKS).glob("*/*")
        return {str(link): (link.resolve(), os.stat(link / "record.json").st_mtime_ns) for link in found}

    before, asked = made(), len(venue.server.bodies)
    capfd.readouterr()
    assert call(*words) == 0
    assert made() == before and len(before) == len(nodes_of(done.run)) and len(venue.server.bodies) == asked
    assert not re.search(r"^\[\d+/\d+\]", capfd.readouterr().out, re.MULTILINE)


def check(venue: Venue, experiment: str, capfd: pytest.CaptureFixture[str], *more: str) -> None:
    done = rehearse(venue, experiment, *more)
    if experiment in WPO:
        check_gpt4(done)
    check_policies(done)
    check_tokens(done)
    check_pairs(done, SAMPLED + (experiment in WPO))
    check_metrics(done)
    check_cards(done)
    check_again(venue, done, venue.words(experiment, *more), capfd)


def test_sppo_is_rehearsed_whole(venue: Venue, capfd: pytest.CaptureFixture[str]) -> None:
    build_mirror(venue.place / "hub", *OF_SPPO)
    check(venue, SPPO, capfd, *IN_ONE_PROCESS)


@pytest.fixture
def hub(venue: Venue, forked: None) -> Venue:
    """With all models and data sets; trainings in two processes under ZeRO-3, in bf16."""
    build_mirror(venue.place / "hub")
    return venue


@pytest.mark.full
@pytest.mark.parametrize("experiment", [*PAIRRM, *WPO])
def test_an_experiment_is_rehearsed_whole(experiment: str, hub: Venue, capfd: pytest.CaptureFixture[str]) -> None:
    check(hub, experiment, capfd)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["paper", "code"])
def test_wpos_variants_are_rehearsed_whole(variant: str, hub: Venue) -> None:
    """paper: GPT-4 gives points, and 5 or 6 are chosen; code: weights cut at 1."""
    done = rehearse(hub, WPO[0], f"+variant={variant}")
    check_policies(done)
    check_pairs(done, SAMPLED + 1)
    check_cards(done)
    assert isinstance(done.run.method, WPOLoss) and done.run.method.clamp == (variant == "code")
    scores = {row["prompt_id"]: row["scores"] for row in done.rows("it1/ranking", RANKING)}
    for pair in done.rows("it1/pairs", PAIRS):
        chosen, rejected = (scores[pair["prompt_id"]][pair[f"{side}_index"]] for side in ("chosen", "rejected"))
        if variant == "paper":
            assert chosen in (5, 6) and rejected <= chosen - 1
        else:
            assert (chosen, rejected) == (max(scores[pair["prompt_id"]]), min(scores[pair["prompt_id"]]))
