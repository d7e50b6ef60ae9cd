"""Draws slurm_graph.png and slurm_failure.png from the planner: `python docs/img/slurm_graph.py [folder]`."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")

from hydra import compose, initialize_config_dir  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from src.experiment.graph import nodes_of  # noqa: E402
from src.experiment.sweep import report_of, tasks_of  # noqa: E402
from src.launch.compose import build  # noqa: E402
from src.launch.slurm.arrays import OWN, Array, arrange  # noqa: E402

ETAS, RATES, PARTS = (10, 100, 300, 1000, 3000), (2.5e-6, 1e-5, 4e-5), 8
COLOURS = {"matched": "#0072B2", "named": "#D55E00"}
LANES = ("setup", "generation", "ranking", "reference", "training", "evaluation", "report")


def arrays() -> list[Array]:
    """Of 5 values of eta and 3 of the learning rate, two iterations."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [[f"method.eta={eta}", f"train.lr={rate}", "iter=2"] for eta in ETAS for rate in RATES]
        points = [nodes_of(build(compose("config", point))) for point in words]
    tasks = tasks_of(points, lambda node: True, PARTS)
    tasks += [report_of(n, nodes, tasks, Path(f"run{n}")) for n, nodes in enumerate(points)]
    return arrange(tasks, {})


def shown(found: list[Array]) -> dict[str, list[Array]]:
    """Arrays that differ in the part only, together."""
    boxes: dict[str, list[Array]] = {}
    for array in found:
        boxes.setdefault(array.name.partition("-part")[0], []).append(array)
    return boxes


def cancelled(found: list[Array], failed: tuple[str, int]) -> dict[str, set[int]]:
    """Elements, by array, that can never start when this one has failed."""
    lost: dict[str, set[int]] = {failed[0]: {failed[1]}}
    for array in found:
        for index in array.elements:
            waits = ((lost.get(other.name, set()), one) for other, one in array.waits)  # type: ignore[union-attr]
            if any(index in ended if one == OWN else ended and one in (None, failed[1]) for ended, one in waits):
                lost.setdefault(array.name, set()).add(index)
    return lost


def main() -> None:
    title = "A sweep of 5 etas × 3 learning rates over two iterations, as job arrays"
    draw(arrays(), title, "slurm_graph.png")
    failed = ("it1-training", 3)
    draw(arrays(), "The same, when one training of iteration 1 has failed", "slurm_failure.png", failed)


def draw(found: list[Array], title: str, file: str, failed: tuple[str, int] | None = None) -> None:
    boxes, lost = shown(found), cancelled(found, failed) if failed else {}
    name_of = {array: name for name, members in boxes.items() for array in members}
    depth: dict[str, int] = {}
    edges: dict[tuple[str, str], str] = {}
    for name, members in boxes.items():
        edges |= {(name_of[other], name): "matched" if one == OWN else "named" for other, one in members[0].waits}
        depth[name] = 1 + max((depth[one] for one, other in edges if other == name), default=0)
    figure, axes = plt.subplots(figsize=(13, 6.2), dpi=110)
    lanes: dict[tuple[int, int], int] = {}
    place: dict[str, tuple[float, float]] = {}
    texts: dict[str, Text] = {}
    for name, members in boxes.items():
        lane = LANES.index(members[0].task.job)
        shift = lanes.setdefault((depth[name], lane), 0)
        lanes[depth[name], lane] += 1
        place[name] = (depth[name] + 0.8 * shift, -lane - 0.62 * shift)
        jobs = f"{len(members[0].elements)} job" + "s" * (len(members[0].elements) > 1)
        text = f"{name.replace('-', ' ')}\n{f'{len(members)} × ' * (len(members) > 1)}{jobs}"
        hit = sum(len(lost.get(member.name, ())) for member in members)
        if hit:
            text += f"\n{hit} {'failed' if failed and name == failed[0] else 'cancelled'}"
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#F6D5C6" if hit else "white", "edgecolor": "#444444"}
        texts[name] = axes.text(*place[name], text, ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    axes.set_xlim(0.4, max(depth.values()) + 0.6)
    axes.set_ylim(-len(LANES) + 0.2, 0.6)
    axes.axis("off")
    axes.set_title(title, fontsize=12)
    figure.tight_layout()
    figure.canvas.draw()
    for (one, other), kind in edges.items():
        style = {"arrowstyle": "-|>", "color": COLOURS[kind], "lw": 1.4, "shrinkA": 1, "shrinkB": 1}
        style |= {"patchA": texts[one].get_bbox_patch(), "patchB": texts[other].get_bbox_patch()}
        axes.annotate("", place[other], place[one], arrowprops=style)
    for kind, label in (("matched", "element by element (aftercorr)"), ("named", "the whole array (afterok)")):
        axes.plot([], [], color=COLOURS[kind], label=label)
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    figure.savefig((Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent) / file, metadata={"Software": None})


if __name__ == "__main__":
    main()
