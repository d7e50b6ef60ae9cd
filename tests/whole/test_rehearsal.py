"""Every experiment from its first stage to its cards at toy size: its own YAML, tiny models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from answer_server import answering
from huggingface_hub import ModelCard
from rehearsal_models import build_mirror
from tiny_run import call, folders, typed
from transformers import AutoModelForCausalLM, AutoTokenizer

from src.experiment.run import Run
from src.experiment.run_folder import LINKS
from src.kernel.rows import PAIRS, RANKING, RESPONSES, read_rows
from src.methods.wpo import WPO as WPOLoss
from src.modeling.policy import stop_ids
from src.reporting.wandb_tables import name_of

SPPO = "mistral_7b_pairrm_sppo"
OF_SPPO = ["mistralai/Mistral-7B-Instruct-v0.2", "microsoft/deberta-v3-large", "llm-blender/PairRM"]
OF_SPPO += ["snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset"]
PAIRRM = [SPPO, "gemma2_9b_it_sppo", "llama3_8b_instruct_sppo"]
PAIRRM += ["mistral_7b_iterative_dpo", "mistral_7b_iterative_ipo", "mistral_7b_snorkel_dpo"]
BY_SCRIPT = ["gemma2_9b_it_sppo", "llama3_8b_instruct_sppo"]
"""llm-blender ranks, in fp16; a CPU wants fp32. Identical answers are kept; soon a tiny policy has no others."""
WPO = ["gemma2_9b_it_wpo_hb", "gemma2_9b_it_dpo_hb"]
PRECISIONS = ("hardware.devices.precision", "hardware.engine.dtype", "ranker.precision", "held_out.ranker.precision")
IN_ONE_PROCESS = ["hardware.devices.count=1", "~deepspeed@hardware.devices.deepspeed", "iter=1"]
IN_ONE_PROCESS += [f"{key}=float32" for key in PRECISIONS]
"""In `make test`: no launcher, and no bf16, which most CPUs are slow at."""
SAMPLED = 5
"""Answers of the policy to a prompt, in every experiment."""
GPT = "gpt-4-turbo-2024-04-09"


class Venue(NamedTuple):
    """Where the rehearsals take place."""

    place: Path

    def words(self, experiment: str, *more: str) -> list[str]:
        """Return the command; more prompts where gpt-4-turbo answers too: some of its answers must come into pairs."""
        words = [f"experiment={experiment}", "+size=rehearsal", f"mirror={self.place / 'hub'}/", "tracking=off"]
        words += ["data.prompts_per_iteration=12"] if experiment in WPO else []
        words += ["ranker.trust_remote_code=true"] if experiment in WPO else []
        words += ["ranker.precision=float32", "iter=2"] if experiment in BY_SCRIPT else []
        return [*words, *folders(self.place), *more]


def artifact(run: Run, name: str) -> Path:
    return run.folder / LINKS / name


def iterations(run: Run) -> list[str]:
    return [f"it{t}" for t in range(1, run.iter + 1)]


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Venue]:
    """One store serves all. A server stands for gpt-4-turbo."""
    place = tmp_path_factory.mktemp("rehearsal")
    with answering() as server, pytest.MonkeyPatch.context() as patch:
        server.say = lambda body, number: "Yes."
        patch.setenv("OPENAI_BASE_URL", server.url)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache")
        yield Venue(place)


def check_policies(run: Run) -> None:
    """Plain transformers loads each, and each differs from the one it was trained from."""
    for names in pairwise(["base", *iterations(run)]):
        before, after = folders = [artifact(run, f"{name}/policy") for name in names]
        weights, others = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
        assert weights.keys() == others.keys()
        assert not all(torch.equal(weights[name], others[name]) for name in weights)
        old, new = (AutoTokenizer.from_pretrained(folder) for folder in folders)
        assert (old.get_vocab(), old.chat_template) == (new.get_vocab(), new.chat_template)
        assert stop_ids(before) == stop_ids(after)


def check_tokens(run: Run) -> None:
    """BOS once and first in every prompt; in an answer what ends it once, last, and where it was sampled."""
    policy = artifact(run, "base/policy")
    bos, stops = AutoTokenizer.from_pretrained(policy).bos_token_id, stop_ids(policy)
    names = [f"{name}/answers" for name in ("base", "null", *iterations(run))]
    names += [f"{it}/responses" for it in iterations(run)]
    for row in chain.from_iterable(read_rows(artifact(run, name), RESPONSES) for name in names):
        assert row["prompt_token_ids"][0] == bos and row["prompt_token_ids"].count(bos) == 1
        for answer in row["responses"]:
            ends = [place for place, token in enumerate(answer["token_ids"]) if token in stops]
            assert ends == ([len(answer["token_ids"]) - 1] if answer["finish_reason"] == "stop" else [])


def check_pairs(run: Run) -> None:
    """Of K candidates a win rate that counts the answer itself is in [1/2K, 1 - 1/2K]."""
    sources = ["policy"] * SAMPLED + [GPT] * (run.experiment in WPO)
    least = 1 / (2 * len(sources))
    for it in iterations(run):
        pairs = read_rows(artifact(run, f"{it}/pairs"), PAIRS)
        rows = read_rows(artifact(run, f"{it}/responses"), RESPONSES)
        answers = {row["prompt_id"]: row["responses"] for row in rows}
        assert all([answer["source"] for answer in some] == sources for some in answers.values())
        for pair in pairs:
            assert all(least <= pair[f"{side}_win"] <= 1 - least for side in ("chosen", "rejected"))
            assert 0 < pair["chosen_beats_rejected"] < 1
            for side in ("chosen", "rejected"):
                answer = answers[pair["prompt_id"]][pair[f"{side}_index"]]
                assert (pair[f"{side}_source"], pair[f"{side}_token_ids"]) == (answer["source"], answer["token_ids"])
        paired = {pair[f"{side}_source"] for pair in pairs for side in ("chosen", "rejected")}
        assert paired == set(sources), "some of gpt-4-turbo's are in pairs"


def check_reports(run: Run) -> None:
    """Losses are finite. The hub's library reads each card, and nobody should take one for what it rehearses."""
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert run.folder.name.startswith("rehearsal-") and name_of(run).startswith("rehearsal ")
    for t, it in enumerate(iterations(run), 1):
        losses = [row["train/loss"] for row in rows if row["iteration"] == t and "train/loss" in row]
        assert len(losses) >= 2 and all(map(math.isfinite, losses))
        text = (artifact(run, f"{it}/policy") / "README.md").read_text()
        data = ModelCard(text).data
        assert (data.get("base_model"), data.get("license")) == (None, run.model.license)
        results = {result.metric_value for result in data.eval_results or []}
        assert json.loads((artifact(run, f"{it}/evaluation") / "metrics.json").read_text())["win_over_base"] in results
        assert f"experiment={run.experiment}" in text and "it was trained from a stand-in" in text


