"""A comparison as a W&B report and a saved workspace: built here as their JSON, and saved where somebody is logged in.

The same comparison gives the same JSON: names that the library draws by lot are numbered instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from src.kernel.config import UserError
from src.reporting.compare.benchmarks import headline
from src.reporting.compare.varied import legible
from src.reporting.compare.wandb_panels import COLUMNS, SUMMARY, Benchmarks, load_library, sections
from src.reporting.wandb import has_key, reachable, server
from src.reporting.wandb_runs import FAMILIES, experiment_in, run_id

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report, Runset
    from wandb_workspaces.workspaces import Workspace

    from src.reporting.compare.points import Comparison

LONGEST_TITLE = 128
ABOUT = "Made by `compare`, which replaces this report when it is called for the same runs= again."
GRID, EACH = 24, (12, 8)
"""Columns of a grid of panels; width and height of a panel that asks for no other."""


class Shown(NamedTuple):
    """What a report and a workspace are of."""

    entity: str
    """Empty: the project's own when it is saved."""
    project: str
    title: str
    ids: dict[str, list[str]]
    """Family, or benchmark -> W&B runs: those that the mirror has, or would have."""
    benchmarks: Benchmarks
    varied: tuple[str, ...]
    """Columns of the runs' config in which they differ."""
    apart: tuple[str, ...]
    """What differs too, and is no column of its own."""
    command: str
    identity: str

    @property
    def mark(self) -> str:
        """Stands in the description of the report: by it, and not by the title, the report is found again."""
        return f"[compare {self.identity}]"


def shown(found: Comparison, place: str = "") -> Shown:
    """Of the runs of a comparison; `place` is `entity/project` or a project, empty: where the runs are mirrored."""
    entity, _, project = place.rpartition("/")
    configs = [run.config.get("tracking") or {} for run in found.runs]
    known = next((config for config in configs if config.get("project")), {})
    axes = found.names
    names = [axes[axis] for axis in found.varied.axes]
    commands = (legible(run.command.strip()) for run in found.runs)
    return Shown(
        entity or str(known.get("entity") or ""),
        project or str(known.get("project") or "iterpref"),
        found.title[:LONGEST_TITLE],
        _ids(found),
        headline(found),
        tuple(name for name in names if name in COLUMNS),
        tuple(name for name in names if name not in COLUMNS),
        "\n".join(dict.fromkeys(command for command in commands if command)),
        found.identity,
    )


def _ids(found: Comparison) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for run in found.runs:
        for name in (*FAMILIES, *dict.fromkeys(one.name for one in run.benchmarks)):
            ids.setdefault(name, []).append(run_id(run.path, name, experiment_in(run.path)))
    return ids


def report(of: Shown) -> Report:
    load_library()
    from wandb_workspaces.reports.v2 import interface as wr

    blocks: list[Any] = [wr.TableOfContents(), wr.H2("What was run")]
    if of.varied:
        blocks.append(wr.P(f"The runs differ in {', '.join(of.varied)}."))
    if of.apart:
        blocks.append(wr.P(f"They differ also in {', '.join(of.apart)}, which the table of runs shows."))
    if of.command:
        blocks.append(wr.CodeBlock(of.command, language="markdown"))
    for section in sections(of.varied, of.benchmarks):
        grid = wr.PanelGrid(runsets=[_runset(of, section.family)], panels=_laid_out(section.panels))
        blocks += [wr.H2(section.name), wr.P(section.about), grid]
    found = wr.Report(
        project=of.project,
        entity=of.entity,
        title=of.title,
        description=f"{ABOUT} {of.mark}",
        blocks=blocks,
        width="fluid",
    )
    return _numbered(found, [block for block in blocks if isinstance(block, wr.PanelGrid)])


def _numbered(found: Report, grids: Iterable[Any]) -> Report:
    for number, grid in enumerate(grids):
        _name(grid.panels, f"panel{number}")
        _name(grid.runsets, f"runs{number}")
    return found


def _name(things: Iterable[Any], kind: str) -> None:
    for number, each in enumerate(things):
        each._id = hashlib.sha256(f"{kind}/{number}".encode()).hexdigest()[:12]


