# Sourced by quickstart.sh and test.sh, makes .venv beside setup.cfg, with the versions of constraints.txt.
#
#   make_environment EXTRAS    EXTRAS: "" or "[test]"; at once where .venv is up to date already
#
# PYTHON names the interpreter (default python3, 3.10 or later).

make_environment() {
    local python=${PYTHON:-python3} wanted stamp=.venv/.installed$1
    if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "$0: $python: Python 3.10 or later with the venv module is needed (Debian: python3-venv); set PYTHON=…" >&2
        return 2
    fi
    wanted=$(cat constraints.txt setup.cfg | "$python" -c 'import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt)
        echo "installing into $PWD/.venv, once: two to ten minutes, 2 GB on the disk without CUDA and 8 GB with it"
        # torch first and alone: pip then takes the build that is at hand, and DeepSpeed's set-up finds it.
        echo "1 of 2: PyTorch (a download of 0.2 GB without CUDA, 3 GB with it)"
        "${pip[@]}" setuptools wheel torch
        echo "2 of 2: DeepSpeed, Hydra and the others (0.1 GB)"
        # Built with what is installed by now, and in the way that pip does not warn of.
        "${pip[@]}" --use-pep517 --no-build-isolation --editable ".$1"
        echo "$wanted" >"$stamp"
        echo "installed in $SECONDS s"
    fi
}
