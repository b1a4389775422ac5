# shellcheck shell=bash
# What the job scripts share. Bash and Slurm's own commands alone: the job's shell may have no Python, and inside a
# container there is no scontrol. Every script sources this, calls `begin`, and ends in `train` or `run`.
#
# Beside the run folder RUN lies what its jobs leave, in RUN.jobs/STAGE/:
#   journal         an event a line: time, job, restart, what happened
#   done            there once the stage has ended well; `membart slurm submit` skips the stage then
#   excluded        nodes that failed a preflight
#   JOB.RESTART/    one start: environment, preflight/, and NODE.log, what the ranks on that node said

# begin STAGE RUN: the site's settings, the ranks' environment and the records of this start.
begin() {
    STAGE=$1 RUN=$(realpath -m "$2")
    RESTART=${SLURM_RESTART_COUNT:-0}
    # The last task of an array has the array's own SLURM_JOB_ID, and what is done to that is done to all tasks.
    JOB=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    JOB=${JOB:-$SLURM_JOB_ID}
    JOBS=$RUN.jobs/$STAGE
    HERE=$JOBS/$JOB.$RESTART
    mkdir -p "$HERE"
    BEFORE=$(cksum "$RUN/status.json" 2>/dev/null || true) # what an earlier job of the run left
    mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    note "starts on $SLURM_JOB_NODELIST"
    set -E
    trap 'note "error: ${BASH_SOURCE[0]} line $LINENO: $BASH_COMMAND"' ERR
    trap 'note "ends, exit $?"' EXIT
    trap 'exit 143' TERM
    trap 'EARLY=yes; note "USR1 before training"' USR1
    load_site
    rank_environment
    env | grep -E '^(SLURM|SITE|MEMBART|MASTER|NCCL|GLOO|FI|UCX|CUDA|OMP|PYTHON|PATH|MLFLOW_TRACKING_URI)' |
        grep -viE 'password|token|secret|://[^/]*@' >"$HERE/environment" || true
    git -C "$MEMBART_HOME" describe --always --dirty >"$HERE/version" 2>/dev/null || true
    cp "$0" "$HERE/script"
    rm -f "$JOBS/done"
    if ((RESTART > SITE_MAX_RESTARTS)); then
        fail "restarted $RESTART times: SITE_MAX_RESTARTS is $SITE_MAX_RESTARTS"
    fi
}

# take_task [--tasks FILE | WORD...]: sets TASK to the words, or to those of this array task: tab-separated, the line
# of FILE with the task's number.
# shellcheck disable=SC2034 # the scripts read TASK
take_task() {
    TASK=("$@")
    [[ ${1:-} == --tasks ]] || return 0
    IFS=$'\t' read -r -a TASK < <(sed -n "${SLURM_ARRAY_TASK_ID:?--tasks needs sbatch --array}p" "$2") || {
        echo "error: $2: no line $SLURM_ARRAY_TASK_ID -- one line a task, as many as the array counts" >&2
        exit 2
    }
}

