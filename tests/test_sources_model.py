"""MODEL as typed: what loads, what is refused, and in which words."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

from deploypruner.errors import InputError, RecipeError
from deploypruner.sources.model import LoadedModel, check_finite, fingerprint, load_model
from deploypruner.sources.soundness import check_dense, check_runs, to_cpu_float32

pytestmark = pytest.mark.slow

_NUMBERS = itertools.count()

FACTORY = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))

def half():
    torch.manual_seed(5)
    return nn.Linear(3, 2).half()
def trained():
    model = net()
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(0.5)
    return model
def new_head():
    model = trained()
    model[3] = nn.Linear(4 * 36, 2)
    return model
def nan():
    layer = nn.Linear(3, 2)
    layer.weight.data[0, :2] = float("nan")
    return layer
def broken(): raise ValueError("no checkpoint on disk")
def number(): return 7
constant = 7

class Nested:
    @staticmethod
    def net(): return nn.Linear(3, 2)
"""


class RunsOnLoad:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """Name of a fresh module in the working folder."""
    name = f"user_nets_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    return name


def export(module: nn.Module, *inputs: Tensor, path: str = "net.pt2", **options: object) -> str:
    torch.export.save(torch.export.export(module, inputs, **options), path)
    return path


def run(loaded: LoadedModel) -> Tensor:
    module = loaded.module.module() if isinstance(loaded.module, torch.export.ExportedProgram) else loaded.module
    with torch.no_grad():
        return module(*loaded.example_inputs)


def test_an_exported_program_loads_with_its_own_example_inputs(net: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    loaded = load_model(export(net, x))
    assert torch.equal(loaded.example_inputs[0], x)
    assert loaded.name == "net"
    torch.testing.assert_close(run(loaded), net(x))


def test_a_program_and_its_module_have_the_same_fingerprint(net: nn.Module) -> None:
    assert load_model(export(net, torch.randn(1, 3, 8, 8))).sha256 == fingerprint(net)


def test_a_shape_that_contradicts_the_program_is_refused(net: nn.Module) -> None:
    path = export(net, torch.randn(1, 3, 8, 8))
    with pytest.raises(InputError, match=r"says \[1, 3, 9, 9\], but 'net.pt2' was exported for \[1, 3, 8, 8\]"):
        load_model(path, input_shapes=((1, 3, 9, 9),))


def test_a_dynamic_batch_takes_any_batch(net: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=16)
    path = export(net, torch.randn(2, 3, 8, 8), dynamic_shapes=({0: batch},))
    loaded = load_model(path, input_shapes=((5, 3, 8, 8),))
    assert run(loaded).shape == (5, 2)


def test_a_program_exported_in_training_mode_is_refused(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"exported in training mode[\s\S]*model\.eval\(\)"):
        load_model(export(net.train(), torch.randn(2, 3, 8, 8)))


def test_a_program_in_half_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"exported in bfloat16 \('weight'\)"):
        load_model(export(nn.Linear(3, 2).bfloat16().eval(), torch.randn(1, 3).bfloat16()))


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.pt2"])
def test_a_missing_an_empty_and_a_damaged_file_are_told_apart(name: str) -> None:
    with pytest.raises(InputError, match=f"no model file '{name}'"):
        load_model(name)
    Path(name).touch()
    with pytest.raises(InputError, match=rf"'{name}' is empty \(0 bytes\)"):
        load_model(name)
    Path(name).write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=f"'{name}' is truncated or corrupt"):
        load_model(name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("trust", [True, False])
def test_a_file_cut_anywhere_is_never_our_bug(net: nn.Module, *, zipped: bool, trust: bool) -> None:
    torch.save(net.state_dict(), "whole.pt", _use_new_zipfile_serialization=zipped)
    whole = Path("whole.pt").read_bytes()
    for end in range(1, len(whole) - 1, len(whole) // 25):
        Path("cut.pt").write_bytes(whole[:end])
        with pytest.raises(InputError, match="truncated or corrupt"):
            load_model("cut.pt", trust_pickle=trust)


def test_a_program_cut_short_is_corrupt_even_where_an_inner_archive_is_whole(net: nn.Module) -> None:
    whole = Path(export(net, torch.randn(1, 3, 8, 8))).read_bytes()
    for end in range(1, len(whole) - 1, len(whole) // 25):
        Path("cut.pt2").write_bytes(whole[:end])
        with pytest.raises(InputError, match="truncated or corrupt"):
            load_model("cut.pt2")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_needs_trust(net: nn.Module, *, zipped: bool) -> None:
    torch.save(net, "net.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"torch\.nn\.modules\.container\.Sequential[\s\S]*--trust-pickle"):
        load_model("net.pt")
    loaded = load_model("net.pt", trust_pickle=True, input_shapes=((1, 3, 8, 8),))
    assert loaded.sha256 == fingerprint(net)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_does_not_run_without_trust(tmp_path: Path, *, zipped: bool) -> None:
    proof = tmp_path / "proof"
    torch.save(RunsOnLoad(proof), "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="unpickling can run any code"):
        load_model("evil.pt")
    if find_spec("torchvision") is not None:
        with pytest.raises(InputError, match="unpickling can run any code"):
            load_model("torchvision:resnet18", weights=Path("evil.pt"))
    assert not proof.exists()


def test_code_in_a_plain_pickle_never_runs(tmp_path: Path) -> None:
    Path("plain.pt").write_bytes(b"cos\nsystem\n(S'touch proof'\ntR.")
    for trust in (False, True):
        with pytest.raises(InputError, match=r"plain pickle, not written by torch\.save"):
            load_model("plain.pt", trust_pickle=trust)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("trust", [True, False])
def test_a_state_dict_given_as_model_asks_for_the_class(net: nn.Module, *, trust: bool) -> None:
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, "weights.pt")
    with pytest.raises(InputError, match=r"is a state dict[\s\S]*package\.module:factory --weights weights\.pt"):
        load_model("weights.pt", trust_pickle=trust)


def test_other_formats_are_named() -> None:
    torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)).save("scripted.pt")
    torch.save([1, 2], "list.pt")
    export(nn.Linear(3, 2).eval(), torch.randn(1, 3), path="program.pt2")
    Path("program.pt2").rename("program.pt")
    Path("net.onnx").touch()
    for source, said in {
        "scripted.pt": "'scripted.pt' is a TorchScript archive",
        "list.pt": "'list.pt' holds a list, not a model",
        "program.pt": r"a torch\.export program[\s\S]*rename it to \.pt2",
        "net.onnx": "needs the PyTorch model it came from",
        "weights.safetensors": "weights without the model",
        "resnet18": r"no kind of model[\s\S]*timm:NAME",
    }.items():
        with pytest.raises(InputError, match=said):
            load_model(source)


def test_a_factory_is_called_and_the_same_on_every_load(factory: str) -> None:
    first, again = (load_model(f"{factory}:net", input_shapes=((2, 3, 8, 8),)) for _ in range(2))
    assert first.sha256 == again.sha256
    assert torch.equal(first.example_inputs[0], again.example_inputs[0])
    assert not first.module.training
    assert (first.name, run(first).shape) == ("net", (2, 2))
    assert load_model(f"{factory}:Nested.net", data_shapes={"": (3,)}).example_inputs[0].shape == (1, 3)
    (named,) = load_model(f"{factory}:Nested.net", data_shapes={"more": (9,), "input": (3,)}).example_inputs
    assert named.shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("net", "the weights of '{}:net' are random, and so are its answers: --weights FILE gives trained ones"),
        (
            "new_head",
            "3.weight of '{}:new_head' are random, and so are its answers: --weights FILE gives trained ones",
        ),
        ("trained", None),
    ],
)
def test_weights_that_a_factory_leaves_random_are_said(factory: str, name: str, said: str | None) -> None:
    loaded = load_model(f"{factory}:{name}", input_shapes=((1, 3, 8, 8),))
    assert loaded.remarks == (() if said is None else (said.format(factory),))


