#!/usr/bin/env bash
# task.sh COMMAND...: a command in a SLURM job. SIGUSR1 (time is nearly up, or a job of higher priority waits) and SIGTERM
# reach it; it saves and ends. After SIGUSR1 (exit code 138) the job goes back into the queue; after SIGTERM (143) it stays
# until SLURM ends it, for a preempted job that ends by itself is not started again.
set -u
export PYTHONUNBUFFERED=1  # so that the last output stands last in the log
child=
trap 'WARNED=1; [ -z "$child" ] || kill -USR1 "$child"' USR1
trap '[ -z "$child" ] || kill -TERM "$child"' TERM
"$@" &
child=$!
[ -z "${WARNED:-}" ] || kill -USR1 "$child"  # the signal came before the command started
while wait "$child"; code=$?; kill -0 "$child" 2>/dev/null; do :; done
wait "$child"  # where a signal ended the wait above, this is the command's own code
last=$?
[ $last = 127 ] || code=$last
case $code in
138)
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # the last element has the whole array's id
    job=${job:-$SLURM_JOB_ID}
    echo "task: saved; job $job goes back into the queue" >&2
    trap - USR1 TERM
    for _ in {1..60}; do  # the controller may be away
        scontrol requeue "$job" && sleep 600 && break
        sleep 5
    done
    ;;
143) sleep 600 ;;
esac
exit "$code"