# preflight PROGRAM WORD...: every node is examined before the program takes its hours. A bad node is named and
# excluded, and the job requeued without it.
preflight() {
    [[ ${MEMBART_PREFLIGHT:-$SITE_PREFLIGHT} == off ]] && return 0
    local folder=$HERE/preflight node bad=() said=()
    mkdir -p "$folder"
    LIMIT=$SITE_PREFLIGHT_SECONDS MASTER_PORT=$((MASTER_PORT + PORTS)) \
        step python -m tools.cli slurm preflight "$folder" --run "$RUN" -- "$@"
    if ((CODE == 143)); then # by Slurm alone: the job is cancelled or preempted, and no node is to blame
        again "TERM during the preflight"
        exit "$CODE"
    fi
    for node in "${NODES[@]}"; do
        [[ -e $folder/$node.ok ]] && continue
        bad+=("$node")
        said+=("$node: $(cat "$folder/$node.bad" 2>/dev/null || cat "$folder/$node.lost" 2>/dev/null ||
            echo "gave no answer within $SITE_PREFLIGHT_SECONDS s")")
    done
    [[ -s $folder/lead ]] && LEAD=$(<"$folder/lead")
    if ((${#bad[@]} == 0)); then
        note "preflight passed: $(cat "$folder/network" 2>/dev/null)"
        return 0
    fi
    # Whoever could not reach a head node that is itself broken is not to blame.
    if [[ ! -e $folder/${NODES[0]}.ok && ! -e $folder/${NODES[0]}.lost ]] && compgen -G "$folder/*.lost" >/dev/null; then
        for node in "${!bad[@]}"; do
            [[ -e $folder/${bad[node]}.lost ]] && unset "bad[node]" "said[node]"
        done
    fi
    printf '%s\n' "${said[@]}" | while read -r line; do note "preflight: $line"; done
    if ((${#bad[@]} == ${#NODES[@]})); then
        fail "every node fails the preflight: mend the job, no node is excluded" 2
    fi
    printf '%s\n' "${bad[@]}" >>"$JOBS/excluded"
    requeue "without $(commas "${bad[@]}")" || exit 1
}

# train WORD...: a program that saves, under srun, watched until it ends. Does not return.
train() {
    if [[ -e $RUN/control/stop ]]; then
        rm "$RUN/control/stop"
        fail "stopped by control/stop before it began: submit again to go on" 75
    fi
    if [[ -n ${EARLY:-} ]]; then
        again "warned before training began"
        exit 75
    fi
    refuse_fruitless_starts
    COUNTED=yes # so that dying again and again has an end
    watch_over "$$" "$RUN/metrics.jsonl" "$RUN/checkpoints" &
    local watch=$!
    trap 'note "USR1: the ranks are told to save"; kill -USR1 "$STEP" 2>/dev/null' USR1
    trap 'note "TERM: Slurm has told the ranks as well"' TERM
    step "$@"
    kill "$watch" 2>/dev/null || true
    trap - USR1 TERM
    conclude "$CODE"
}

# run WORD...: any other program under srun. Does not return.
run() {
    step "$@"
    conclude "$CODE"
}

# conclude CODE: what becomes of the job. Does not return.
conclude() {
    local code=$1
    ((code == 0)) || show_ends
    if ((code == 0)); then
        echo "$JOB.$RESTART $(date +%FT%T)" >"$JOBS/done"
    elif ((code == 75)); then
        again "saved, exit 75"
    elif [[ -n ${COUNTED:-} ]] && ((code == 4 || code > 128)); then
        again "a rank hung or died, exit $code"
    fi
    exit "$code"
}

# again WHY: requeue a job that runs and that nobody stopped.
again() {
    local state
    if [[ $(cksum "$RUN/status.json" 2>/dev/null) != "$BEFORE" ]] &&
        grep -qs '"status": "stopped"' "$RUN/status.json"; then
        note "$1; stopped by control/stop, not requeued: submit again to go on"
        return 0
    fi
    for _ in {1..10}; do # the controller may be away for a moment
        state=$(job_field JobState)
        [[ -z $state ]] || break
        sleep 15
    done
    if [[ $state != RUNNING ]]; then
        note "$1; the job is ${state:-unknown to Slurm}, not requeued"
        return 0
    fi
    requeue "$1" || true
}

# requeue WHY: the same job again, away from excluded nodes. Does not return when Slurm agrees.
requeue() {
    # From here on Slurm ends this shell.
    trap '' TERM
    if ! scontrol requeue "$JOB"; then
        trap - TERM
        note "$1; Slurm refuses to requeue: submit again to go on"
        return 1
    fi
    if [[ -s $JOBS/excluded ]]; then
        mapfile -t away < <(sort -u "$JOBS/excluded")
        scontrol update "JobId=$JOB" "ExcNodeList=$(commas "${away[@]}")" ||
            note "cannot exclude ${away[*]}"
    fi
    note "requeued: $1"
    trap - EXIT
    exit 75
}

# step WORD...: one srun, one task per rank; sets CODE to the highest exit code of its tasks. LIMIT bounds it.
# A task that ends early leaves the others SITE_WAIT_SECONDS to save, or to say what they miss, before srun ends them.
step() {
    local words=("$@")
    [[ ${words[0]} == python ]] && words[0]=$SITE_PYTHON
    srun --kill-on-bad-exit=0 --wait="$SITE_WAIT_SECONDS" --label --open-mode=append --output="$HERE/%N.log" \
        "${SITE_SRUN[@]}" "${SITE_CONTAINER[@]}" "${words[@]}" &
    STEP=$!
    local timer=
    if [[ -n ${LIMIT:-} ]]; then
        (sleep "$LIMIT" && kill_steps) &
        timer=$!
    fi
    # A trapped signal interrupts `wait`; the code of the second `wait` is the step's if the first was cut short.
    while CODE=0; wait "$STEP" || CODE=$?; kill -0 "$STEP" 2>/dev/null; do :; done
    local code=0
    wait "$STEP" 2>/dev/null || code=$?
    [[ $code == 127 ]] || CODE=$code
    [[ -z $timer ]] || kill "$timer" 2>/dev/null || true
}

# watch_over SHELL SIGN...: signals SHELL in time for a save before the job's end, and kills the ranks when no SIGN has
# changed for too long. The ranks' own watchdog is quicker and knows the rank; this one needs nobody alive.
watch_over() {
    local shell=$1 now newest sign limit began end warned=
    shift
    began=$(date +%s) end=$(job_end)
    if ((end && LEAD > (end - began) / 2)); then LEAD=$(((end - began) / 2)); fi
    while sleep "$SITE_POLL_SECONDS"; do
        now=$(date +%s)
        if [[ -z $warned ]] && ((end && now >= end - LEAD)); then
            end=$(job_end) # somebody may have extended the job
            if ((end && now >= end - LEAD)); then
                warned=yes
                kill -USR1 "$shell"
            fi
        fi
        newest=$began limit=$SITE_START_SECONDS
        for sign in "$@"; do
            sign=$(stat -c %Y "$sign" 2>/dev/null || echo 0)
            if ((sign > newest)); then newest=$sign limit=$SITE_STALL_SECONDS; fi
        done
        if ((now - newest > limit)); then
            note "no sign of life for $((now - newest)) s: the ranks are killed"
            kill_steps
            return
        fi
    done
}

# kill_steps: end the job's steps, with Python's stacks in the logs where a rank can still write them.
kill_steps() {
    local steps
    mapfile -t steps < <(squeue --noheader --steps --job="$JOB" --format=%i | grep -E '\.[0-9]+$')
    ((${#steps[@]})) || return 0
    scancel --signal=ABRT "${steps[@]}" || true
    sleep 5
    scancel --signal=KILL "${steps[@]}" || true
}

# refuse_fruitless_starts: end a job that starts again and again from the same checkpoint, or from none.
refuse_fruitless_starts() {
    local newest same
    newest=$(compgen -G "$RUN/checkpoints/step-*/COMMIT.json" | sort | tail -n 1) || true
    echo "$JOB ${newest:-none}" >>"$JOBS/starts"
    same=$(tail -n $((SITE_MAX_FRUITLESS + 1)) "$JOBS/starts" | grep -cxF "$JOB ${newest:-none}") || true
    if ((same > SITE_MAX_FRUITLESS)); then
        fail "$SITE_MAX_FRUITLESS restarts in a row came to no new checkpoint: see $JOBS"
    fi
}

load_site() {
    local file=${MEMBART_SITE:-$MEMBART_HOME/slurm/site.env}
    SITE_SRUN=() SITE_CONTAINER=()
    if [[ -e $file ]]; then
        set -a
        # shellcheck source=site.example.env
        source "$file"
        set +a
    elif [[ -n ${MEMBART_SITE:-} ]]; then
        fail "the site file $file is not there" 2
    fi
    : "${SITE_PYTHON:=python}" "${SITE_PREFLIGHT:=on}" "${SITE_PREFLIGHT_SECONDS:=300}" "${SITE_WAIT_SECONDS:=300}"
    : "${SITE_MAX_RESTARTS:=50}" "${SITE_MAX_FRUITLESS:=3}" "${SITE_LEAD_SECONDS:=300}" "${SITE_POLL_SECONDS:=15}"
    : "${SITE_START_SECONDS:=3600}" "${SITE_STALL_SECONDS:=3600}"
    LEAD=$SITE_LEAD_SECONDS
    if declare -F site_setup >/dev/null; then site_setup; fi
}

rank_environment() {
    # What a launcher left in the submitter's shell would win over srun's variables.
    unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE
    export MASTER_ADDR=${NODES[0]}
    # Another port at each start: ranks of an older one that still live find nobody to talk to.
    MASTER_PORT=$(free_port $(((SLURM_JOB_ID + 1009 * RESTART) % PORTS)))
    export MASTER_PORT
    export MEMBART_NODES="${NODES[*]}"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    # Since Slurm 22.05 srun does not take this over from sbatch.
    if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi
    export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
    # One tracking server for all jobs of a folder: slurm/mlflow.sbatch writes its address there.
    local address
    address=$(dirname "$RUN")/mlflow.url
    if [[ -z ${MLFLOW_TRACKING_URI:-} && -s $address ]]; then
        MLFLOW_TRACKING_URI=$(<"$address")
        export MLFLOW_TRACKING_URI
    fi
}

# Ports of ranks: PORTS from FIRST_PORT on; the same number of ports above is for preflights and tracking servers.
FIRST_PORT=20000 PORTS=6000

# free_port WISH: the first port from FIRST_PORT + WISH on that nobody on this host listens on, nor on its companion above:
# another job of the same node may have them.
free_port() {
    local try port
    for ((try = 0; try < 100; try++)); do
        port=$((FIRST_PORT + ($1 + try) % PORTS))
        if ! is_taken "$port" && ! is_taken $((port + PORTS)); then break; fi
    done
    echo "$port"
}

# is_taken PORT: whether a program of this host listens there, by the kernel's own table (state 0A).
is_taken() {
    grep -qsE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") [0-9A-F:]+ 0A " /proc/net/tcp /proc/net/tcp6
}

job_field() {
    scontrol --oneliner show job "$JOB" 2>/dev/null | grep -oP "(?<= $1=)\S+" | head -n 1 || true
}

# job_end: seconds since 1970 at which Slurm ends the job; 0 when it never does.
job_end() {
    local end
    end=$(job_field EndTime)
    if [[ $end == *T* ]]; then date -d "$end" +%s; else echo 0; fi
}

# show_ends: the last lines of some nodes' logs, where a person looks first.
show_ends() {
    local node
    for node in "${NODES[@]:0:4}"; do
        [[ -s $HERE/$node.log ]] || continue
        echo "--- the end of $HERE/$node.log"
        tail -n 20 "$HERE/$node.log"
    done
}

note() {
    printf '%s %s.%s %s\n' "$(date +%FT%T)" "$JOB" "$RESTART" "$*" | tee -a "$JOBS/journal" || true
}

fail() {
    note "error: $1"
    exit "${2:-1}"
}

commas() {
    local IFS=,
    echo "$*"
}
