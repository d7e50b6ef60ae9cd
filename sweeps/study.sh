#!/usr/bin/env bash
# Sweeps of eta, lr, K and method as SLURM jobs, then their pages: bash sweeps/study.sh
# Without a cluster, in one of this machine (root, Debian): python tests/lib/one_machine_slurm.py bash sweeps/study.sh
# Further words go to every sweep: bash sweeps/study.sh iter=1 seed=0
# A second call goes on where the first one ended.
set -eu
python=${PYTHON:-.venv/bin/python}
sweeps=(
    "eta method.eta=1,10,100,1000,10000"
    "lr train.lr=2.5e-6,5e-6,1e-5,2e-5 iter=2"
    "k sampling.K=2,3,5,8 iter=2"
    "method method=sppo,sppo_single,dpo,ipo,wpo iter=2"
    "estimator iter=2"
)
for sweep in "${sweeps[@]}"; do
    read -ra words <<<"$sweep"
    "$python" -m src.main -m "+sweep=${words[@]}" seed=0,1 launcher=slurm_small "$@"
done
while [ -n "$(squeue --noheader)" ]; do sleep 10; done
for sweep in "${sweeps[@]}"; do
    "$python" -m src.main compare "runs=${sweep%% *}"
done
