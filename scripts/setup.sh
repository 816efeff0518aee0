# Sourced by other scripts. Creates an environment with spatialfeat in it, and does nothing when that is done.
# Usage: setup_spatialfeat [EXTRA [VENV [CONSTRAINTS]]]
#   EXTRA        an optional dependency group of pyproject.toml
#   VENV         the folder of the environment; default .venv
#   CONSTRAINTS  a file of versions for pip; default: whatever pip finds newest

setup_spatialfeat() {
    local extra="${1:-}" venv="${2:-.venv}" constraints="${3:-/dev/null}" target="." python="" candidate
    [ -n "$extra" ] && target=".[$extra]"

    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            python="$candidate"
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "error: no Python 3.10 or later was found; install one, or name it: PYTHON=/path/to/python3 $0" >&2
        return 2
    fi

    # Installed packages depend on pyproject.toml and on where this folder lies (the install is editable).
    local state
    state="$(cat pyproject.toml "$constraints"; pwd; echo "$extra")"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/installed-${extra:-base}" 2>/dev/null)" = "$state" ]; then
        return 0
    fi
    echo "== Setting up $venv (once): downloads and installs PyTorch, several GB. This says nothing for some minutes."
    if [ ! -x "$venv/bin/python" ]; then
        if ! "$python" -m venv "$venv"; then
            rm -rf "$venv"
            echo "error: '$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2
            return 2
        fi
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$constraints" --editable "$target" || return
    printf '%s\n' "$state" > "$venv/installed-${extra:-base}"
}
