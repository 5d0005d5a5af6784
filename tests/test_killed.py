"""A build that is killed, as no handler can, in each stage; what is left goes on, and what was finished is whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploypruner.build.stage import chain
from tests.builds import COMPILE, digests, finished, left_over, workshop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STAGES = [stage.name for stage in chain()]

# Imports once and forks for each run: argv is a file with [stage to die in, where in it, command] for each, and a
# folder. It prints how each ended and the sha256 of the files in the folder then. A run dies while it writes its
# first file of that stage ("half"), or once the stage has written all of them and nothing is marked as finished yet
# ("end"); where the stage is "" it lives.
KILLED = """
import contextlib, json, os, signal, sys
from pathlib import Path
from unittest import mock
import onnx, onnxruntime, openvino, torch._dynamo, torch.export, torch.onnx
import deploypruner.api
from deploypruner.build.folder import BuildFolder
from deploypruner.build.stage import chain
from tests.builds import digests, pretended_timings, run_cli

def die():
    os.kill(os.getpid(), signal.SIGKILL)

@contextlib.contextmanager
def killed_in(name, where):
    stage, writing = next((cls for cls in chain() if cls.name == name), None), BuildFolder.writing
    if stage is None:
        yield
        return
    run = stage.run

    @contextlib.contextmanager
    def half_written(self, name, **options):
        with writing(self, name, **options) as path:
            yield path
            die()

    def dying(self, build):
        with mock.patch.object(BuildFolder, "writing", half_written if where == "half" else writing):
            run(self, build)
        die()

    with mock.patch.object(stage, "run", dying):
        yield

ended = []
for name, where, command in json.load(open(sys.argv[1])):
    child = os.fork()
    if not child:
        with killed_in(name, where), pretended_timings():
            outcome = run_cli(*command)
        print(outcome.err, file=sys.stderr)
        sys.stderr.flush()
        os._exit(outcome.code)
    code, folder = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Path(sys.argv[2])
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    ended.append([code, digests(folder, names)])
print(json.dumps(ended))
"""


def ran(runs: list[tuple[str, str, tuple[str, ...]]], folder: Path) -> tuple[list[int], list[dict[str, str]], str]:
    """Exit code, or -9, and the files' sha256 in `folder` after each run, and all that they said."""
    plan = folder.parent / "runs.json"
    plan.write_text(json.dumps(runs))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(plan), str(folder)]
    done = subprocess.run(command, cwd=workshop(), env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan.unlink()
    codes, files = zip(*json.loads(done.stdout), strict=True)
    return list(codes), list(files), done.stderr


def test_a_build_killed_in_every_stage_and_resumed_each_time_ends_in_the_same_files(tmp_path):
    build = tmp_path / "build"
    command = (*COMPILE, "--out", str(build), "--resume")
    codes, _, said = ran([(name, "half", command) for name in (*STAGES, "")], build)
    assert codes == [*[-signal.SIGKILL] * len(STAGES), 0], said
    assert digests(build) == digests(finished())
    assert left_over(tmp_path) == []
    # The one that died while it loaded the model left no folder, and so no log.
    log = (build / "log.txt").read_text()
    assert log.count(": deploypruner compile") == len(STAGES)
    assert log.count(f"there is nothing to resume in {build}: this build starts at the beginning") == 2


def test_a_finished_build_is_whole_while_its_successor_is_killed_in_every_stage(tmp_path):
    """Which then takes its place; and a third is refused, by name."""
    build = shutil.copytree(finished(), tmp_path / "build")
    other = (*COMPILE, "--macs", "0.75", "--out", str(build))
    again = (*other, "--overwrite", "--resume")
    # In `report` once the new one took its place; before that the whole stage counts.
    anew = STAGES.index("score") + 1  # until there is something to go on with beside the finished build
    commands = [(*other, "--overwrite")] * anew + [again] * (len(STAGES) - 1 - anew)
    killed = [(name, "end", command) for name, command in zip(STAGES, commands, strict=False)]
    codes, files, said = ran([*killed, ("", "", again), ("", "", other)], build)
    assert codes == [*[-signal.SIGKILL] * len(killed), 0, 2], said
    lock, before = ".deploypruner.lock", digests(finished(), [*files[0].keys() - {".deploypruner.lock"}])
    for name, now in zip(STAGES, files[: len(killed)], strict=False):
        assert {file: sha for file, sha in now.items() if file != lock} == before, name
    assert files[-1] == files[-2] != before
    assert json.loads((build / "report.json").read_text())["budget"]["requested"] == 0.75
    assert f"error: {build} holds a finished build, which is kept" in said
    assert f"--out {build}-2` leaves it alone; --overwrite replaces it" in said
    assert left_over(tmp_path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["build"]