def test_weights_from_a_file_are_not_called_random(factory: str, net: nn.Module) -> None:
    torch.save(net.state_dict(), "w.pt")
    assert load_model(f"{factory}:net", weights=Path("w.pt"), input_shapes=((1, 3, 8, 8),)).remarks == ()


def test_loading_leaves_the_random_state_alone(factory: str) -> None:
    before = torch.get_rng_state()
    load_model(f"{factory}:net", input_shapes=((1, 3, 8, 8),))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("nett", r"has no 'nett'[\s\S]*did you mean 'net'\?"),
        ("broken", "raised ValueError: no checkpoint on disk"),
        ("number", r"returned a int, not a torch\.nn\.Module"),
        ("constant", "is a int, not a function or class"),
        ("nan", "'weight' holds 2 NaN or Inf among its 6 elements"),
        ("net", r"input shape of '\w+:net' is not known[\s\S]*--input-shape 1,3,224,224"),
    ],
)
def test_what_a_factory_does_wrong_is_said(factory: str, attribute: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(f"{factory}:{attribute}")


def test_a_module_that_cannot_be_imported_is_told_from_one_that_lacks_another(factory: str) -> None:
    with pytest.raises(InputError, match=rf"no module '{factory}s'[\s\S]*did you mean '{factory}'\?"):
        load_model(f"{factory}s:net")
    with pytest.raises(InputError, match=rf"is a path[\s\S]*write {factory}:net"):
        load_model(f"./{factory}.py:net")
    elsewhere = Path.cwd().parent / "elsewhere" / "mine.py"
    with pytest.raises(InputError, match=rf"is a path[\s\S]*run it in '{elsewhere.parent}' and write mine:net"):
        load_model("../elsewhere/mine.py:net")
    with pytest.raises(InputError, match=rf"run it in '{elsewhere.parent}' and write mine:net"):
        load_model(f"{elsewhere}:net")
    Path(f"{factory}_lacking.py").write_text("import no_such_dependency\n")
    with pytest.raises(InputError, match="ModuleNotFoundError: No module named 'no_such_dependency'"):
        load_model(f"{factory}_lacking:net")


def test_half_precision_is_converted_with_a_remark(factory: str) -> None:
    loaded = load_model(f"{factory}:half", input_shapes=((1, 3),))
    assert loaded.remarks == ("weights converted from float16 to float32",)
    assert loaded.module.weight.dtype == torch.float32


def test_conversion_copies_and_a_fitting_module_is_left_as_it_is() -> None:
    half, full = nn.Linear(3, 2).half(), nn.Linear(3, 2)
    assert to_cpu_float32(half)[0].weight.dtype == torch.float32
    assert half.weight.dtype == torch.float16
    assert to_cpu_float32(full) == (full, ())


def test_a_wrong_input_shape_names_the_layer(factory: str) -> None:
    with pytest.raises(InputError, match=r"shape \[1, 3, 9, 9\] float32: layer '3' \(Linear\): mat1 and mat2"):
        load_model(f"{factory}:net", input_shapes=((1, 3, 9, 9),))
    with pytest.raises(RecipeError, match="--input-shape 1,0,9 has a dimension below 1"):
        load_model(f"{factory}:net", input_shapes=((1, 0, 9),))


def test_the_trial_run_changes_nothing(net: nn.Module) -> None:
    before = fingerprint(net.train())
    check_runs(net, (torch.randn(2, 3, 8, 8),))
    assert fingerprint(net) == before
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 1}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_load_wrapped_and_prefixed(factory: str, net: nn.Module, wrap: object, prefix: str) -> None:
    torch.save(wrap({prefix + name: value for name, value in net.state_dict().items()}), "w.pt")
    loaded = load_model(f"{factory}:net", weights=Path("w.pt"), input_shapes=((1, 3, 8, 8),))
    assert loaded.sha256 == fingerprint(net)


