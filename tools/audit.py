"""Compares the pinned versions with the known vulnerabilities of their packages, by pip-audit.

pip-audit itself ends well where the package index has no list of vulnerabilities, and many mirrors have none.
This says how many packages were compared.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINS = Path(__file__).parents[1] / "constraints.txt"


def verdict(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """What an audit has found, in lines, and the exit code that belongs to it.

    Args:
        packages: As pip-audit's JSON has them: a `skip_reason`, or `vulns`.

    >>> verdict([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}])
    (['a 1: CVE-1, mended in 2', '1 of 1 packages were compared; 1 vulnerability is known'], 1)
    >>> verdict([{"name": "a", "skip_reason": "not found"}])
    (['the package index has no list of vulnerabilities: none of 1 packages was compared'], 0)
    """
    compared = [package for package in packages if "skip_reason" not in package]
    if not compared:
        lacking = "the package index has no list of vulnerabilities"
        return [f"{lacking}: none of {len(packages)} packages was compared"], 0
    lines = []
    for package in compared:
        for found in package["vulns"]:
            mended = ", ".join(found["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {found['id']}, mended in {mended}")
    known = "1 vulnerability is" if len(lines) == 1 else f"{len(lines)} vulnerabilities are"
    lines.append(f"{len(compared)} of {len(packages)} packages were compared; {known} known")
    return lines, int(len(lines) > 1)


def main() -> int:
    """Audit `constraints.txt`; the exit code."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(PINS), "--no-deps", "--disable-pip"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    if not done.stdout.strip():
        print(done.stderr.strip(), file=sys.stderr)
        return 2
    lines, code = verdict(json.loads(done.stdout)["dependencies"])
    print(*lines, sep="\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