def rehearse(venue: Venue, experiment: str, *more: str) -> Run:
    words = venue.words(experiment, *more)
    assert call(*words) == 0
    run = typed(*words)
    check_policies(run)
    check_tokens(run)
    check_pairs(run)
    check_reports(run)
    return run


def test_sppo_is_rehearsed_whole(venue: Venue) -> None:
    build_mirror(venue.place / "hub", *OF_SPPO)
    rehearse(venue, SPPO, *IN_ONE_PROCESS)


@pytest.fixture
def hub(venue: Venue) -> Venue:
    """With all models and data sets; trainings in two processes under ZeRO-3, in bf16."""
    build_mirror(venue.place / "hub")
    return venue


@pytest.mark.full
@pytest.mark.parametrize("experiment", [*PAIRRM, *WPO])
def test_an_experiment_is_rehearsed_whole(experiment: str, hub: Venue) -> None:
    rehearse(hub, experiment)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["paper", "card"])
def test_wpos_variants_are_rehearsed_whole(variant: str, hub: Venue) -> None:
    """Both take ArmoRM's best and worst; the card is silent on the clamp, and the script cuts weights at 1."""
    run = rehearse(hub, WPO[0], f"+variant={variant}")
    assert isinstance(run.method, WPOLoss) and run.method.clamp == (variant == "card")
    ranking = {row["prompt_id"]: row["scores"] for row in read_rows(artifact(run, "it1/ranking"), RANKING)}
    for pair in read_rows(artifact(run, "it1/pairs"), PAIRS):
        scores = ranking[pair["prompt_id"]]
        chosen, rejected = (scores[pair[f"{side}_index"]] for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (max(scores), min(scores))
