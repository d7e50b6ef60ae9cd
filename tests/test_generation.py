"""Sampling: the seeds, the end of an answer, what an answer depends on, and a run that is killed and started again.

Run: python -m pytest -q tests/test_generation.py
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from test_draw import naive_draw
from transformers import AutoModelForCausalLM

from src import records
from src.artifact import WORK, Node, Store
from src.cells import CELLS, cell_of
from src.config import UserError
from src.generation.complete import check_complete
from src.generation.contract import Made, Request, Sampler, Sampling
from src.generation.merge import Merge
from src.generation.stage import Dealing, Generate, summary
from src.generation.transformers_engine import TransformersEngine
from src.model import load_tokenizer

pytestmark = pytest.mark.slow

QUESTIONS = ("hi", "what is it", "None", "and with his words that they had by this have from or one", "ok?", "be it so")
CODE = Sampling(K=3, temperature=0.7, top_p=0.9, max_new_tokens=10, max_prompt_tokens=200)
ALONE = Dealing(workers=1, nodes=1, save_seconds=1000.0)


def ending_often(policy: Path, folder: Path) -> Path:
    """A copy with thirty ids that end an answer, so that some answers end by themselves and leave the batch."""
    shutil.copytree(policy, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [settings["eos_token_id"], *range(300, 329)]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def talker(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ending_often(llama, tmp_path_factory.mktemp("talker") / "policy")


def stops(policy: Path) -> set[int]:
    ids = json.loads((policy / "generation_config.json").read_text())["eos_token_id"]
    return set(ids if isinstance(ids, list) else [ids])


def write_prompts(folder: Path, questions: Sequence[str]) -> Path:
    folder.mkdir(parents=True)
    chats = [[{"role": "user", "content": question}] for question in questions]
    rows = [{"prompt_id": records.prompt_id(c), "messages": c, "source": "test", "checks": "[]"} for c in chats]
    records.write_rows(folder, rows, records.PROMPTS)
    return folder


def engine(batch_answers: int = 4, dtype: Any = "float32") -> TransformersEngine:
    return TransformersEngine(dtype=dtype, batch_answers=batch_answers, device="cpu")


Say = Callable[..., dict[str, records.Row]]


@pytest.fixture
def say(talker: Path, tmp_path: Path) -> Say:
    """Run the stage in fresh folders; the row of each question."""

    def run(
        questions: Sequence[str] = QUESTIONS,
        sampling: Sampling = CODE,
        seed: int = 0,
        policy: Path = talker,
        batch: int = 4,
        dtype: str = "float32",
        dealing: Dealing = ALONE,
    ) -> dict[str, records.Row]:
        here = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        prompts, out = write_prompts(here / "prompts", questions), here / "out"
        out.mkdir()
        stage = Generate(sampling=sampling, engine=engine(batch, dtype), seed=seed, dealing=dealing)
        stage(prompts, policy, out=out)
        rows = records.read_rows(out, records.RESPONSES)
        return {row["messages"][0]["content"]: row for row in rows}

    return run


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2"])
def test_every_token_is_the_naive_draw_from_the_plain_model(
    architecture: str, say: Say, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Slots, sliding windows, soft-caps and rows that change hands change nothing: step t uses the t-th uniform."""
    folder = ending_often(request.getfixturevalue(architecture), tmp_path_factory.mktemp("ending") / "policy")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for row in say(policy=folder, sampling=dataclasses.replace(CODE, K=2, max_new_tokens=20)).values():
        prompt = row["prompt_token_ids"]
        for answer in row["responses"]:
            made = answer["token_ids"]
            stream = torch.Generator().manual_seed(answer["seed"])
            uniforms = torch.rand(20, generator=stream, dtype=torch.float64).tolist()
            with torch.no_grad():
                logits = model(torch.tensor([prompt + made])).logits[0, len(prompt) - 1 : -1] / 0.7
            assert made == [naive_draw(z.tolist(), 0.9, u) for z, u in zip(logits, uniforms, strict=False)]


