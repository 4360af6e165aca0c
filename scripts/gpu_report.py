"""What a run of scripts/gpu_check.py found: pytest's reports, and a table of it all."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

SHOWN = 20  # failures in the table


def tests(paths: list[str]) -> dict[str, object]:
    """Counts, and the names of what failed and why things were skipped, from pytest's reports.

    Where pytest wrote none, from the lines that scripts/gpu_pytest.py wrote as tests ended.
    """
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    failed, skipped, missing = [], {}, []
    for path in paths:
        try:
            suites = ElementTree.parse(path).getroot().iter("testsuite")
        except (OSError, ElementTree.ParseError):  # ended before, or while, it was written
            missing.append(Path(path).name)
            lines = Path(path).with_suffix(".lines")
            outcomes: dict[str, str] = {}
            for line in lines.read_text().splitlines() if lines.exists() else []:
                outcome, _, name = line.split(" ", 2)
                outcomes[name] = "failed" if outcomes.get(name) == "failed" else outcome
            counts["tests"] += len(outcomes)
            for name, outcome in outcomes.items():
                counts["failures"] += outcome == "failed"
                counts["skipped"] += outcome == "skipped"
                if outcome == "failed":
                    failed.append(name)
            continue
        for suite in suites:
            for name in counts:
                counts[name] += int(suite.get(name, 0))
            for case in suite.iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    failed.append(f"{case.get('classname')}::{case.get('name')}")
                skip = case.find("skipped")
                if skip is not None:
                    reason = skip.get("message", "")
                    skipped[reason] = skipped.get(reason, 0) + 1
    found = {**counts, "failed": failed, "reasons of skips": skipped}
    return {**found, "pytest wrote no": missing} if missing else found


def in_words(status: str) -> str:
    """How a step ended: its exit status, or what it was kept from."""
    if status == "0":
        return "ok"
    return f"FAILED ({status})" if status.lstrip("-").isdigit() else status


def table(record: dict) -> None:
    """The run on one page."""
    print("\n== results ==")
    for name, value in record["where"].items():
        print(f"{name:<14}{value}")
    for name, step in record["steps"].items():
        print(f"{name:<28}{in_words(step['status']):<20}{step['seconds']} s")
    for name, found in record.get("tests", {}).items():
        counts = {k: v for k, v in found.items() if not isinstance(v, (list, dict))}
        print(f"{name:<14}{counts}")
        failed = found.get("failed", [])
        for test in failed[:SHOWN]:
            print(f"{'':<14}FAILED {test}")
        if len(failed) > SHOWN:
            print(f"{'':<14}FAILED {len(failed) - SHOWN} more")
        for reason, count in found.get("reasons of skips", {}).items():
            print(f"{'':<14}skipped {count}: {reason}")
        if "pytest wrote no" in found:
            print(f"{'':<14}pytest wrote no {', '.join(found['pytest wrote no'])}")
