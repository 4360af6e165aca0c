#!/bin/sh
# What only a GPU can show, with no network and no virtual environment:
#
#   scripts/gpu_check.sh [build] [test] [sanitize] [bench]     (all four by default)
#
# Builds with the python3 (torch >= 2.11, pybind11), nvcc, CMake and ninja on the PATH, for the card
# at hand alone, into build/gpu, which later runs reuse. Every stage ends within nine minutes and
# writes JSON as it goes under $OUT (default build/gpu/results); a table comes last.
# PYTHON names another interpreter, PAMA_COMMIT the commit of a tree without git. The exit status is
# 1 if any stage failed.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python3}") || { echo "gpu_check: python3 is missing" >&2; exit 1; }
build=$root/build/gpu
OUT=${OUT:-$build/results}
mkdir -p "$build" "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The package of this tree with the libraries of build/gpu: run from elsewhere than $root, whose own
# pama_ops would come first.
export PYTHONPATH="$build/site${PYTHONPATH:+:$PYTHONPATH}"
cd "$build" || exit 1
# An interrupt, on which pytest still writes its report.
limit="timeout -s INT -k 15 520"
failed=0

report() { "$python" "$root/scripts/gpu_report.py" "$@"; }

say() { printf '\n== %s ==\n' "$*"; }

# finish STAGE STATUS SECONDS
finish() {
    report stage "$1" "$2" "$3"
    [ "$2" -eq 0 ] || failed=1
}

stage_build() {
    for tool in cmake ninja nvcc; do
        command -v "$tool" >/dev/null || PATH=$PATH:/usr/local/cuda/bin command -v "$tool" >/dev/null ||
            { echo "gpu_check: $tool is missing" >&2; return 1; }
    done
    arch=${TORCH_CUDA_ARCH_LIST:-$(report architecture)} || return 1
    mkdir -p site/pama_ops
    for entry in "$root"/pama_ops/*; do
        case $entry in *.so | *__pycache__) ;; *) ln -sfn "$entry" site/pama_ops/ ;; esac
    done
    $limit cmake -S "$root" -B cmake -G Ninja "-DPython3_EXECUTABLE=$python" \
        "-DPAMA_OUTPUT=$build/site/pama_ops" -DPAMA_CUDA=1 "-DTORCH_CUDA_ARCH_LIST=$arch" &&
        $limit cmake --build cmake &&
        "$python" -m pama_ops info
}

stage_test() {
    status=0
    # Without the plug-ins that this pytest has and .venv's has not, or lacks (hence addopts); and
    # only files with tests of a GPU, as others want packages that need not be here.
    # shellcheck disable=SC2046
    PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $limit "$python" -m pytest -c "$root/pyproject.toml" \
        --rootdir "$root" -o addopts=--strict-markers -m cuda -q -rsf --durations=8 \
        --continue-on-collection-errors -p no:cacheprovider "--junitxml=$OUT/tests.xml" \
        "$root/tests/test_cuda.py" $(grep -lw backend "$root"/tests/test_*.py) || status=$?
    report tests "$OUT/tests.xml"
    return "$status"
}

stage_sanitize() {
    tool=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    if [ ! -x "$tool" ]; then
        echo "SKIPPED: compute-sanitizer is not on the PATH"
        report sanitizer none skipped
        return 0
    fi
    status=0
    # Without torch's cache of memory, within which memcheck and initcheck see no bounds.
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for kind in memcheck racecheck initcheck synccheck; do
        say "compute-sanitizer --tool $kind"
        result=0
        timeout -k 10 125 "$tool" --tool "$kind" --error-exitcode 9 --print-limit 10 \
            "$python" "$root/scripts/gpu_sanitize.py" >"sanitize_$kind.log" 2>&1 || result=$?
        tail -n 12 "sanitize_$kind.log"
        cat sanitize_*.log >"$OUT/sanitize.log"
        report sanitizer "$kind" "$result"
        [ "$result" -eq 0 ] || status=1
    done
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
    return "$status"
}

stage_bench() {
    status=0
    # The headline first: it is what a run that is cut short should have.
    for name in headline gradients tokens solvers; do
        say "benchmarks/gpu/$name.py"
        timeout -k 10 130 "$python" "$root/benchmarks/gpu/$name.py" \
            --results "$OUT/gpu_$name.json" || status=1
    done
    return "$status"
}

[ $# -gt 0 ] || set -- build test sanitize bench
for stage in "$@"; do
    case $stage in
    build | test | sanitize | bench) ;;
    *) echo "gpu_check: unknown stage $stage; stages: build test sanitize bench" >&2; exit 2 ;;
    esac
done
report begin || exit 1
for stage in "$@"; do
    say "$stage"
    begin=$(date +%s)
    "stage_$stage"
    status=$?
    finish "$stage" "$status" $(($(date +%s) - begin))
    if [ "$stage" = build ] && [ "$status" -ne 0 ]; then break; fi
done
report table
exit "$failed"