@pytest.mark.parametrize("architecture", ["talker", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_answer_depends_on_its_cell_alone(
    architecture: str, dtype: str, say: Say, request: pytest.FixtureRequest
) -> None:
    """Bit for bit: whatever K, the other prompts, the number of rows, of workers and of threads."""
    policy = request.getfixturevalue(architecture)
    long = dataclasses.replace(CODE, K=5, max_new_tokens=150)
    expected = say(policy=policy, dtype=dtype, sampling=long, batch=64)

    def same(questions: Sequence[str] = QUESTIONS, K: int = 5, **how: Any) -> bool:
        made = say(questions, policy=policy, dtype=dtype, sampling=dataclasses.replace(long, K=K), **how)
        return all(made[q]["responses"] == expected[q]["responses"][:K] for q in questions if q in expected)

    assert same(K=3, batch=1)
    assert same([*QUESTIONS[::-1], "one more " * 40, "and more"], batch=20)
    assert same(QUESTIONS[2:4], K=2, batch=16)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - threads if threads < 3 else 1)
        assert same(batch=30)
    finally:
        torch.set_num_threads(threads)


def test_rows_keep_the_order_of_the_prompts(say: Say) -> None:
    assert list(say(QUESTIONS[::-1])) == list(QUESTIONS[::-1])


def test_answers_differ_by_seed_prompt_and_number(say: Say) -> None:
    rows = [*say(seed=0).values(), *say(seed=1).values()]
    answers = [answer for row in rows for answer in row["responses"]]
    assert len({answer["seed"] for answer in answers}) == len(answers)
    assert len({tuple(answer["token_ids"]) for answer in answers}) == len(answers)


def test_an_answer_ends_in_eos_exactly_where_one_was_sampled(say: Say, talker: Path) -> None:
    ends, tokenizer = stops(talker), load_tokenizer(talker)
    rows = say(sampling=dataclasses.replace(CODE, K=8, temperature=1.0, top_p=1.0)).values()
    answers = [answer for row in rows for answer in row["responses"]]
    assert {answer["finish_reason"] for answer in answers} == {"stop", "length"}
    for answer in answers:
        ids, stopped = answer["token_ids"], answer["finish_reason"] == "stop"
        assert [i for i, token in enumerate(ids) if token in ends] == ([len(ids) - 1] if stopped else [])
        assert stopped or len(ids) == 10
        assert answer["text"] == tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
        assert "<|im_end|>" not in answer["text"]


def test_overlong_prompts_are_left_out_and_counted(say: Say, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {question: len(row["prompt_token_ids"]) for question, row in say().items()}
    limit = sorted(lengths.values())[-2]  # one prompt is longer
    kept = say(sampling=dataclasses.replace(CODE, max_prompt_tokens=limit))
    assert list(kept) == [question for question in QUESTIONS if lengths[question] <= limit]
    assert "1 of 6 prompts are over max_prompt_tokens; left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="sampling.max_prompt_tokens"):
        say(sampling=dataclasses.replace(CODE, max_prompt_tokens=1))


# Killed and started again


class PowerCut(Exception):
    pass


def test_metrics_say_how_many_answers_there_are_how_long_and_how_different() -> None:
    def answer(text: str, tokens: int, reason: str) -> dict[str, Any]:
        return {"text": text, "token_ids": [1] * tokens, "finish_reason": reason}

    same = {"responses": [answer("a", 1, "stop"), answer("a", 2, "stop"), answer(" ", 9, "length")]}
    other = {"responses": [answer("a", 4, "stop"), answer("b", 4, "stop"), answer("c", 4, "length")]}
    assert summary([same, other]) == {
        "prompts": 2,
        "answers": 6,
        "tokens": 4,
        "most_tokens": 9,
        "finished": 4 / 6,
        "empty": 1 / 6,
        "distinct": 5 / 6,
    }


@dataclasses.dataclass
class Fragile(Sampler):
    """The real engine, whose power is cut before answer number `dies_at`; notes what it was asked for."""

    inner: TransformersEngine
    dies_at: int | None = None
    spoils: dict[str, Any] | None = None
    """What is wrong with the third answer."""
    asked: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    apart: ClassVar[bool] = False
    source: ClassVar[str] = "policy"
    devices_each: ClassVar[int] = 1
    device: ClassVar[str] = "cpu"

    def open(self, policy: Path, sampling: Sampling) -> Sampler:
        self.sampler = self.inner.open(policy, sampling)
        return self

    def answers(self, requests: list[Request]) -> Iterator[Made]:
        self.asked += [(r.prompt_id, k) for r in requests for k in r.seeds]
        for number, made in enumerate(self.sampler.answers(requests)):
            if number == self.dies_at:
                raise PowerCut
            if number == 2 and self.spoils:
                made = made._replace(answer=made.answer._replace(**self.spoils))
            yield made


CELL_COUNT = len(QUESTIONS) * CODE.K


def generate(fragile: Fragile, prompts: Path, policy: Path, out: Path, K: int = CODE.K) -> bytes:
    out.mkdir(exist_ok=True)
    Generate(sampling=dataclasses.replace(CODE, K=K), engine=fragile, seed=0, dealing=ALONE)(prompts, policy, out=out)
    return (out / records.ROWS).read_bytes()


def test_a_killed_run_makes_only_the_missing_answers_and_the_same_bytes(talker: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts", QUESTIONS)
    whole, first, second, third = (Fragile(engine(), dies_at=n) for n in (None, 7, None, None))
    expected = generate(whole, prompts, talker, tmp_path / "whole")
    with pytest.raises(PowerCut):
        generate(first, prompts, talker, tmp_path / "cut")
    assert not (tmp_path / "cut" / records.ROWS).exists()
    (torn,) = (tmp_path / "cut" / WORK / CELLS).glob("*.jsonl")
    with torn.open("a") as file:
        file.write('["torn by the power c')
    assert generate(second, prompts, talker, tmp_path / "cut") == expected
    assert (len(whole.asked), len(first.asked), len(second.asked)) == (CELL_COUNT, CELL_COUNT, CELL_COUNT - 7)

    lines = torn.read_text().splitlines()
    torn.write_text("\n".join(lines[:3] + lines[4:-1]) + "\n")
    assert generate(third, prompts, talker, tmp_path / "cut") == expected
    assert [f"{prompt_id}/{k}" for prompt_id, k in third.asked] == [cell_of(lines[3].encode())[0]]


def test_more_answers_and_more_prompts_make_the_new_ones_only(talker: Path, tmp_path: Path) -> None:
    """K = 3 -> 5 samples two more a prompt, 5 -> 3 none, more prompts theirs; all from the store's shared cells."""
    few, all_of_them = (write_prompts(tmp_path / f"prompts{n}", QUESTIONS[:n]) for n in (4, 6))
    asked = []
    for number, (prompts, k) in enumerate([(few, 3), (few, 5), (few, 3), (all_of_them, 5)]):
        fragile, out = Fragile(engine()), tmp_path / str(number)
        (out / WORK).mkdir(parents=True)
        (tmp_path / "shared").mkdir(exist_ok=True)
        (out / WORK / CELLS).symlink_to(tmp_path / "shared")
        generate(fragile, prompts, talker, out, k)
        asked.append(len(fragile.asked))
    assert asked == [12, 8, 0, 10]


def test_what_is_shared_depends_on_all_that_moves_an_answer(talker: Path, tmp_path: Path) -> None:
    def place(batch: int = 4, dtype: Any = "float32", seed: int = 0, policy: str = "a", **sampling: Any) -> Path | None:
        made = dataclasses.replace(CODE, **sampling)
        stage = Generate(sampling=made, engine=engine(batch, dtype), seed=seed, dealing=ALONE)
        before = Generate(sampling=CODE, engine=engine(), seed=ord(policy), dealing=ALONE)
        inputs = (Node("prompts", stage), Node("policy", before))
        return Store(tmp_path).cells(Node("responses", stage, inputs))

    assert place() == place(K=8) == place(max_prompt_tokens=7) == place(batch=64) is not None
    others = [
        place(temperature=0.8),
        place(top_p=1.0),
        place(max_new_tokens=11),
        place(seed=1),
        place(dtype="bfloat16"),
        place(policy="b"),
    ]
    assert len({place(), *others}) == 7


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_give_the_same_bytes(workers: int, say: Say) -> None:
    assert say(dealing=Dealing(workers=workers, nodes=1, save_seconds=0.01)) == say()


def test_shares_made_apart_are_all_that_the_artifact_needs(talker: Path, tmp_path: Path) -> None:
    """Tasks of a job array fill the cells; one that failed leaves its share to whoever comes next."""
    prompts, asked = write_prompts(tmp_path / "prompts", QUESTIONS), []
    for part in (0, 2, 0):
        fragile = Fragile(engine())
        stage = Generate(sampling=CODE, engine=fragile, seed=0, dealing=ALONE)
        (tmp_path / "out" / WORK).mkdir(parents=True, exist_ok=True)
        stage.fill(prompts, talker, out=tmp_path / "out", part=part, parts=3)
        asked.append(len(fragile.asked))
    last = Fragile(engine())
    made = generate(last, prompts, talker, tmp_path / "out")
    assert (asked, len(last.asked)) == ([6, 6, 0], 6)
    assert made == generate(Fragile(engine()), prompts, talker, tmp_path / "whole")


# What is handed on


def spoilt(row: records.Row, how: str) -> list[records.Row]:
    answers = row["responses"]
    changed = {
        "missing": answers[:-1],
        "doubled": [*answers, answers[0]],
        "foreign": [*answers[:-1], answers[-1] | {"seed": 1}],
    }
    return [row, row] if how == "row doubled" else [] if how == "row missing" else [row | {"responses": changed[how]}]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "1 answers .*answer 2: missing"),
        ("doubled", "1 answers .*answer 0: 2 times"),
        ("foreign", "2 answers .*answer 2: missing"),
        ("row doubled", "3 answers .*answer 0: 2 times"),
        ("row missing", "3 answers .*answer 0: missing"),
    ],
)
def test_answers_that_are_not_as_they_were_asked_for_are_not_handed_on(
    how: str, said: str, talker: Path, tmp_path: Path
) -> None:
    prompts, out = write_prompts(tmp_path / "prompts", QUESTIONS[:2]), tmp_path / "out"
    generate(Fragile(engine()), prompts, talker, out)
    first, second = records.read_rows(out, records.RESPONSES)
    asked = [
        Request(row["prompt_id"], [], [], {k: a["seed"] for k, a in enumerate(row["responses"])})
        for row in (first, second)
    ]
    check_complete(out, asked)
    records.write_rows(out, [first, *spoilt(second, how)], records.RESPONSES)
    with pytest.raises(UserError, match=rf"{said}") as refused:
        check_complete(out, asked)
    assert second["prompt_id"] in str(refused.value)


