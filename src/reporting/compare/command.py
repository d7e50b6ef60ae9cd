"""`compare runs=...`: run folders side by side, as a page, tables and pictures in a folder of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from src.experiment.selection import folders, identity, not_begun, swept
from src.kernel.config import UserError
from src.kernel.disk import TEMPORARY, remove_temporaries, write_atomic
from src.reporting.compare.points import Comparison, compare_folders
from src.reporting.compare.settings import legible
from src.reporting.compare.significance import Difference, benchmark_differences, win_rate_differences

WORDS = ("runs", "out", "title", "report")
FILES = ("index.html", "compare.csv", "compare.md")
PLOTS = "plots"


def compare(words: list[str]) -> int:
    """Writes the comparison that the words ask for and prints its results; returns the exit code."""
    given = _given(words)
    chosen = folders(given["runs"])
    name = swept(given["runs"]) or _hash(chosen)
    out = Path(given.get("out") or chosen[0].parent / f"compare-{name}")
    _check_place(out)
    title = legible(given.get("title") or f"{name}: {len(chosen)} runs compared")
    comparison = compare_folders(chosen, title, identity(given["runs"]), not_begun(given["runs"]))
    win_rates = win_rate_differences(comparison)
    files = write(comparison, win_rates, out)
    _print(comparison, win_rates)
    for path in files:
        print(f"wrote: {path}")
    if "report" in given:
        from src.reporting.compare.wandb_report import publish

        publish(comparison, given["report"])
    return 0


def _given(words: Sequence[str]) -> dict[str, str]:
    """Reads the words of the command. Raises UserError for one that it cannot use."""
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in WORDS:
            raise UserError(f"{word}: no word of compare; it takes {', '.join(f'{name}=…' for name in WORDS)}")
        if not value:
            raise UserError(f"{key}: needs a value ({key}=…)")
        if key in given:
            raise UserError(f"{key}: given twice; separate several run folders by commas")
        given[key] = value
    if "runs" not in given:
        raise UserError("runs: missing; give run folders (runs=runs/*) or the name of a sweep (runs=eta)")
    project = given.get("report", "iterpref").split("/")
    if len(project) > 2 or not all(part.strip() for part in project):
        place = given["report"]
        raise UserError(f"report: {place} is no project at W&B; give report=<project> or report=<entity>/<project>")
    return given


def _hash(chosen: Sequence[Path]) -> str:
    names = sorted(folder.resolve().name for folder in chosen)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]


def _check_place(out: Path) -> None:
    """Refuses a folder that something else than a comparison lies in."""
    try:
        inside = sorted(out.iterdir()) + sorted((out / PLOTS).glob("*")) if out.exists() else []
    except OSError as error:
        raise UserError(f"out: {out} cannot be a folder of yours ({error.strerror}); choose another") from None
    for path in inside:
        ours = path.name in (*FILES, PLOTS) or (path.parent.name == PLOTS and path.suffix == ".png")
        if not ours and not TEMPORARY.fullmatch(path.name):
            raise UserError(f"out: {out} holds {path.name}, which is of no comparison; choose another folder")


def write(comparison: Comparison, win_rates: Sequence[Difference], out: Path) -> list[Path]:
    """Writes all files; returns those to open, the page first. The same runs give the same bytes."""
    from src.reporting.compare.page import render
    from src.reporting.compare.plots import draw
    from src.reporting.compare.tables import as_csv

    plots = draw(comparison)
    texts = render(comparison, win_rates, benchmark_differences(comparison), plots)
    texts["compare.csv"] = legible(as_csv(comparison))
    pictures = {f"{picture.name}.png": picture.png for section in plots for picture in section.pictures}
    try:
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
        remove_temporaries(out)
        for old in (out / PLOTS).glob("*.png"):
            if old.name not in pictures:
                old.unlink()
        for name, data in pictures.items():
            write_atomic(out / PLOTS / name, data)
        for name in FILES:
            write_atomic(out / name, texts[name].encode())
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); is it a folder of yours?") from None
    return [*(out / name for name in FILES), out / PLOTS]


def _print(comparison: Comparison, win_rates: Sequence[Difference]) -> None:
    from src.reporting.compare.page import headline, warnings
    from src.reporting.compare.tables import as_terminal, results

    damaged = [f"could not be read: {run.name}: {run.reason}" for run in comparison.damaged]
    sentences = [*headline(comparison, win_rates), *warnings(comparison), *comparison.not_begun, *damaged]
    print(legible("\n".join([comparison.title, as_terminal(results(comparison)), *sentences])))
