# shellcheck shell=bash
# What the scripts share. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }

# The reason, then what to do about it, a line each.
fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '       %s\n' "$@" >&2; fi
    exit 1
}

# Rust is found where rustup puts it even if no profile has been read.
use_rust() {
    if ! command -v cargo >/dev/null && [[ -x ${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo ]]; then
        PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    fi
    command -v cargo >/dev/null || fail "Rust is not installed." \
        "Get it from https://rustup.rs:" \
        "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" \
        "then open a new shell and run this again."
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
    found=$(rustc --version | cut -d ' ' -f 2)
    if [[ $(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1) != "$wanted" ]]; then
        fail "Rust $found is too old: $wanted or newer is needed." \
            "With rustup: rustup update stable" \
            "A Rust from the distribution's packages: install rustup from https://rustup.rs instead."
    fi
}

# built NAME COMMAND…: the path of the one program that Cargo made and that is named so.
built() {
    local name=$1
    shift
    cargo "$@" --locked --message-format json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | grep "/$name\$"
}

# options PREFIX "NAME …" ARGUMENT…: --name VALUE becomes the variable PREFIX_NAME.
options() {
    local prefix=$1 names=" $2 " name
    shift 2
    while (($#)); do
        name=${1#--}
        if (($# < 2)) || [[ $1 != --* || $names != *" $name "* ]]; then
            fail "usage: $0$(sed 's/ \([a-z]\+\)/ [--\1 N]/g; s/ $//' <<<"$names")"
        fi
        export "${prefix}_${name^^}=$2"
        shift 2
    done
}
