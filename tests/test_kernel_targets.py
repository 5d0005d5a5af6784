"""Which of the kernels' targets a processor runs, from the flags that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploypruner import target
from deploypruner.doctor.device import instruction_sets
from deploypruner.sparse import library
from deploypruner.sparse.library import no_fast_target, not_running, target_for
from deploypruner.target import detect, processor_flags
from tests.builds import run_cli

SOURCES = Path(__file__).parents[1] / "kernels" / "src"
needs_library = pytest.mark.skipif(not library.is_built(), reason="the package was built without its sparse kernels")

# As Linux shows them: of a Raspberry Pi 4 (Cortex-A72), a Raspberry Pi 5 (Cortex-A76) and a Neoverse V1.
PI_4 = "fp asimd evtstrm crc32 cpuid"
PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
V1 = f"{PI_5} sha3 sm3 sm4 sha512 sve asimdfhm dit uscat ilrcpc flagm svei8mm svebf16 i8mm bf16 dgh rng"
ARM = {PI_4: None, PI_5: "neon_dot", V1: "neon_i8mm"}


def test_every_target_of_the_sources_says_what_it_needs_in_the_order_of_its_place() -> None:
    found = []
    for file in SOURCES.glob("target_*.cpp"):
        place, processor = re.findall(r"^// Target (\d+) on (\w+):", file.read_text(), re.MULTILINE)[0]
        found.append((processor != "x86_64", int(place), file.stem.removeprefix("target_")))
    assert [name for _, _, name in sorted(found) if name != "scalar"] == list(library._NEEDS)


@needs_library
def test_the_library_runs_what_the_flags_of_this_processor_say() -> None:
    here = {name for name in library.known_targets() if set(library._NEEDS.get(name, ())) <= processor_flags()}
    assert here == set(library.targets())
    assert target_for(processor_flags()) in (library.targets()[-1], None)


@pytest.mark.parametrize("features", ARM)
def test_an_arm_processor_has_the_target_of_its_products(monkeypatch: pytest.MonkeyPatch, features: str) -> None:
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"Features": features})
    assert target_for(processor_flags()) == ARM[features]
    found = instruction_sets(detect().int8_features, sorted(processor_flags()))
    assert found.facts["kernels"] == ARM[features]
    assert (
        found.says
        == {
            PI_4: "none that int8 or bf16 kernels use",
            PI_5: "asimddp; the sparse kernels have neon_dot for it",
            V1: "asimddp, i8mm; the sparse kernels have neon_i8mm for it",
        }[features]
    )


@pytest.mark.parametrize("features", ARM)
def test_targets_are_listed_with_what_an_arm_processor_lacks(monkeypatch: pytest.MonkeyPatch, features: str) -> None:
    known = ("scalar", "neon_dot", "neon_i8mm")
    here = tuple(name for name in known if set(library._NEEDS.get(name, ())) <= set(features.split()))
    monkeypatch.delenv("DEPLOYPRUNER_TARGET", raising=False)
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"Features": features})
    monkeypatch.setattr(library, "known_targets", lambda: known)
    monkeypatch.setattr(library, "targets", lambda: here)
    said = run_cli("list", "targets").out
    assert {
        PI_4: "scalar; not neon_dot (lacks asimddp), neon_i8mm (lacks asimddp i8mm)\n",
        PI_5: "scalar, neon_dot; not neon_i8mm (lacks i8mm)\n",
        V1: "sparse kernels: neon_i8mm, the fastest of those that this CPU runs: scalar, neon_dot, neon_i8mm\n",
    }[features] in said
    assert no_fast_target() == "this CPU has no dot product (asimddp) for the kernels"


def test_what_does_not_run_though_its_flags_are_there_lacks_its_instructions() -> None:
    assert not_running(("scalar", "avx2"), ("scalar",), ("avx2", "fma")) == "avx2 (lacks its instructions)"
    assert not_running(("scalar", "avx2"), ("scalar", "avx2"), ()) == ""