def test_safetensors_load_and_damaged_ones_are_named(factory: str, net: nn.Module) -> None:
    save_file(net.state_dict(), "w.safetensors")
    assert load_model(
        f"{factory}:net", weights=Path("w.safetensors"), input_shapes=((1, 3, 8, 8),)
    ).sha256 == fingerprint(net)
    Path("w.safetensors").write_bytes(Path("w.safetensors").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"weights 'w\.safetensors' are truncated or corrupt"):
        load_model(f"{factory}:net", weights=Path("w.safetensors"))
    with pytest.raises(InputError, match=r"no weights file 'gone\.safetensors'"):
        load_model(f"{factory}:net", weights=Path("gone.safetensors"))


def test_weights_that_do_not_fit_are_counted_and_named(factory: str, net: nn.Module) -> None:
    state = net.state_dict()
    del state["0.weight"], state["0.bias"], state["1.num_batches_tracked"]
    state |= {"head.weight": torch.zeros(1), "3.weight": torch.zeros(10, 144)}
    torch.save(state, "w.pt")
    with pytest.raises(InputError) as caught:
        load_model(f"{factory}:net", weights=Path("w.pt"))
    assert caught.value.message == (
        "weights 'w.pt' do not fit the model: 2 missing (first '0.weight'), 1 unexpected (first 'head.weight'), "
        "1 of another shape (first '3.weight': file [10, 144], model [2, 144])"
    )


def test_weights_have_no_place_in_a_file_that_carries_its_own() -> None:
    Path("net.pt2").write_bytes(b"not looked at")
    with pytest.raises(InputError, match=r"'net\.pt2' carries its own weights"):
        load_model("net.pt2", weights=Path("w.pt"))


def test_the_fingerprint_sees_every_bit_and_no_order() -> None:
    layer = nn.Linear(3, 2)
    before = fingerprint(layer)
    turned = nn.Module()
    turned.bias, turned.weight = layer.bias, layer.weight
    assert fingerprint(turned) == before
    layer.weight.data[0, 0] += 1e-6 + layer.weight.data[0, 0].abs() * 1e-6
    assert fingerprint(layer) != before
    assert fingerprint(layer.double()) != fingerprint(layer.float())


def test_infinite_attention_masks_are_allowed_and_infinite_statistics_are_not() -> None:
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(norm)
    norm.running_var[1] = float("inf")
    with pytest.raises(InputError, match="'running_var' holds 1 NaN or Inf among its 2"):
        check_finite(norm)


def test_masked_sparse_lazy_and_scripted_models_are_refused() -> None:
    masked = prune.l1_unstructured(nn.Linear(4, 4), "weight", amount=0.5)
    sparse = nn.Linear(4, 4)
    sparse.weight = nn.Parameter(sparse.weight.detach().to_sparse())
    for module, said in (
        (masked, r"'weight_orig' is masked by torch\.nn\.utils\.prune"),
        (sparse, "'weight' is not a plain dense tensor but sparse"),
        (nn.LazyLinear(3), "'weight' has no shape yet"),
        (torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)), "TorchScript"),
        (nn.Sequential(torch.ao.nn.quantized.Linear(3, 2)), r"layer '0' \(Linear\) is already quantized"),
    ):
        with pytest.raises(InputError, match=said):
            check_dense(module)
