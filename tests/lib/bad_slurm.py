"""What a cluster does not take, or does not say. Its programs are made up here; test_slurm_submit.py has real ones."""

from __future__ import annotations

from bad_inputs import Bad, Given, Setting, Table

SINFO = "main*|1:00:00|4|4|8000|gpu:2\nlow|1:00:00|2|4|8000|(null)"
SUBMIT = "launcher=slurm iter=1"
JOBS = ("setup", "generation", "ranking", "reference", "training", "evaluation", "judging", "report")
WANTED = {"minutes": 30, "cpus": 4, "memory_gb": 4}


def cluster(sinfo: str = f"echo '{SINFO}'", sbatch: str = "exit 0", squeue: str = "exit 0") -> Given:
    """Its programs, which are all there is on PATH."""

    def given(setting: Setting) -> list[str]:
        place = setting.at / "bin"
        place.mkdir()
        for name, body in {"sinfo": sinfo, "sbatch": sbatch, "squeue": squeue, "scontrol": "exit 0"}.items():
            (place / name).write_text(f"#!/bin/sh\n{body}\n")
            (place / name).chmod(0o755)
        setting.patch.setenv("PATH", str(place))
        return [f"launcher.jobs.{job}.{key}={value}" for job in JOBS for key, value in WANTED.items()]

    return given


def without(setting: Setting) -> None:
    setting.patch.setenv("PATH", str(setting.at))


def says(line: str) -> str:
    return f"echo '{line}' >&2; exit 1"


def refused(what: str, words: str, told: str, given: Given | None = None, code: int = 2) -> Bad:
    return Bad(what, words, told, code, given or cluster(), verb="run")


SLURM = Table(
    "SLURM",
    "With `launcher=slurm`. The cluster is asked before anything is submitted: in these rows its partitions `main` and `low` "
    "have 4 and 2 nodes of 4 CPUs and 8 GB for an hour, those of `main` 2 GPUs.",
    [
        refused(
            "no SLURM here",
            SUBMIT,
            "launcher: no sinfo on PATH; launcher=slurm needs a machine that submits jobs",
            without,
        ),
        refused(
            "a cluster that does not answer",
            SUBMIT,
            "launcher: sinfo: slurm_load_partitions: Unable to contact slurm controller (connect failure); the same command goes on when `sinfo` answers",
            cluster(sinfo=says("slurm_load_partitions: Unable to contact slurm controller (connect failure)")),
            code=3,
        ),
        refused(
            "a sinfo that is not SLURM's",
            SUBMIT,
            "launcher: sinfo: 'hello' is no line of a partition; is it SLURM's?",
            cluster(sinfo="echo hello"),
        ),
        refused(
            "a partition that there is not",
            f"{SUBMIT} launcher.site.partition=nope",
            "launcher.site.partition: there is no nope; there are low, main",
        ),
        refused(
            "a partition of one stage that there is not",
            f"{SUBMIT} launcher.jobs.training.partition=nope",
            "launcher.jobs.training.partition: there is no nope; there are low, main",
        ),
        refused(
            "no partition, where the cluster has no default",
            SUBMIT,
            "launcher.site.partition: the cluster has no default; there are low",
            cluster(sinfo="echo 'low|1:00:00|2|4|8000|(null)'"),
        ),
        refused(
            "more time than the partition gives",
            f"{SUBMIT} launcher.jobs.training.minutes=61",
            "launcher.jobs.training.minutes: 61, but partition main ends jobs after 60",
        ),
        refused(
            "more CPUs than a node has",
            f"{SUBMIT} launcher.jobs.ranking.cpus=5",
            "launcher.jobs.ranking.cpus: 5 a node, but no node of partition main has more than 4",
        ),
        refused(
            "more memory than a node has",
            f"{SUBMIT} launcher.jobs.report.memory_gb=8",
            "launcher.jobs.report.memory_gb: 8 a node, but no node of partition main has more than 7",
        ),
        refused(
            "more GPUs than a node has",
            f"{SUBMIT} launcher.jobs.setup.gpus=3",
            "launcher.jobs.setup.gpus: 3 a node, but no node of partition main has more than 2",
        ),
        refused(
            "other GPUs than the hardware says",
            f"{SUBMIT} hardware=8xa100_80gb ranker.precision=float32 launcher.jobs.training.gpus=4",
            "launcher.jobs.training.gpus: 4, but hardware=8xa100_80gb takes 8 a node for it",
        ),
        refused(
            "an account that there is not",
            f"{SUBMIT} launcher.site.account=nobody",
            "launcher.jobs.evaluation: sbatch: error: Invalid account or account/partition combination specified; mend launcher.site or launcher.jobs as it says, or ask the site",
            cluster(sbatch=says("sbatch: error: Invalid account or account/partition combination specified")),
        ),
        refused(
            "a stage whose wants are not said",
            f"{SUBMIT} ~launcher.jobs.ranking",
            "launcher.jobs.ranking: missing; say what such a job wants",
        ),
        refused(
            "a warning as long as the job",
            f"{SUBMIT} launcher.warn_seconds=1800",
            "launcher.warn_seconds: 1800 is no time to work in, for launcher.jobs.evaluation.minutes is 30",
        ),
        refused(
            "a job for one artifact",
            f"{SUBMIT} only=it1/pairs",
            "only: names artifacts of a run that is made here; leave it out of a sweep or a submission",
        ),
        Bad(
            "what is asked of a queue, without one",
            "",
            "launcher: status is for what launcher=slurm has submitted; add it to the words",
            verb="status",
        ),
    ],
)
