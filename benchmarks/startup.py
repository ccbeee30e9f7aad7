"""How long the programs take to start: shipctl beside plain Python, an import of pydantic, and its peers."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import environments
from chains import PEERS, SHIPCTL
from environments import ROOT
from harness import Samples, clean_environment, host, host_line, say, table, write_json

PASS, PYDANTIC = "python -c pass", 'python -c "import pydantic"'
SPEC = ROOT / "specs" / "digits.yaml"
TIMEOUT = 60.0


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    parser.add_argument("--environments", metavar="DIR", type=Path, default=environments.DEFAULT_FOLDER)
    given = parser.parse_args()

    tools, absent = environments.installed(given.environments, [SHIPCTL.name, *(tool.name for tool in PEERS)])
    commands: dict[str, list[str]] = {}
    if SHIPCTL.name in tools:
        ours = tools[SHIPCTL.name]
        commands |= {
            PASS: [ours.program("python"), "-c", "pass"],
            PYDANTIC: [ours.program("python"), "-c", "import pydantic"],
            "shipctl --version": [ours.program("shipctl"), "--version"],
            "shipctl validate specs/digits.yaml": [ours.program("shipctl"), "validate", str(SPEC)],
        }
    for tool in PEERS:
        if tool.name in tools:
            commands[f"{tool.name} --version"] = [tools[tool.name].program(tool.name), "--version"]

    rounds = 5 if given.quick else 20
    samples, machine, facts = Samples(), host_line(), host()
    with tempfile.TemporaryDirectory(prefix="shipctl-bench-") as folder:
        env = clean_environment(Path(folder) / "home")
        for number in range(rounds + 1):
            if number % 5 == 0:
                say(f"round {number} of {rounds}")
            for label, command in commands.items():
                samples.take(label, command, cwd=Path(folder), env=env, timeout=TIMEOUT)
            if number == 0:  # the first one fills the disk's cache and writes bytecode
                samples.rows.clear()

    rows = [row for label in commands if (row := samples.row(label))]
    versions = {name: tool.version for name, tool in tools.items()}
    print(f"{machine}; " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print()
    columns = {
        "pass": samples.row(PASS),
        "pydantic": samples.row(PYDANTIC),
        "dvc": samples.row("dvc --version"),
    }
    print(table(rows, columns))
    notes = [f"{name} was not measured: {why}" for name, why in {**absent, **samples.missing}.items()]
    if notes:
        print("\n" + "\n".join(notes))
    body = {"host": facts, "versions": versions, "figures": [row.record() for row in rows], "notes": notes}
    write_json(given.json, body)


if __name__ == "__main__":
    main()