def workspace(of: Shown) -> Workspace:
    """All families' runs on the left; each panel shows those that have its metrics."""
    load_library()
    from wandb_workspaces import workspaces as ws

    parts = []
    for number, section in enumerate(sections(of.varied, of.benchmarks)):
        panels = _laid_out(section.panels)
        _name(panels, f"panel{number}")
        parts.append(ws.Section(name=section.name, panels=panels, is_open=number < 3))
    pinned = [*(f"config:{name}.value" for name in of.varied), *(f"summary:{name}" for name in SUMMARY)]
    every = dict.fromkeys(name for names in of.ids.values() for name in names)
    runs = ws.RunsetSettings(filters=_with_ids(every), pinned_columns=["run:displayName", "run:jobType", *pinned])
    found = ws.Workspace(
        entity=of.entity, project=of.project, name=_plain(of.title), sections=parts, runset_settings=runs
    )
    found._internal_runset_id = hashlib.sha256(b"runs").hexdigest()[:12]
    found._internal_name = f"nw-{hashlib.sha256(f'{of.project}/{of.identity}'.encode()).hexdigest()[:11]}-v"
    return found


def _plain(title: str) -> str:
    """The library refuses names with letters that it takes for emojis."""
    from wandb_workspaces.utils.validators import validate_no_emoji

    def taken(letter: str) -> bool:
        try:
            return bool(validate_no_emoji(letter))
        except ValueError:
            return False

    return "".join(letter for letter in title if taken(letter))


def _runset(of: Shown, family: str) -> Runset:
    from wandb_workspaces.reports.v2 import interface as wr

    runs = wr.Runset(
        name=f"{family}: {of.title}"[:LONGEST_TITLE],
        filters=_with_ids(of.ids[family]),
        pinned_columns=["run:displayName", *(f"config:{name}.value" for name in of.varied)],
        visible_columns=[f"summary:{name}" for name in _columns(of, family)],
    )
    return runs


def _columns(of: Shown, family: str) -> Sequence[str]:
    return [f"{family}/{keys[0]}" for keys in of.benchmarks[family]] if family in of.benchmarks else SUMMARY


def _with_ids(ids: Iterable[str]) -> str:
    return f"Metric('ID') in [{', '.join(map(repr, ids))}]"


def _laid_out(panels: Sequence[Any]) -> list[Any]:
    """From left to right and top to bottom; a panel that is as wide as the grid keeps its size."""
    from wandb_workspaces.reports.v2.interface import Layout

    x = y = height = 0
    for panel in panels:
        width, own = (panel.layout.w, panel.layout.h) if panel.layout.w == GRID else EACH
        if x + width > GRID:
            x, y, height = 0, y + height, 0
        panel.layout = Layout(x=x, y=y, w=width, h=own)
        x, height = x + width, max(height, own)
    return list(panels)


def specs(found: Comparison, place: str = "") -> dict[str, str]:
    """`report` and `workspace` as what W&B keeps of them: JSON that the library itself has read back."""
    load_library()
    from wandb_workspaces.reports.v2.internal import ReportViewspec
    from wandb_workspaces.workspaces.internal import View

    of = shown(found, place)
    models: list[tuple[str, Any, Any]] = [
        ("report", report(of)._to_model(), ReportViewspec),
        ("workspace", workspace(of)._to_model(), View),
    ]
    texts = {name: model.model_dump_json(by_alias=True, exclude_none=True, indent=1) for name, model, _ in models}
    for name, _, kind in models:
        kind.model_validate_json(texts[name])
    return {name: text + "\n" for name, text in texts.items()}


def publish(found: Comparison, place: str = "") -> list[str]:
    """Save both at W&B, in place of what the same `runs=` of the same place was saved as before, whatever its title and
    however many of its runs had begun; returns and prints their addresses.

    Raises UserError where that cannot be done.
    """
    of = shown(found, place)
    _check_server()
    try:
        import wandb

        api = wandb.Api()
        of = of._replace(entity=of.entity or api.default_entity or "")
        reported, workspaced = report(of), workspace(of)
        for known in api.reports(f"{of.entity}/{of.project}"):
            if of.mark in (known.description or ""):
                reported.id = known.id
        reported.save()
        workspaced.save()
        addresses = [str(reported.url), str(workspaced.url)]
    except Exception as error:  # of the network, the server, or W&B's own
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"report: W&B says {said}") from error
    for name, address in zip(("report", "workspace"), addresses, strict=True):
        print(f"{name}: {address}")
    return addresses


def _check_server() -> None:
    """W&B's library itself would try for a minute, and then name its own process."""
    if not has_key():
        raise UserError("report: not logged in to W&B; `wandb login` or WANDB_API_KEY=…, then the same command")
    address = server()
    if not reachable(address):
        raise UserError(f"report: {address} does not answer; the files are written, the same command tries again")
