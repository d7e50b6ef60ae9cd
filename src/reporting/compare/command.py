"""`compare runs=...`: run folders side by side, as a page, tables and pictures in a folder of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from src.experiment.selection import folders, identity, not_begun, swept
from src.kernel.config import UserError
from src.kernel.disk import TEMPORARY, remove_temporaries, write_atomic

WORDS = ("runs", "out", "title", "report")
FILES = ("index.html", "compare.csv", "compare.md")
PLOTS = "plots"


def compare(words: Sequence[str]) -> int:
    """Write the comparison that the words ask for and print its results; return the exit code."""
    from src.reporting.compare import page, tables
    from src.reporting.compare.plots import draw
    from src.reporting.compare.points import compare_folders, legible
    from src.reporting.compare.significance import benchmark_differences, win_rate_differences
    from src.reporting.tables import terminal

    given = _given(words)
    runs = given["runs"]
    chosen = folders(runs)
    names = sorted(folder.resolve().name for folder in chosen)
    name = swept(runs) or hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:8]
    out = Path(given.get("out") or chosen[0].parent / f"compare-{name}")
    title = legible(given.get("title") or f"{name}: {len(chosen)} runs compared")
    comparison = compare_folders(chosen, title, identity(runs), not_begun(runs))
    win_rates, plots = win_rate_differences(comparison), draw(comparison)
    texts = page.render(comparison, win_rates, benchmark_differences(comparison), plots)
    files = {out / file: text.encode() for file, text in texts.items()}
    files[out / "compare.csv"] = legible(tables.as_csv(comparison)).encode()
    files |= {out / PLOTS / f"{each.name}.png": each.png for section in plots for each in section.pictures}
    _write(out, files)
    sentences = [*page.headline(comparison, win_rates), *page.cautions(comparison)]
    print(
        legible(
            "\n".join([terminal(title, tables.results(comparison).drop(columns="state", errors="ignore")), *sentences])
        )
    )
    for path in (*(out / file for file in FILES), out / PLOTS):
        print(f"wrote: {path}")
    if "report" in given:
        from src.reporting.compare.wandb_report import publish

        publish(comparison, given["report"])
    return 0


def _given(words: Sequence[str]) -> dict[str, str]:
    """Read the words of the command. Raises UserError for one that it cannot use."""
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key not in WORDS:
            raise UserError(f"{word}: no word of compare; it takes {', '.join(f'{name}=…' for name in WORDS)}")
        if not value or key in given:
            raise UserError(f"{key}: give it one value ({key}=…); several run folders are separated by commas")
        given[key] = value
    if "runs" not in given:
        raise UserError("runs: missing; give run folders (runs=runs/*) or the name of a sweep (runs=eta)")
    return given


def _write(out: Path, files: dict[Path, bytes]) -> None:
    """Write all files, and remove what an earlier comparison left. The same runs give the same bytes.

    Raises UserError, and writes nothing, where something else than a comparison lies in the folder.
    """
    try:
        for path in sorted(out.rglob("*")):
            ours = path.name in (*FILES, PLOTS) or (path.parent == out / PLOTS and path.suffix == ".png")
            if not ours and not TEMPORARY.fullmatch(path.name):
                raise UserError(f"out: {out} holds {path.name}, which is of no comparison; choose another folder")
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
        remove_temporaries(out)
        for path in (out / PLOTS).glob("*.png"):
            if path not in files:
                path.unlink()
        for path, data in files.items():
            write_atomic(path, data)
    except OSError as error:
        raise UserError(f"out: cannot write {out} ({error.strerror}); is it a folder of yours?") from None
