"""Verdicts of every kind of check, worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.data.checks import HELD_OUT_KINDS, TRAINED_KINDS, passes, validate
from tools.embedded_prompts.check_kinds import KINDS, PHRASINGS

TEXTS = st.text(alphabet=st.sampled_from("aB1 .!?,-*#'\"\n[]<>(){}:P.S。é"), max_size=60) | st.text(max_size=60)

# kind: (parameters, answers that pass, answers that fail); the last of each is the edge.
CASES: dict[str, tuple[dict, list[str], list[str]]] = {
    "words_at_most": ({"n": 3}, ["one", "it's well-known, yes"], ["a b c d e", "one two three four"]),
    "words_at_least": ({"n": 3}, ["a b c d", "one - two - three"], ["one", "well-known facts"]),
    "words_between": ({"low": 2, "high": 3}, ["one two", "one two three"], ["one", "one two three four"]),
    "sentences_at_most": ({"n": 1}, ["It is 3.5 m.", "So says Dr. Watt, e.g. here."], ["Yes. No.", "Yes\nNo"]),
    "sentences_at_least": ({"n": 2}, ["Yes. No.", "1. Knead\n2. Wait"], ["Yes.", "1. Knead. -"]),
    "sentences_exactly": ({"n": 2}, ["Yes. No!", 'He said "Stop!" We did.'], ["Yes.", "A. B? C! ..."]),
    "bullets_exactly": ({"n": 2}, ["- a\n- b", "Two:\n * a\n- b\nDone"], ["- a", "- a\n- b\n- c", "-a\n**b**"]),
    "numbered_list": ({"n": 2}, ["1. a\n2. b", "So:\n1) a\n\n2) b"], ["1. a", "1. a\n2. b\n3. c", "1. a\n3. b"]),
    "paragraphs_exactly": ({"n": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    "lines_exactly": ({"n": 2}, ["a\nb", "a\n\n  \nb"], ["a b", "a\nb\nc"]),
    "all_lowercase": ({}, ["all small.", "part 2 of it"], ["All small", "12 34"]),
    "all_uppercase": ({}, ["LOUD!", "PART 2"], ["LOUd", "12 34"]),
    "capitals_at_least": ({"n": 2}, ["a VERY GOOD day", "GOOD-NESS or U2"], ["a VERY good day", "I am A NO"]),
    "keyword_in": ({"word": "oven"}, ["The oven.", "OVEN!"], ["the stove", "two ovens"]),
    "keywords_both": ({"first": "oven", "second": "crust"}, ["crust and oven", "Oven:crust"], ["oven", "ovens, crust"]),
    "keyword_out": ({"word": "oven"}, ["the stove", "proven"], ["the oven", "an Oven-mitt"]),
    "keyword_times": ({"word": "oven", "n": 2}, ["oven oven", "Oven, hot OVEN."], ["oven", "oven ovens"]),
    "starts_with": ({"phrase": "In my view"}, ["In my view it.", "  In my view, yes"], ["In his view", "in my view"]),
    "first_word": ({"word": "Well"}, ["Well, yes", '"**well** then"'], ["It goes well", "Wells are deep"]),
    "ends_with": ({"phrase": "Good luck."}, ["Go. Good luck.", "Good luck. \n"], ["Good luck", "Good luck. Bye"]),
    "ends_with_question": ({}, ["Is it?", "So?\n"], ["Is it? Yes.", "Is it? ."]),
    "json_keys": (
        {"keys": ["a", "b"]},
        ['{"a": "yes", "b": 3}', '```json\n{"b": ["b"], "a": "a"}\n```'],
        ['{"a": "y"}', '{"a": 1, "b": 1, "c": 1}', '["a", "b"]', 'So: {"a": 1, "b": 2}', '{"a": 1, "b": null}'],
    ),
    "title": ({}, ["<<Bread>>\nIt is good.", "It <<is 1>>"], ["<Bread> is", "<<\nBread>>", "a << >> b"]),
    "heading": ({}, ["# Bread\nGood.", "Well\n### a"], ["#Bread", "a # b", "a\n# "]),
    "in_double_quotes": ({}, ['"All of it."', "“All.”"], ['"All" of it', "'All'", '"a']),
    "no_commas": ({}, ["None at all.", "a; b"], ["a, b", "a,"]),
    "postscript": ({}, ["Bye.\nP.S. Call me.", "P.S.: x"], ["Bye. PS call", "Bye. P.S.", "p.s. a"]),
    "placeholders_at_least": ({"n": 2}, ["[name] in [place]", "[a][b]"], ["[name]", "[ ] [name]"]),
    "bold_at_least": ({"n": 2}, ["**a** and **b c**", "**a****b**"], ["**a** b", "*a* **b**", "** ** **b**"]),
    "characters_at_most": ({"n": 5}, ["abc", " abcde \n"], ["abcdefgh", "abc de"]),
    "characters_at_least": ({"n": 5}, ["abcdefgh", "abc d"], ["abc", " abcd "]),
    "sentence_words_at_most": ({"n": 2}, ["So it. Is so.", "a b\nc d"], ["It is so.", "Yes. It is so"]),
    "keyword_first_sentence": ({"word": "oven"}, ["The oven. Go.", "1. Oven"], ["Hot. The oven.", "Hot\noven"]),
    "first_letter": ({"letter": "T"}, ["The end", '"- tea"'], ["A tea", "1 tea"]),
    "ends_with_full_stop": ({}, ["Yes.", "Yes. "], ["Yes", 'So "yes."']),
    "ends_with_exclamation": ({}, ["Yes!", "Yes?!"], ["Yes! No", "Yes!)"]),
    "no_exclamations": ({}, ["Yes.", "Yes?"], ["Yes!", "a ! b"]),
    "has_digit": ({}, ["It has 3.", "a1"], ["It has three", "IV"]),
    "no_digits": ({}, ["It has three.", "IV"], ["It has 3.", "a1"]),
    "separator_line": ({"mark": "---"}, ["a\n---\nb", "a\n --- \n\nb"], ["a --- b", "a\n---", "---\nb", "a\n----\nb"]),
    "parentheses": ({}, ["a (b) c", "(1)"], ["a b c", "( ) a", "a (b"]),
}


def test_every_kind_has_cases_wording_and_a_draw() -> None:
    assert set(CASES) == TRAINED_KINDS | HELD_OUT_KINDS == set(KINDS) == set(PHRASINGS)
    assert not TRAINED_KINDS & HELD_OUT_KINDS


def test_verdicts_worked_by_hand() -> None:
    wrong = []
    for kind, (params, good, bad) in CASES.items():
        check = {"kind": kind, **params}
        wrong += [(kind, answer, "fails") for answer in good if not passes(check, answer)]
        wrong += [(kind, answer, "passes") for answer in bad if passes(check, answer)]
        for empty in ("", " \n\t", "...", "?", "!", '""', "{}", "- - -"):
            wrong += [(kind, empty, "passes without a word")] * passes(check, empty)
    assert wrong == []


def test_a_check_with_other_parameters_than_its_test_takes_is_refused() -> None:
    for kind, (params, _, _) in CASES.items():
        check = {"kind": kind, **params}
        validate(check)
        without = [{key: value for key, value in check.items() if key != name} for name in params]
        for wrong in (*without, check | {"other": 1}, *({**check, name: 1.5} for name in params)):
            with pytest.raises(ValueError, match=f"a check of kind {kind} takes"):
                validate(wrong)
    with pytest.raises(ValueError, match="'nope'"):
        validate({"kind": "nope"})
    with pytest.raises(ValueError, match="takes keys"):
        validate({"kind": "json_keys", "keys": [1, 2]})


@given(text=TEXTS)
def test_white_space_around_an_answer_changes_no_verdict(text: str) -> None:
    for kind, (params, _, _) in CASES.items():
        check = {"kind": kind, **params}
        assert passes(check, f"\n {text} \n") == passes(check, text), kind


def test_long_hostile_answers_get_a_verdict() -> None:
    for answer in ("[" * 100_000, "(a" * 20_000, "**a" * 20_000, "a\n" * 20_000, "1" * 5_000, '{"a":', "a\0b\u2028"):
        for kind, (params, _, _) in CASES.items():
            assert passes({"kind": kind, **params}, answer) in (True, False)
