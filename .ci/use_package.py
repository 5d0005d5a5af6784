"""Use an installed package as its user does; `.ci/packages` runs this in a fresh environment.

    python .ci/use_package.py deploypruner-1.2.3-py3-none-any.whl

The name of the wheel says what to expect: the version, and whether the sparse kernels are in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_MODEL = '''
from torch import nn


def net() -> nn.Module:
    """Random weights."""
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
'''


def run(*arguments: str, code: int = 0, folder: Path) -> tuple[str, str]:
    """What a command prints and says, once it ended with `code`."""
    done = subprocess.run(["deploypruner", *arguments], check=False, capture_output=True, text=True, cwd=folder)
    if done.returncode != code:
        said = f"deploypruner {' '.join(arguments)} ended with {done.returncode} instead of {code}"
        sys.exit(f"{said}:\n{done.stdout}{done.stderr}")
    return done.stdout, done.stderr


def main(wheel: str) -> None:
    """Version, doctor, a build, and how zeros are refused."""
    version, native = wheel.split("-")[1], not wheel.endswith("-any.whl")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine.py").write_text(_MODEL)
        assert run("--version", folder=folder)[0] == f"deploypruner {version}\n"
        findings = {one["topic"]: one for one in json.loads(run("doctor", "--json", folder=folder)[0])["findings"]}
        kernels = findings["kernels"]
        assert (kernels["state"] == "fine") is native, kernels
        print(f"doctor: kernels: {kernels['says']}" + ("" if native else f"\n  hint: {kernels['hint']}"))
        settings = ["--input-shape", "1,3,32,32", "--macs", "0.5", "--seconds", "5"]
        table, _ = run("compile", "mine:net", *settings, folder=folder)
        print("\n".join(line for line in table.splitlines() if line.startswith(("result:", "ship:"))))
        manifest = json.loads((folder / "build" / "manifest.json").read_text())
        assert manifest["versions"]["deploypruner"] == version
        # The file has no zeros, and without the kernels it does not come to that.
        _, said = run("sparsify", "build/model.int8.onnx", "--out", "left-out", code=2, folder=folder)
        assert ("without its sparse kernels" in said) is not native, said
        assert "hint: " in said, said
        print(said[said.index("error: ") :].strip())


if __name__ == "__main__":
    main(sys.argv[1])
