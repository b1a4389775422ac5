#!/usr/bin/env bash
# A program that saves, fails or hangs as it is told: program.sh RUN BEHAVIOUR
run=$1 start=${SLURM_RESTART_COUNT:-0}

mkdir -p "$run"
save() {
    mkdir -p "$run/checkpoints/step-0000000$1"
    touch "$run/checkpoints/step-0000000$1/COMMIT.json"
}

live() {
    while :; do touch "$run/metrics.jsonl"; sleep 0.2; done
}

case $2 in
    preempted-twice) save "$start"; exit $((start < 2 ? 75 : 0)) ;;
    array1) exit 0 ;;
    array2) save "$start"; exit $((start < 1 ? 75 : 0)) ;;
    mistaken) exit 2 ;;
    dies-unsaved) exit 4 ;;
    dies-always) save 1; exit 4 ;;
    unlucky) exit $((start < 1 ? 4 : 0)) ;;
    stopped) save 1; echo '{"status": "stopped", "why": ""}' >"$run/status.json"; exit 75 ;;
esac
((start == 0)) || exit 0
case $2 in
    warned) trap 'save 1; exit 75' USR1; live ;;
    cancelled) trap 'sleep 1; save 1; exit 75' TERM; save 0; live ;;
    hangs) trap '' TERM USR1; save 0; while :; do sleep 0.2; done ;;
    unplugged) save 0; live ;;
esac
