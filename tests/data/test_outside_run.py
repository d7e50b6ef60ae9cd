"""A run with answers that the policy did not give: what they change, and that they get through to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answer_server import IMPATIENT, Said, answering
from judge_server import longer_wins, serving
from outside_answers import written
from tiny_run import HELD_OUT, PROMPTS, World, call, composed, folders, tiny

from src import records
from src.main import build


def keys(place: Path, llama: Path, *more: str) -> dict[str, str]:
    run = build(composed("iter=1", *tiny(llama, place), *more))
    return {node.name: node.key for node in run.nodes()}


def test_answers_change_what_is_ranked_and_not_what_is_sampled_or_held_out(llama: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "answer": "y"}]
    words = [f"data.answers.gpt.path={written(tmp_path, rows)}", "data.answers.gpt.source=gpt"]
    without, mixed = keys(tmp_path, llama), keys(tmp_path, llama, "+answers@data.answers.gpt=file", *words)
    assert mixed["it1/own_responses"] == without["it1/responses"] != mixed["it1/responses"]
    same = {"it1/prompts", "base/policy", "held_out/prompts", "base/answers", "null/answers", "base/answers_ranking"}
    assert all(mixed[name] == without[name] for name in same) and mixed["it1/ranking"] != without["it1/ranking"]
    moved = written(tmp_path, rows).rename(tmp_path / "sub.jsonl").rename(tmp_path / "outside.jsonl")
    assert moved and keys(tmp_path, llama, "+answers@data.answers.gpt=file", *words) == mixed
    written(tmp_path, [{"prompt": "x", "answer": "z"}])
    changed = keys(tmp_path, llama, "+answers@data.answers.gpt=file", *words)
    assert {name for name in mixed if changed[name] != mixed[name]} == {
        name for name in mixed if name.startswith("it1/") and name not in ("it1/prompts", "it1/own_responses")
    }


def outside_file(place: Path) -> Path:
    """An answer to each prompt of part 0 but the first; far longer than any of the policy's."""
    texts = [json.loads(line)["messages"][0]["content"] for line in (place / "part0.jsonl").read_text().splitlines()]
    return written(
        place, [{"prompt": text, "answer": f"An answer of many words to {n}."} for n, text in enumerate(texts)][1:]
    )


@pytest.mark.full
@pytest.mark.parametrize("judge", [False, True], ids=["scores", "comparisons"])
def test_a_run_with_an_outside_answer_ranks_pairs_trains_and_reports(
    judge: bool, llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """K=2 of the policy's and one from a file, for three of four prompts; a judge that prefers length chooses it."""
    with serving() as server:
        server.script = longer_wins
        url = f"ranker.endpoint.base_url={server.url}"
        words = tiny(llama, tmp_path, ranker=["ranker=llm_judge_pairwise", url] if judge else None)
        mix = ["+answers@data.answers.gpt=file", f"data.answers.gpt.path={outside_file(tmp_path)}"]
        mix += ["data.answers.gpt.source=gpt-4-turbo", "data.answers.gpt.max_answer_tokens=100", "sampling.K=2"]
        assert call("iter=1", *words, *mix) == 0, capfd.readouterr().err
    assert "answers gpt: 3 answers added to 4 prompts; 1 missing, 0 empty, 0 over 100" in capfd.readouterr().out
    world = World(tmp_path, words)
    rows = records.read_rows(world.artifact("it1/responses"), records.RESPONSES)
    expected = [["policy"] * 2 + ["gpt-4-turbo"] * (n != 0) for n in range(4)]
    assert [[answer["source"] for answer in row["responses"]] for row in rows] == expected
    pairs = records.read_rows(world.artifact("it1/pairs"), records.PAIRS)
    if judge:
        assert [pair["chosen_source"] for pair in pairs].count("gpt-4-turbo") == 3
        by_prompt = {row["prompt_id"]: row["responses"] for row in rows}
        for pair in pairs:
            assert pair["chosen_token_ids"] == by_prompt[pair["prompt_id"]][pair["chosen_index"]]["token_ids"]
    numbers = world.metrics("it1/pairs")
    for side in ("chosen", "rejected"):
        share = sum(pair[f"{side}_source"] == "gpt-4-turbo" for pair in pairs) / len(pairs)
        assert numbers[f"{side}_outside"] == share
    assert ("gpt-4-turbo) " in (world.folder / "report.md").read_text()) and (
        numbers["chosen_outside"] == 0.75 or not judge
    )
    told = world.metrics("it1/outside_gpt")
    assert {name: told[name] for name in ("rows", "unused", "doubled")} == {"rows": 3, "unused": 0, "doubled": 0}
    assert (told["answers"], told["prompts"]) == (3, 4)
    shown = [json.loads(line) for line in (world.folder / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("responses/gpt/missing") == 1 for row in shown)
    assert (world.folder / "report.md").exists() and (world.artifact("it1/policy") / "model.safetensors").exists()
    assert call("verify", "iter=1", *words, *mix, *folders(tmp_path)) == 0


@pytest.mark.full
def test_a_run_whose_answers_all_come_from_servers_asks_for_each_once(llama: Path, tmp_path: Path) -> None:
    """A server in place of the policy, and another that gives one more candidate, which no later run asks for again."""
    with answering() as server, answering() as outside:
        server.say = lambda body, number: Said(f"the word {number}", "length")
        outside.say = lambda body, number: "an answer from outside"
        words = tiny(llama, tmp_path, "sampling.K=2", "iter=1", "engine@hardware.engine=openai")
        words += ["hardware.engine.ask=chat", "hardware.engine.source=served", "+answers@data.answers.gpt=endpoint"]
        words += ["data.answers.gpt.max_answer_tokens=50"]
        for key, url in (("hardware.engine", server.url), ("data.answers.gpt", outside.url)):
            words += [f"{key}.{option}" for option in (f"endpoint.base_url={url}", *IMPATIENT)]
        assert call(*words) == 0
        # K of the prompts; of the held-out ones base, null and iteration 1
        assert len(server.bodies) == len(set(server.asked)) == 2 * PROMPTS + 3 * HELD_OUT
        assert len(outside.bodies) == PROMPTS
        world = World(tmp_path, words)
        rows = records.read_rows(world.artifact("it1/responses"), records.RESPONSES)
        assert [[a["source"] for a in row["responses"]] for row in rows] == [
            ["served", "served", "gpt-4-turbo-2024-04-09"]
        ] * PROMPTS
        assert call(*words, "data.answers.gpt.source=other", "train.lr=1e-3") == 0
        assert (len(server.bodies), len(outside.bodies)) == (2 * PROMPTS + 4 * HELD_OUT, PROMPTS)
