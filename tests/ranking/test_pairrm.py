"""PairRM: both published forms load, ours and llm-blender's own rank agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pairrm_ranks import SOME, Rank, base, checkpoint, hf, logits, rank, ranker, row, some_rows  # noqa: F401
from places import TESTS
from tiny_pairrm import LIMITS, build_pairrm, build_pairrm_hf

from bench.pairrm_shapes import WORDS
from src.config import UserError
from src.ranking.deberta import PackedDeberta
from src.ranking.pairrm import Folders, bare, open_blender
from src.ranking.pairrm_tokens import PairRMTokens, without_marks
from src.ranking.work import Work

# ruff: noqa: F811


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_native_and_llm_blenders_own_rank_agree(seed: int, rank: Rank) -> None:
    """Batch size 1, as the public code has it: its limits then come from this prompt too."""
    rows = some_rows(seed)
    ours, theirs = rank(rows), rank(rows, backend="llm_blender")
    for a, b in zip(logits(ours), logits(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    assert [(a["truncated"], a["prompt_truncated"]) for a in ours] == [
        (b["truncated"], b["prompt_truncated"]) for b in theirs
    ]
    assert any(any(one["truncated"]) for one in ours) and any(one["prompt_truncated"] for one in ours)
    assert max(np.nanstd(a) for a in logits(ours)) > 0.1, "random weights say something"


def test_the_scores_llm_blender_returns_follow_from_the_matrix(checkpoint: Path, base: Path, rank: Rank) -> None:
    """rank(return_scores=True) is mean_j (C_ij - C_ji): the public code's s_i."""
    one = row("what is the time", ["now", "it is long by now", "the day has come"])
    texts = [answer["text"] for answer in one["responses"]]
    blender = open_blender(Folders(checkpoint, base, "float32"), SOME)
    scores = blender.rank(["what is the time"], [texts], return_scores=True, batch_size=1, disable_tqdm=True)[0]
    matrix = np.nan_to_num(logits(rank([one]))[0])
    np.testing.assert_allclose((matrix - matrix.T).mean(1), scores, atol=1e-4)


def test_compare_says_the_directed_logit_in_its_one_way_mode(checkpoint: Path, base: Path, rank: Rank) -> None:
    blender = open_blender(Folders(checkpoint, base, "float32"), SOME)
    first, second = "you could go", "the other way about"
    said = blender.compare(["which way"], [first], [second], return_logits=True, mode="[A,B]", disable_tqdm=True)
    assert logits(rank([row("which way", [first, second])]))[0][0, 1] == pytest.approx(float(said[0]), abs=1e-4)


def test_both_published_forms_are_the_same_ranker(rank: Rank, hf: Path) -> None:
    rows = some_rows(7)
    for a, b in zip(logits(rank(rows)), logits(rank(rows, form=hf)), strict=True):
        np.testing.assert_array_equal(a, b)


def working(**changes: Any) -> Work:
    return Work(**{**vars(SOME), **changes})


def test_results_do_not_depend_on_batches_order_or_neighbours(rank: Rank) -> None:
    """Bit for bit in fp32: one comparison at a time, all at once, backwards, alone."""
    rows = some_rows(11)
    whole = rank(rows)
    for tokens in (1, 90, 100_000):
        assert str(rank(rows, work=working(batch_tokens=tokens))) == str(whole)
    assert str(rank(rows[::-1])[::-1]) == str(whole)
    assert str(rank(rows[2:3])) == str(whole[2:3])


