"""The judges against a scripted server: what is asked, and what is made of the replies."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from answer_server import AnswerServer, Said, text_of
from hypothesis import given
from hypothesis import strategies as st
from judge_server import between, judge, longer_wins, row, terms

from src.kernel.config import fingerprint
from src.pairing.win_probability import lead
from src.ranking.llm_judge import Question, questions_of
from src.ranking.stage import Rank

NOBODY = "http://x/v1"
PAIRWISE, POINTS = judge("pairwise", NOBODY), judge("points", NOBODY)


# What is asked -----------------------------------------------------------------------------------------------------


def test_every_pair_is_judged_in_both_orders(server: AnswerServer, tmp_path: Path) -> None:
    """C_ij is that of answer i shown first: the longer one has +2, in whichever place it stands."""
    server.say = longer_wins
    (ranking,) = judge("pairwise", server.url).rank([row("q", ["a", "bb", "c"])], (), tmp_path)
    nan = math.nan
    np.testing.assert_equal(ranking["logits"], [[nan, -2, 0], [2, nan, 2], [0, -2, nan]])
    assert ranking["scores"] is None and ranking["truncated"] == [False] * 3 and ranking["prompt_truncated"] is False
    assert terms(ranking)["judge_input_tokens"] == [20] * 3 and terms(ranking)["judge_output_tokens"] == [6] * 3
    assert len(server.bodies) == 6 and all(between(text, "request") == "q" for text in server.texts)
    sent = {name: server.bodies[0][name] for name in ("model", "temperature", "seed", "max_tokens", "top_logprobs")}
    assert sent == {"model": "gpt-4.1-mini-2025-04-14", "temperature": 0, "seed": 0, "max_tokens": 8, "top_logprobs": 5}


TEXT = st.text() | st.sampled_from(["{first}", "{second}", "{prompt} {answer} {fence}", r"\1", "{0}", "%s", "{}"])


@given(TEXT, TEXT, TEXT)
def test_no_text_can_break_the_format(prompt: str, first: str, second: str) -> None:
    """All texts stand between their marks as they are, and the marks hold digits the texts do not."""
    question = Question(prompt, (first, second))
    parts = re.split(rf"\[(?:end of )?(?:request|answer A|answer B) {question.key[:8]}\]\n", PAIRWISE.text(question))
    assert parts[1::2] == [f"{prompt}\n", f"{first}\n", f"{second}\n"]


def test_a_conversation_is_shown_line_by_line() -> None:
    chat = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    for messages, prompt in ((chat, "System: s\nUser: u\nAssistant: a\nUser: u"), (chat[1:2], "u")):
        asked = questions_of({"messages": messages, "responses": [{"text": "x"}]}, 1)
        assert asked == {(0,): Question(prompt, ("x",))}


READING = ["verdict_pattern='(A)'", "strength=1.0"]
FREE = ["name=n", "malformed_share_limit=0.5", "endpoint.concurrent=1", "endpoint.base_url=http://y/v1"]
FREE += ["endpoint.requests_per_minute=9.0", "endpoint.timeout_s=9.0", "endpoint.retries=9", "endpoint.input_price=9.0"]
SENDING = ["instruction='{prompt}{first}{second}'", "top_logprobs=0", "endpoint.model=m", "endpoint.temperature=null"]
SENDING += ["endpoint.seed=1", "endpoint.max_tokens=9", "+endpoint.extra_body.a=1"]


def test_replies_are_shared_by_judges_that_send_the_same() -> None:
    usual = Rank(ranker=PAIRWISE)
    others = {one: Rank(ranker=judge("pairwise", NOBODY, one)) for one in [*READING, *FREE, *SENDING]}
    assert {one for one, rank in others.items() if rank.shared() == usual.shared()} == {*READING, *FREE}
    assert {one for one, rank in others.items() if fingerprint(rank) == fingerprint(usual)} == {*FREE}


# Verdicts ----------------------------------------------------------------------------------------------------------


def test_a_verdict_stands_in_a_line_of_its_own() -> None:
    compared = {
        2.0: ["A", "a", "**A**", "(A).", "Answer: A", "Verdict:\nA", "B?\n\nA"],
        -2.0: ["B", " B\n", "[[B]]", "A\nB"],
        0.0: ["tie", "Tie."],
        None: ["", "A better answer would", "AB", "C", "neither", "A or B"],
    }
    counted = {
        5.0: ["5", "**5**", "5/6", "Points: 5", "5 out of 6", "5 points.", "3\n5"],
        4.5: ["4.5"],
        None: ["", "7", "0", "five", "5 or 6", "It is 5", "55", "1e1"],
    }
    for ranker, replies_of in ((PAIRWISE, compared), (POINTS, counted)):
        for value, replies in replies_of.items():
            for reply in replies:
                assert ranker.value({"text": reply, "tokens": []}) == value, reply


def test_log_probabilities_say_more_than_the_verdict(server: AnswerServer, tmp_path: Path) -> None:
    """So a judge that always names the first place prefers nothing."""
    cases: list[tuple[dict[str, float], float]] = [
        ({"A": 0.6, "B": 0.2, "The": 0.1}, math.log(3)),
        ({"B": 0.6, " A": 0.2, "A": 0.1}, -math.log(2)),  # a letter may be several tokens
        ({"A": 0.9, "The": 0.06}, math.log(0.9 / 0.04)),  # B has at most the 0.04 that are left
        ({"B": 0.5, "The": 0.01}, -math.log(0.5 / 0.01)),  # A has at most what the last in the list has
    ]
    for number, (top, logit) in enumerate(cases):
        reply = Said(max(top, key=top.__getitem__), top={t: math.log(p) for t, p in top.items()})
        server.say = lambda body, _, reply=reply: reply
        (ranking,) = judge("pairwise", server.url).rank([row("q", ["a", "b"])], (), tmp_path / f"{number}")
        assert ranking["logits"][0][1] == ranking["logits"][1][0] == pytest.approx(logit)
        assert not lead(ranking).any()
    (plain,) = judge("pairwise", server.url, "top_logprobs=0").rank([row("q", ["a", "b"])], (), tmp_path / "plain")
    assert plain["logits"][0][1] == -2 and "logprobs" not in server.bodies[-1]


def test_a_mended_pattern_reads_kept_replies_and_equal_texts_are_asked_once(
    server: AnswerServer, tmp_path: Path
) -> None:
    """A with 0.6 and B with 0.2: log 3. The tie that comes of a wrong pattern is no reason to ask again."""
    server.say = lambda body, _: Said("A", top={"A": math.log(0.6), "B": math.log(0.2)})
    rows = [row("q", ["a", "b"])] * 2
    wrong = judge("pairwise", server.url, "verdict_pattern='winner: (A|B)'", "malformed_share_limit=1.0")
    assert wrong.rank(rows, (), tmp_path)[0]["logits"][0][1] == 0
    first, twin = judge("pairwise", server.url, "strength=9.0").rank(rows, (), tmp_path)
    assert first["logits"][0][1] == pytest.approx(math.log(3)) and str(first) == str(twin) and len(server.bodies) == 2
    (ranking,) = judge("pairwise", server.url).rank([row("q", ["b", "a", "b"])], (), tmp_path)
    assert len(server.bodies) == 2 and np.array(ranking["logits"])[0, 2] == 0
    assert sum(terms(ranking)["judge_input_tokens"]) == 2 * 10, "the pair of two texts, in both orders"
    (alike,) = judge("pairwise", server.url).rank([row("q", ["c", "c"])], (), tmp_path)
    assert len(server.bodies) == 2 and alike["logits"][0][1] == 0, "nothing to ask"


def test_points_are_scores_and_a_malformed_verdict_is_neither_best_nor_worst(
    server: AnswerServer, tmp_path: Path
) -> None:
    """(2 + 5) / 2 for the second answer of p; the only answer of q gets the mean (2 + 5 + 3) / 3 of all there is."""
    server.say = lambda body, _: between(text_of(body), "answer")
    rows = [row("p", ["2", "no", "5"]), row("q", ["9"]), row("r", ["3"])]
    rankings = judge("points", server.url, "malformed_share_limit=0.5").rank(rows, (), tmp_path)
    assert [ranking["scores"] for ranking in rankings] == [[2, 3.5, 5], [pytest.approx(10 / 3)], [3]]
    assert all(ranking["logits"] is None for ranking in rankings)
    assert [terms(ranking)["malformed"] for ranking in rankings] == [[0, 1, 0], [1], [0]]


def test_malformed_verdicts_are_ties_and_counted(server: AnswerServer, tmp_path: Path) -> None:
    """4 of 6, half of each for either answer. A text that the endpoint refuses is one too."""
    refusal = Said(status=400, body='{"error": {"message": "maximum context length"}}')
    server.say = lambda body, _: "A" if "bb" not in text_of(body) else refusal if "ccc" in text_of(body) else "What?"
    (ranking,) = judge("pairwise", server.url, "malformed_share_limit=0.7").rank(
        [row("q", ["a", "bb", "ccc"])], (), tmp_path
    )
    assert len(server.bodies) == 6
    assert ranking["logits"][0][1] == ranking["logits"][1][0] == 0 and ranking["logits"][0][2] == 2
    assert terms(ranking)["malformed"] == [1, 1, 1]
    assert terms(ranking)["malformed_verdicts"] == [1, 2, 1]