@pytest.mark.parametrize("fault", [{"token_ids": []}, {"finish_reason": "abort"}])
def test_a_faulty_answer_is_not_kept(fault: dict[str, Any], talker: Path, tmp_path: Path) -> None:
    prompts, faulty = write_prompts(tmp_path / "prompts", QUESTIONS), Fragile(engine(), spoils=fault)
    with pytest.raises(UserError, match=r"generate: prompt \w+, answer \d: .*ended by"):
        generate(faulty, prompts, talker, tmp_path / "out")
    again = Fragile(engine())
    generate(again, prompts, talker, tmp_path / "out")
    assert len(again.asked) == CELL_COUNT - 2, "two were good"


def test_an_answer_that_was_made_twice_and_otherwise_is_refused(talker: Path, tmp_path: Path) -> None:
    prompts, out = write_prompts(tmp_path / "prompts", QUESTIONS), tmp_path / "out"
    generate(Fragile(engine()), prompts, talker, out)
    (file,) = (out / WORK / CELLS).glob("*.jsonl")
    key, value = cell_of(file.read_bytes().splitlines()[0])
    other = file.with_name("z.jsonl")
    other.write_text(json.dumps([key, value]) + "\n")
    generate(Fragile(engine()), prompts, talker, out)
    other.write_text(json.dumps([key, value | {"token_ids": [1, 2, 3]}]) + "\n")
    with pytest.raises(UserError, match=rf"z.jsonl: has another answer for {key}"):
        generate(Fragile(engine()), prompts, talker, out)