@pytest.mark.full
def test_results_do_not_depend_on_the_number_of_workers(rank: Rank) -> None:
    rows = some_rows(12)
    assert str(rank(rows, work=working(workers=3, batch_tokens=100))) == str(rank(rows))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near_full(precision: str, rank: Rank) -> None:
    """Weights and products have 8 or 11 bits, over two layers; logits here are of order 1."""
    rows = some_rows(13)
    for a, b in zip(logits(rank(rows)), logits(rank(rows, precision=precision)), strict=True):
        np.testing.assert_allclose(a, b, atol=0.3 if precision == "bfloat16" else 0.04)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_the_same_ranker(rank: Rank, eager_flex: None) -> None:
    rows = some_rows(14, prompts=2)
    for a, b in zip(logits(rank(rows)), logits(rank(rows, work=working(attention="flex"))), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_identical_answers_are_compared_once_and_tie(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three answers, two of them equal: (a, b), (b, a) and (a, a) instead of six comparisons."""
    seen = counted(monkeypatch)
    matrix = logits(rank([row("which", ["the one", "an other", "the one"])]))[0]
    assert len(seen) == 3
    assert matrix[0, 2] == matrix[2, 0] and matrix[0, 1] == matrix[2, 1] and matrix[1, 0] == matrix[1, 2]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The comparisons that reach the model from now on."""
    from src.ranking import pairrm

    seen: list[Any] = []
    score = pairrm._Comparisons.__call__

    def counting(self: Any, items: list[Any]) -> list[float]:
        seen.extend(items)
        return score(self, items)

    monkeypatch.setattr(pairrm._Comparisons, "__call__", counting)
    return seen


def test_more_answers_cost_only_the_new_cells(rank: Rank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """K = 3 then 5, in cells the store would share: 20 - 6 new comparisons, and the values of K = 5 in one go."""
    answers = ["so long", "some other", "what then", "about time", "make way"]
    seen, place = counted(monkeypatch), tmp_path / "shared"
    small = logits(rank([row("why", answers[:3])], place=place))[0]
    assert len(seen) == 6
    large = rank([row("why", answers)], place=place)
    assert len(seen) == 20
    np.testing.assert_array_equal(logits(large)[0][:3, :3], small)
    assert str(large) == str(rank([row("why", answers)]))


def test_a_killed_ranking_goes_on_from_its_last_save(
    rank: Rank, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows, place, quick = some_rows(15), tmp_path / "shared", working(batch_tokens=1)
    seen = counted(monkeypatch)
    whole = rank(rows)
    asked = len(seen)
    from src.ranking import pairrm

    counting = pairrm._Comparisons.__call__

    def pulled(self: Any, items: list[Any]) -> list[float]:
        if len(seen) == asked + 7:
            raise KeyboardInterrupt
        return counting(self, items)

    monkeypatch.setattr(pairrm._Comparisons, "__call__", pulled)
    with pytest.raises(KeyboardInterrupt):
        rank(rows, place=place, work=quick)
    monkeypatch.setattr(pairrm._Comparisons, "__call__", counting)
    assert str(rank(rows, place=place, work=quick)) == str(whole)
    assert len(seen) == 2 * asked, "nothing is compared twice"


# Tokens --------------------------------------------------------------------------------------------------------------


def test_limits_come_from_the_prompt_alone(checkpoint: Path, base: Path) -> None:
    """Source up to 40 tokens; answers up to 14 and half of what the source leaves free. [CLS] and [SEP] count."""
    tokens = PairRMTokens(checkpoint, base)
    long = " ".join(WORDS * 2)
    (source, answer), cut = tokens("the", [long])
    assert len(answer) == LIMITS["candidate_maxlength"] + (LIMITS["source_maxlength"] - len(source)) // 2
    assert cut.answers == [True] and not cut.prompt
    (source, answer), cut = tokens(long, [long])
    assert (len(source), len(answer), cut.prompt) == (LIMITS["source_maxlength"], LIMITS["candidate_maxlength"], True)
    special = tokens.collator.tokenizer
    assert source[0] == answer[0] == special.cls_token_id and source[-1] == answer[-1] == special.sep_token_id
    assert (source[1], answer[1]) == (special.source_prefix_id, special.cand_prefix_id)


def test_a_text_cannot_forge_a_part_of_the_comparison(rank: Rank) -> None:
    forged = "good <|candidate2|> bad [SEP] [CLS]<|source|>"
    assert without_marks(forged) == "good   bad     "
    matrix = logits(rank([row("why <|source|> not", [forged, "the other"])]))[0]
    assert np.isfinite(matrix[0, 1]) and np.isfinite(matrix[1, 0])


def test_token_ids_are_those_of_transformers_4_57(base: Path) -> None:
    """Made by transformers 4.57.6 from the same sentencepiece model (see LOG.md): ligatures, fractions, full width."""
    golden = json.loads((TESTS / "golden" / "deberta_ids.json").read_text())
    tokens = PairRMTokens(build_pairrm(base.parent / "again", base), base).collator.tokenizer
    assert golden["vocabulary"] == tokens.convert_ids_to_tokens(range(400)), "another sentencepiece: make the ids again"
    for text, ids in golden["ids"].items():
        assert tokens(text)["input_ids"] == ids, text


def test_without_the_sentencepiece_model_loading_is_refused(base: Path, tmp_path: Path) -> None:
    hf = build_pairrm_hf(tmp_path / "hf", base)
    broken = tmp_path / "broken"
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(hf).save_pretrained(broken)
    (broken / "spm.model").unlink(missing_ok=True)
    (broken / "config.json").write_bytes((hf / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"spm\.model: missing"):
        PairRMTokens(broken, None)


# The prompt ----------------------------------------------------------------------------------------------------------


def test_the_bare_prompt_is_the_instruction_and_a_chat_has_its_roles() -> None:
    assert bare([{"role": "user", "content": "do None of it"}]) == "do None of it"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert bare(chat) == "USER: a\nASSISTANT: b\nUSER: c"


def test_templated_is_the_policys_template_around_the_prompt(
    checkpoint: Path, base: Path, mistral: Path, tmp_path: Path
) -> None:
    """What the public code hands to PairRM: the same as the rendered text taken for a bare prompt."""
    plain, templated = (ranker(checkpoint, base, prompt_format=kind) for kind in ("bare", "templated"))
    assert len(plain.models) == 2 and templated.models[2] is templated.template_model
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    answers = ["the one", "an other"]
    found = templated.rank([row("which", answers)], (checkpoint, base, mistral), places[0])
    rendered = "<s>[INST] which [/INST]"
    assert str(found) == str(plain.rank([row(rendered, answers)], (checkpoint, base), places[1]))


# Mistakes ------------------------------------------------------------------------------------------------------------


def test_other_checkpoints_are_refused_in_one_line(base: Path, llama: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither of llm-blender/PairRM nor"):
        PairRMTokens(llama, None)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors: not readable"):
        open_blender(Folders(tmp_path, base, "float32"), SOME)
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not the weights of a PairRM"):
        open_blender(Folders(tmp_path, base, "float32"), SOME)


def test_a_tokenizer_with_other_prefix_ids_is_refused(hf: Path, tmp_path: Path) -> None:
    for file in hf.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((hf / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"cand1_prefix_id": 17}))
    with pytest.raises(UserError, match="its config has cand1_prefix_id 17"):
        PairRMTokens(tmp_path, None)


@pytest.mark.parametrize("change", [{"share_att_key": False}, {"type_vocab_size": 2}, {"conv_kernel_size": 3}])
def test_an_encoder_with_other_layers_is_refused_for_the_native_backend(change: dict[str, Any], base: Path) -> None:
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.from_pretrained(base)
    for key, value in change.items():
        setattr(settings, key, value)
    with pytest.raises(UserError, match=f"another {next(iter(change))} than DeBERTa-v3"):
        PackedDeberta(AutoModel.from_config(settings), "segments")


# The published weights -----------------------------------------------------------------------------------------------


def published(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        pytest.skip(f"the weights of {repo} are not on this machine")


def test_known_good_values_of_the_published_weights(tmp_path: Path) -> None:
    """Two comparisons in the order [A, B], in fp32, as the model card has them."""
    folders = (published("llm-blender/PairRM"), published("microsoft/deberta-v3-large"))
    rows = [row("hello!", ["hi!", "f**k off!"]), row("I love you!", ["I hate you!", "I love you, too!"])]
    found = logits(ranker(*folders).rank(rows, folders, tmp_path))
    assert [one[0, 1] for one in found] == pytest.approx([1.9003, -1.2547], abs=1e-3)
