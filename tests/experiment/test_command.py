"""The command in a run folder: it makes the same artifacts anywhere, whoever started the run."""

from __future__ import annotations

import shlex

from src.experiment.run_folder import command

WORDS: list[tuple[list[str], list[str]]] = [
    # overrides, what of them lasts
    ([], []),
    (["+sweep=eta", "method.eta=10", "launcher=slurm"], ["+sweep=eta", "method.eta=10"]),
    (["seed=1", "only=[it1/pairs]", "part=2/8", "launcher=allocation", "hardware.ranking.workers=1"], ["seed=1"]),
    (["slurm@launcher.site=mine", "+slurm@launcher.site=mine", "launcher.jobs.setup.partition=cpu"], []),
    (["++launcher.x=1", "~launcher.y", "+part=1/2", "++only=base/policy", "launcher.keys=x"], []),
    (["name=only=1", "partition=1", "+only_x=1"], ["name=only=1", "partition=1", "+only_x=1"]),
    (["~train.lora", "+variant=paper", "name='a b'"], ["~train.lora", "+variant=paper", "name='a b'"]),
]


def test_what_says_which_run_it_is_lasts() -> None:
    for words, kept in WORDS:
        assert shlex.split(command(words)) == ["python", "-m", "src.main", *kept]
