# Sourced by the other scripts: makes or reuses .venv and installs clipkit there.
#
#   source scripts/setup.sh                       # what running clipkit needs
#   CLIPKIT_EXTRAS=dev source scripts/setup.sh    # and what testing it needs
#
# CLIPKIT_PYTHON names the interpreter to make .venv with (default: python3).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

clipkit_setup() {
    local extras="${1:-}" python="${CLIPKIT_PYTHON:-python3}" stamp wanted
    wanted="$(cksum < pyproject.toml) $PWD"
    # One that was copied here with the tree points to the other tree.
    if [ -f .venv/.clipkit-where ] && [ "$(cat .venv/.clipkit-where)" != "$PWD" ]; then
        rm -rf .venv
    fi
    # One that was interrupted has no pip yet; making it again mends that.
    if ! .venv/bin/python -m pip --version > /dev/null 2>&1; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python: Python 3.11 or newer is needed; name one with CLIPKIT_PYTHON=python3.12" >&2
            return 1
        fi
        echo "making .venv with $("$python" --version)"
        if ! "$python" -m venv .venv; then
            echo "$python has no venv module; on Debian: apt-get install python3-venv" >&2
            return 1
        fi
    fi
    # Stamps of where and what was installed, so that a second run starts at once.
    echo "$PWD" > .venv/.clipkit-where
    stamp=".venv/.clipkit-${extras:-run}"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing clipkit${extras:+ with [$extras]} into .venv (the first time: a few minutes, 5 GB)"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --editable ".${extras:+[$extras]}" || return 1
        echo "$wanted" > "$stamp"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}

clipkit_setup "${CLIPKIT_EXTRAS:-}" || exit 1