def test_an_answer_nobody_asked_for_is_not_handed_on(talker: Path, tmp_path: Path) -> None:
    generate(Fragile(engine()), write_prompts(tmp_path / "prompts", QUESTIONS[:1]), talker, tmp_path / "out")
    (row,) = records.read_rows(tmp_path / "out", records.RESPONSES)
    with pytest.raises(UserError, match=f"3 answers .* first, prompt {row['prompt_id']}: an answer nobody asked for"):
        check_complete(tmp_path / "out", [])


def responses(here: Path, policy: Path, questions: Sequence[str], seed: int) -> Path:
    prompts, out = write_prompts(here / f"prompts{seed}", questions), here / f"responses{seed}"
    out.mkdir()
    Generate(sampling=CODE, engine=engine(), seed=seed, dealing=ALONE)(prompts, policy, out=out)
    return out


def test_merge_puts_answers_side_by_side(talker: Path, tmp_path: Path) -> None:
    inputs = [responses(tmp_path, talker, QUESTIONS[:3], seed) for seed in (0, 1)]
    Merge()(*inputs, out=tmp_path)
    a, b, ab = (records.read_rows(folder, records.RESPONSES) for folder in (*inputs, tmp_path))
    assert [row["responses"] for row in ab] == [x["responses"] + y["responses"] for x, y in zip(a, b, strict=True)]
    assert [row | {"responses": []} for row in ab] == [row | {"responses": []} for row in a]


def test_merge_refuses_answers_to_other_prompts(talker: Path, tmp_path: Path) -> None:
    a, b = (responses(tmp_path, talker, QUESTIONS[:2][::step], seed) for seed, step in ((0, 1), (1, -1)))
    with pytest.raises(UserError, match="answers other prompts than"):
        Merge()(a, b, out=tmp_path)
