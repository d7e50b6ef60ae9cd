"""Pictures of a comparison: which are drawn, what their marks belong to, colours that follow the theme, same bytes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_sweep import Made, grid, write
from matplotlib.figure import Figure
from PIL import Image

from src.compare.axes import LINE_GAP, common_iteration, scale_of, spread
from src.compare.fields import MOST_MAPS, heat_maps, maps_left_out
from src.compare.palette import LEVELS, ROLES, WORDS, level, luminance, on_scale, scale, shades
from src.compare.plots import draw
from src.compare.points import Comparison, compare_folders
from src.compare.svg import COLUMN, DPI, Picture

MEASURED = ["win_rate", "length", "kl"]


def pictures(found: Comparison) -> dict[str, Picture]:
    return {picture.name: picture for section in draw(found) for picture in section.pictures}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """3 × 3 points but for one, which is missing from the heat map."""
    return compare_folders(write(tmp_path_factory.mktemp("sweep"), grid((10, 100, 1000), (1e-6, 1e-5, 2e-5))[:-1]), "x")


@pytest.fixture(scope="module")
def drawn(swept: Comparison) -> dict[str, Picture]:
    return pictures(swept)


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.full
def test_two_numeric_keys_and_two_iterations_give_every_kind_of_picture(drawn: dict[str, Picture]) -> None:
    assert list(drawn) == [
        *(f"{name}_by_{key}" for key in ("eta", "lr") for name in MEASURED),
        "heat_eta_lr",
        "parallel",
        *(f"{name}_by_iteration" for name in MEASURED),
        "win_rate_against_length",
        "win_rate_against_kl",
    ]


@pytest.mark.full
def test_pngs_open_at_column_width_and_200_dots_an_inch(drawn: dict[str, Picture]) -> None:
    for name, picture in drawn.items():
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.width == int((7.0 if name == "parallel" else COLUMN) * DPI)
            assert image.convert("L").getextrema() != (255, 255), "something is drawn"


@pytest.mark.full
def test_every_mark_belongs_to_a_point_and_says_which(swept: Comparison, drawn: dict[str, Picture]) -> None:
    for picture in drawn.values():
        marks = re.findall(r'class="mark p(\d+)">\s*<title>([^<]*)</title>', picture.svg)
        assert {int(number) for number, _ in marks} == {point.number for point in swept.points}, picture.name
        for number, told in marks:
            assert told.startswith(swept.name(swept.points[int(number) - 1]))


@pytest.mark.full
def test_an_svg_has_no_colour_but_those_of_the_theme_and_no_id_of_another(drawn: dict[str, Picture]) -> None:
    ids: list[str] = []
    for name, picture in drawn.items():
        assert re.findall(r"#[0-9a-fA-F]{6}\b", picture.svg) == [], name
        ElementTree.fromstring(picture.svg)
        own = re.findall(r'\bid="([^"]+)"', picture.svg)
        ids += own
        used = re.findall(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', picture.svg)
        assert {one or other for one, other in used} <= set(own)
        assert "<style" not in picture.svg and "<metadata" not in picture.svg and "http://www.w3.org" in picture.svg
    assert len(ids) == len(set(ids))


@pytest.mark.full
def test_a_missing_cell_is_hatched_and_every_other_has_its_number(swept: Comparison, drawn: dict[str, Picture]) -> None:
    heat = drawn["heat_eta_lr"].svg
    assert heat.count("<pattern") == 1 and heat.count("± .") == len(swept.points)
    for point in swept.points:
        win = point.win(2)
        assert win and f"{win.mean:.3f}".lstrip("0") in heat


@pytest.mark.full
def test_the_same_runs_give_the_same_bytes(swept: Comparison, drawn: dict[str, Picture]) -> None:
    assert pictures(swept) == drawn


@pytest.mark.full
def test_one_key_and_one_iteration_need_no_map_and_no_lines_over_iterations(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, grid((1, 10), (1e-5,), iterations=1)), "x")
    assert list(pictures(found)) == [
        *(f"{name}_by_eta" for name in MEASURED), "parallel", "win_rate_against_length", "win_rate_against_kl"
    ]  # fmt: skip


def test_one_run_alone_is_drawn_by_iteration(tmp_path: Path) -> None:
    found = compare_folders(write(tmp_path, [Made()]), "x")
    assert set(pictures(found)) == {*(f"{name}_by_iteration" for name in MEASURED), "win_rate_against_length",
                                    "win_rate_against_kl"}  # fmt: skip


@pytest.mark.full
def test_three_keys_give_a_map_for_each_choice_of_the_third(tmp_path: Path) -> None:
    points = [Made(eta, lr, method=name, iterations=1) for eta in (1, 10) for lr in (1e-5, 2e-5)
              for name in ("sppo", "sppo_single")]  # fmt: skip
    found = compare_folders(write(tmp_path, points), "x")
    maps = [name for name in pictures(found) if name.startswith("heat_")]
    assert len(maps) == 3 * 2 and not maps_left_out(found)


@pytest.mark.full
def test_no_more_maps_are_drawn_than_are_shown_and_the_rest_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [Made(eta, lr, model=model, method=method, ranker=ranker, iterations=1) for eta in (1, 10, 100)
              for lr in (1e-5, 2e-5) for model in "ab" for method in "cd" for ranker in "ef"]  # fmt: skip
    found = compare_folders(write(tmp_path, points), "x")
    figures: list[Figure] = []

    class Counted(Figure):
        def __init__(self, *args: Any, **rest: Any) -> None:
            super().__init__(*args, **rest)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Counted)
    assert len(heat_maps(found)) == len(figures) == MOST_MAPS
    every = 4 * 48 // 6 + 6 * 48 // 4  # pairs of keys × choices of the others
    assert maps_left_out(found) == every - MOST_MAPS


@pytest.mark.full
def test_what_makes_no_map_is_not_counted_as_left_out(tmp_path: Path) -> None:
    """Under each further ranker there is one learning rate only, which is no map of eta and lr."""
    points = grid((1, 10), (1e-5, 2e-5), iterations=1)
    points += [Made(1, 1e-5, ranker=f"r{i}", iterations=1) for i in range(MOST_MAPS + 2)]
    found = compare_folders(write(tmp_path, points), "x")
    assert len(heat_maps(found)) == 1 + 2 and maps_left_out(found) == 0


def unequal(place: Path, lengths: list[int]) -> Comparison:
    """2 × 3 points that have come to these iterations."""
    points = grid((1, 10), (1e-5, 2e-5, 3e-5))
    made = [point._replace(iterations=own, wanted=3) for point, own in zip(points, lengths, strict=True)]
    return compare_folders(write(place, made), "x")


@pytest.mark.full
@pytest.mark.parametrize(
    ("lengths", "t", "missing"),
    [
        ([2, 2, 3, 2, 2, 2], 2, 0),
        ([3, 3, 3, 3, 3, 1], 3, 1),
        ([2, 2, 2, 3, 3, 3], 3, 3),
        ([2, 3, 2, 0, 0, 0], 2, 3),
    ],
    ids=["one is ahead", "one is behind", "a tie", "half have not begun"],
)
def test_points_are_drawn_where_at_least_half_of_them_are(
    lengths: list[int], t: int, missing: int, tmp_path: Path
) -> None:
    found = unequal(tmp_path, lengths)
    drawn = pictures(found)
    there = {point.number for point in found.points if t in point.iterations}
    assert common_iteration(found) == t and len(there) == 6 - missing
    for name in ("heat_eta_lr", *(f"{name}_by_{key}" for key in ("eta", "lr") for name in MEASURED)):
        marks = re.findall(r'class="mark p(\d+)">\s*<title>([^<]*)</title>', drawn[name].svg)
        assert {int(number) for number, _ in marks} == there, name
        assert all(f", iteration {t}:" in told for _, told in marks)
        assert f", iteration {t}" in drawn[name].svg and f", iteration {t}" in drawn[name].caption
        ending = f" {missing} of 6 points {'is' if missing == 1 else 'are'} not there yet."
        assert drawn[name].caption.endswith(ending) if missing else "there yet" not in drawn[name].caption
    assert drawn["heat_eta_lr"].svg.count("± .") == len(there)


@pytest.mark.full
def test_words_in_a_key_are_not_joined_and_signs_are_no_formulas(tmp_path: Path) -> None:
    points = [Made(method=name, iterations=1) for name in ("a$b$", "<i>&", "c")]
    svg = pictures(compare_folders(write(tmp_path, points), "x"))["win_rate_by_method"].svg
    assert "a$b$" in svg and "&lt;i&gt;&amp;" in svg and "<i>" not in svg


def test_a_scale_is_logarithmic_beyond_a_factor_of_ten() -> None:
    assert [scale_of(values).log for values in ([1, 10], [1, 11], [0, 100], ["a", "b"])] == [False, True, False, False]
    wide = scale_of([1, 100])
    assert wide.dodged(1, 0, 2) * wide.dodged(1, 1, 2) == pytest.approx(1), "the same way to both sides"


@pytest.mark.parametrize("trial", range(10))
def test_labels_are_spread_until_none_covers_another_and_no_further(trial: int) -> None:
    heights = sorted(np.random.default_rng(trial).random(6).tolist())
    found = spread(heights, LINE_GAP)
    assert all(b - a > LINE_GAP - 1e-9 for a, b in zip(found, found[1:], strict=False))
    assert sum(found) == pytest.approx(sum(heights))
    assert spread([0.0, 0.5, 1.0], LINE_GAP) == [0.0, 0.5, 1.0]


def test_text_can_be_read_on_both_themes_and_on_every_step_of_the_scale() -> None:
    roles = {shade.name: shade for shade in (*ROLES, *WORDS)}
    for name in ("ink", "muted", *(shade.name for shade in WORDS)):
        assert contrast(roles[name].light, roles["surface"].light) > 4.5, name
        assert contrast(roles[name].dark, roles["surface"].dark) > 4.5, name
    for field, text in zip(scale(), on_scale(), strict=True):
        assert contrast(field.light, text.light) > 4.5 and contrast(field.dark, text.dark) > 4.5


def test_the_scale_grows_away_from_the_page_and_its_colours_can_be_told_apart() -> None:
    light, dark = ([luminance(getattr(shade, theme)) for shade in scale()] for theme in ("light", "dark"))
    assert light == sorted(light, reverse=True) and dark == sorted(dark)
    assert [level(value, 0, 1) for value in (-1, 0, 0.5, 1, 2)] == [0, 0, LEVELS // 2, LEVELS - 1, LEVELS - 1]
    assert level(1, 1, 1) == 0
    assert len({shade.light for shade in shades()}) == len(shades()), "or the theme could not tell them apart"
