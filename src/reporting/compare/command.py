"""`compare runs=...`: run folders side by side, as a page, tables and pictures in a folder of their own."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from src.experiment.select import folders, identity, not_begun, swept
from src.kernel.config import UserError
from src.kernel.disk import write_atomic
from src.reporting.compare.costs import costs, shared
from src.reporting.compare.gather import Damaged, sort_out
from src.reporting.compare.headline import NOTHING, LeftOut, headline, warnings
from src.reporting.compare.points import Comparison, compare_folders
from src.reporting.compare.significance import differences
from src.reporting.compare.varied import legible

WORDS = ("runs", "out", "title", "report")
FILES = ("index.html", "compare.csv", "compare.md", "report.json", "workspace.json")
PLOTS = "plots"


def compare(words: list[str]) -> int:
    """Write the comparison that the words ask for, show its results here; returns the exit code."""
    given = _given(words)
    _check_project(given.get("report"))
    chosen = folders(given["runs"])
    name = swept(given["runs"]) or _hash(chosen)
    out = Path(given.get("out") or chosen[0].parent / f"compare-{name}")
    _check_place(out)
    found, damaged = _compared(chosen, name, given.get("title"), identity(given["runs"]))
    left_out = LeftOut(damaged, not_begun(given["runs"]))
    files = write(found, out, given.get("report", ""), left_out)
    print(_terminal(found, left_out), end="")
    for path in files:
        print(f"wrote: {path}")
    if "report" in given:
        from src.reporting.compare.wandb_report import publish

        publish(found, given["report"])
    return 0


def _given(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in WORDS:
            raise UserError(f"{word}: no word of compare; it takes {', '.join(f'{name}=…' for name in WORDS)}")
        if not equals or not value:
            raise UserError(f"{key}: needs a value ({key}=…)")
        if key in given:
            raise UserError(f"{key}: given twice; separate several run folders by commas")
        given[key] = value
    if "runs" not in given:
        raise UserError("runs: missing; give run folders (runs=runs/*) or the name of a sweep (runs=eta)")
    return given


def _check_project(place: str | None) -> None:
    """Before anything is read: at W&B a project has a name, and stands in an entity or in the account's own."""
    parts = (place or "iterpref").split("/")
    if len(parts) > 2 or not all(part.strip() for part in parts):
        raise UserError(f"report: {place} is no project at W&B; give report=<project> or report=<entity>/<project>")


def _hash(chosen: Sequence[Path]) -> str:
    names = sorted(folder.resolve().name for folder in chosen)
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]


def _compared(chosen: Sequence[Path], name: str, title: str | None, identity: str) -> tuple[Comparison, list[Damaged]]:
    """Of the run folders that can be read; they are read again only where one cannot."""

    def compared(folders: Sequence[Path]) -> Comparison:
        return compare_folders(folders, legible(title or f"{name}: {len(folders)} runs compared"), identity)

    try:
        return compared(chosen), []
    except UserError as error:
        whole, damaged = sort_out(chosen)
        if not whole or not damaged:
            raise
        try:
            return compared(whole), damaged
        except UserError:  # none of the others has an evaluation
            raise error from None


def _check_place(out: Path) -> None:
    """Refuse a folder that something else than a comparison lies in."""
    try:
        if not out.exists():
            return
        if not out.is_dir() or out.is_symlink():
            raise UserError(f"out: {out} is no folder; choose another")
        strange = [path.name for path in sorted(out.iterdir()) if path.name not in (*FILES, PLOTS)]
        strange += [path.name for path in sorted((out / PLOTS).glob("*")) if path.suffix != ".png"]
    except OSError as error:
        raise UserError(f"out: {out} cannot be a folder of yours ({error.strerror}); choose another") from None
    if strange:
        raise UserError(f"out: {out} holds {strange[0]}, which is of no comparison; choose another folder")


def write(found: Comparison, out: Path, place: str = "", left_out: LeftOut = NOTHING) -> list[Path]:
    """All files, beside `out` first and then in its place; returns those to open, the page first.

    `place`: project at W&B that its report is for.
    """
    contents = _contents(found, place, left_out)
    whole = Path(os.path.abspath(out))
    partial, old = (whole.with_name(f".{whole.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    try:
        (partial / PLOTS).mkdir(parents=True)
        for name, data in contents.items():
            write_atomic(partial / name, data)
        if whole == Path.cwd():
            _fill(whole, partial)
        else:
            if out.exists():
                os.rename(out, old)
            os.rename(partial, out)
    except OSError as error:
        if os.path.exists(old) and not os.path.exists(out):
            os.rename(old, out)
        raise UserError(f"out: cannot write {out} ({error.strerror}); is it a folder of yours?") from None
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
    return [out / name for name in FILES if name in contents] + [out / PLOTS]


def _fill(folder: Path, partial: Path) -> None:
    """The folder in which a shell is stays the one that it is."""
    shutil.rmtree(folder / PLOTS, ignore_errors=True)
    for path in partial.iterdir():
        os.replace(path, folder / path.name)


def _contents(found: Comparison, place: str, left_out: LeftOut) -> dict[str, bytes]:
    """Name below the folder -> content; the same runs give the same bytes."""
    from src.reporting.compare.markdown import write_markdown
    from src.reporting.compare.page import write_page
    from src.reporting.compare.plots import draw
    from src.reporting.compare.tables import as_csv
    from src.reporting.compare.wandb_report import specs

    differs, prices, common, plots = differences(found), costs(found), shared(found), draw(found)
    texts = {
        "index.html": write_page(found, differs, prices, common, plots, left_out),
        "compare.csv": as_csv(found, prices, left_out.damaged),
        "compare.md": write_markdown(found, differs, prices, common, plots, left_out),
        **{f"{name}.json": text for name, text in specs(found, place).items()},
    }
    pictures = {f"{PLOTS}/{each.name}.png": each.png for section in plots for each in section.pictures}
    return {name: legible(text).encode() for name, text in texts.items()} | pictures


def _terminal(found: Comparison, left_out: LeftOut) -> str:
    from rich.markup import escape

    from src.reporting.compare.tables import results
    from src.reporting.tables import frame, terminal

    table = results(found)
    rows = [[escape(cell.text) for cell in row] for row in table.rows]
    lines = [*headline(found, differences(found)), *warnings(found), *left_out.not_begun]
    lines += [f"could not be read: {run.name}: {run.reason}" for run in left_out.damaged]
    told = "".join(f"{legible(line)}\n" for line in lines)
    return terminal(escape(found.title), frame(table.headings, rows)) + told
