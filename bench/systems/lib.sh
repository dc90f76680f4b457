# shellcheck shell=bash
# What the systems written in bash share. Sourced, never run; README.md has the contract.

# Builtins only up to here: `missing` has to work where nothing is installed.
system=${0##*/}

# After how long without a byte a peer gives up, in seconds.
stall_s=${BENCH_STALL_S:-30}

# The hosts' addresses, the origin's first, and this host's own.
read -ra addresses <<<"${BENCH_ADDRESSES:-}"
# shellcheck disable=SC2034  # for the systems
address=${addresses[${BENCH_INDEX:-0}]:-}

# fail WORDS…: says on stderr why the system cannot go on, and ends it.
fail() {
    printf '%s: %s\n' "$system" "$*" >&2
    exit 1
}

usage() {
    printf 'usage: %s missing|prepare|origin|peer; see README.md\n' "$system" >&2
    exit 2
}

# need COMMAND:PACKAGE…: ends the script; fails with one line on stdout if a command is missing.
need() {
    local pair commands=() packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null && continue
        commands+=("${pair%%:*}") packages+=("${pair##*:}")
    done
    [ ${#commands[@]} != 0 ] || exit 0
    printf 'no %s: apt-get install %s\n' "${commands[*]}" "${packages[*]}"
    exit 1
}

# What the harness waits for. A harness that has gone closes stdin, and then nothing is left to do.
ready() { printf 'ready\n'; }
await_go() {
    local line
    IFS= read -r line || fail "stdin ended before the clock started"
    [ "$line" = go ] || fail "expected \`go\` on stdin, not \`$line\`"
}

# How many bytes of files there are below a directory.
bytes_below() { find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%d\n", sum }'; }

# note_size: in `prepare`, takes note of how large the model is.
note_size() { bytes_below "$BENCH_MODEL" >"$BENCH_SHARED/$system.size"; }

# finish: prints `done` if all of the model's bytes are there. That they are the right ones is for the harness to say.
finish() {
    local wanted found
    wanted=$(<"$BENCH_SHARED/$system.size")
    found=$(bytes_below "$BENCH_OUTPUT")
    [ "$found" = "$wanted" ] || fail "$found bytes arrived instead of $wanted"
    printf 'done\n'
}

# wait_for PID COMMAND…: until the command succeeds, which takes no more than half a minute, or that process ends.
wait_for() {
    local pid=$1 deadline=$((SECONDS + 30))
    shift
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || fail "it ended before it was ready"
        [ $SECONDS -lt $deadline ] || fail "it was not ready within 30 s"
        sleep 0.02
    done
}

# give_up_on_stall: in the background, ends the script when nothing has arrived in $BENCH_OUTPUT for $stall_s.
give_up_on_stall() {
    local before='' now since=$SECONDS
    while sleep 0.5; do
        now=$(du --summarize --block-size=1 "$BENCH_OUTPUT")
        if [ "$now" != "$before" ]; then
            before=$now since=$SECONDS
        elif [ $((SECONDS - since)) -ge "$stall_s" ]; then
            printf '%s: nothing has arrived for %d s\n' "$system" "$stall_s" >&2
            kill -TERM $$
            return
        fi
    done
}

# What was started in the background ends with the script, if that is not killed.
end_children() {
    local pids
    mapfile -t pids < <(jobs -p)
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
}
trap end_children EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
