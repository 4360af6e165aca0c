#!/bin/sh
# Names, in one line, the first thing that is missing on this machine. Argument: the python to use.
python=${1:-python3}
fail() {
    echo "pama_ops: $1" >&2
    exit 1
}
command -v git >/dev/null || fail "git is missing: install git"
if [ -z "${CXX:-}" ]; then
    CXX=$(command -v c++ || command -v g++ || command -v clang++ || echo c++)
fi
# A launcher may stand before the compiler, and flags after it.
for word in $CXX; do
    case $word in -*) break ;; esac
    command -v "$word" >/dev/null || fail "a C++ compiler is missing: install g++ (or set CXX)"
done
command -v "$python" >/dev/null || fail "$python is missing: install Python 3.10 or later"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is older than 3.10: set PYTHON to a later one"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python lacks the venv module: install python3-venv"
"$python" -c 'import pathlib, sysconfig, sys
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
    fail "the headers of $python are missing: install python3-dev"
