from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploypruner.errors import BudgetError, InputError, RecipeError
from deploypruner.recipe import (
    DERIVED,
    MeasureRecipe,
    PruneRecipe,
    QuantizeRecipe,
    Recipe,
    RecoverRecipe,
    resolved_toml,
)
from deploypruner.recipe.constraints import Constraints, LayerConstraint
from deploypruner.recipe.data import DataSettings
from deploypruner.recipe.origins import Origins
from deploypruner.recipe.reading import origins_of, overlay, read_recipe


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(text)
    return path


def test_without_a_file_and_options_everything_is_the_default():
    assert read_recipe(None, {"prune": {"macs": None}, "seed": None}) == Recipe()


def test_an_option_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    path = recipe_file(tmp_path, "seed = 3\n[prune]\nmacs = 0.7\nstep = 4\n")
    recipe = read_recipe(path, {"prune": {"macs": 0.25, "step": None}})
    assert (recipe.prune.macs, recipe.prune.step, recipe.seed, recipe.recover.epochs) == (0.25, 4, 3, "auto")


def test_a_resolved_recipe_reads_back_as_itself(tmp_path):
    recipe = overlay(
        Recipe(),
        {
            "model": {"source": "net.pt2", "input_shapes": ((1, 3, 8, 8), (1, 5)), "weights": Path("w.safetensors")},
            "data": {"source": "images", "settings": {"mean": (0.1, 0.2, 0.3), "size": (8, 9)}},
            "prune": {
                "criterion": "magnitude",
                "parameters": {"p": 2.0},
                "exclude": ("head",),
                "min_width": 16,
                "heads": "both",
                "layers": ({"match": "layer1.*", "max_cut": 0.5, "step": 4}, {"match": "stem", "exclude": True}),
            },
            "recover": {"settings": {"lr": 0.5}},
            "measure": {"runtimes": ("openvino",)},
        },
    )
    assert read_recipe(recipe_file(tmp_path, resolved_toml(recipe)), {}) == recipe


def test_a_resolved_recipe_leaves_out_what_another_key_decides():
    text = resolved_toml(Recipe(recover=RecoverRecipe(epochs=7)))
    assert text.count("epochs") == 2  # one of [learn], one of [recover]
    assert text.count("seed") == 2  # of the build, and of the data split


@pytest.mark.parametrize("name", DERIVED)
def test_a_key_that_another_one_decides_is_refused_by_naming_that_one(tmp_path, name):
    section, _, key = name.rpartition(".")
    path = recipe_file(tmp_path, f"[{section}]\n{key} = 1\n")
    *tables, decides = DERIVED[name].split(".")
    decided_by = f"[{tables[0]}] {decides}" if tables else decides
    with pytest.raises(RecipeError, match=re.escape(f"r.toml:2: [{section}] {key} follows from {decided_by}")):
        read_recipe(path, {})


def test_limits_of_single_layers_are_tables_of_the_recipe(tmp_path):
    text = (
        '[prune]\nexclude = ["head"]\n[[prune.layers]]\nmatch = "a.*"\nmin_width = 8\n[[prune.layers]]\nmatch = "b"\n'
    )
    constraints = read_recipe(recipe_file(tmp_path, text), {"prune": {"exclude": None}}).prune.constraints
    assert constraints == Constraints(
        exclude=("head",), layers=(LayerConstraint("a.*", min_width=8), LayerConstraint("b"))
    )


def test_overlay_keeps_what_is_not_said():
    base = Recipe(prune=PruneRecipe(macs=0.3, step=2), data=Recipe().data)
    assert overlay(base, {"prune": {"macs": None, "step": 4}}).prune == PruneRecipe(macs=0.3, step=4)


@pytest.mark.parametrize(
    ("text", "line", "said", "hint"),
    [
        ("[prune]\nmac = 0.5\n", "2", "there is no key 'mac' under [prune]", "did you mean 'macs'?"),
        ("\n# a comment\n[prun]\nmacs = 0.5\n", "3", "there is no key 'prun'", "did you mean 'prune'?"),
        ("seed = 1\nmacs = 0.5\n", "2", "there is no key 'macs'", "that is [prune] macs"),
        ("[recover]\nlr = 0.5\n", "2", "there is no key 'lr' under [recover]", "that is [recover.settings] lr"),
        (
            *("[prune]\nlearn-epochs = 1\n", "2", "there is no key 'learn-epochs' under [prune]"),
            "that is [learn] epochs",
        ),
        (
            *("[recover.settings]\n\nlearning = 1\n", "3", "there is no key 'learning' under [recover.settings]"),
            "known:",
        ),
        ("data = 'images'\n", "1", "data is a section, got 'images'", "write [data] and source under it"),
        ("[prune]\nmacs = 'half'\n", "2", "[prune] macs must be a number, got 'half'", "macs: fraction of the dense"),
        ("[prune]\nmacs = '0.5'\n", "2", "[prune] macs must be a number, got '0.5'", "without quotes: 0.5"),
        ("[prune]\nmacs = 1.7\n", "2", "[prune] macs is the fraction of multiply-adds", "0.5 keeps half"),
        ("prune.step = 0\n", "1", "[prune] step must be at least 1, got 0", "8, 16 or 32"),
        ("prune = {samples = 0}\n", "1", "[prune] samples must be at least 1, got 0", "512"),
        ("[prune.parameters]\np = nan\n", "2", "[prune.parameters] p must be finite, got nan", "leave it out"),
        (
            *("[prune]\npatterns = 'channel'\n", "2", "[prune] patterns must be a list of strings, got 'channel'"),
            "write it as a list: ['channel']",
        ),
        ("seed = true\n", "1", "seed must be a whole number, got true", "seed: number that decides"),
        ("target = 'gpu'\n", "1", "no target called 'gpu'", "did you mean 'cpu'?"),
        ("[prune]\ncriterion = 'tailor'\n", "2", "no [prune] criterion called 'tailor'", "'taylor'"),
        (
            *("[measure]\nruntimes = [\n 'openvino',\n 'onnxruntme'\n]\n", "2"),
            *("[measure] runtimes: no runtime called 'onnxruntme'", "did you mean 'onnxruntime'?"),
        ),
        (
            *(
                "[[prune.layers]]\nmatch = 'a'\nmaxcut = 0.5\n",
                "3",
                "there is no key 'maxcut' under [[prune.layers]]",
            ),
            "did you mean 'max_cut'?",
        ),
        ("[prune]\nlayers = ['a']\n", "2", "prune.layers is a list of tables, got 'a'", "write [[prune.layers]]"),
        (
            *("[[prune.layers]]\nmatch = 'a'\nmin_width = 8\n\n[[prune.layers]]\nmatch = 'b'\nmin_width = 0\n", "7"),
            *("[[prune.layers]] min_width must be at least 1 channel, got 0", "16 keeps"),
        ),
        (
            *("[prune]\nstep = 4\n[[prune.layers]]\nmax_cut = 0.5\n", "3", "[[prune.layers]] match is missing"),
            "add match to this table",
        ),
        ("[[prune.layers]]\nmatch = ''\n", "2", "[[prune.layers]] match is empty", "name a module"),
        (
            *("[prune]\nheads = 'colums'\n", "2", "[prune] heads must be auto, columns, heads or both, got 'colums'"),
            "did you mean 'columns'?",
        ),
        (
            *("[quantize]\nmethod = 'max'\n", "2", "[quantize] method must be auto, minmax, percentile or entropy"),
            "did you mean 'minmax'?",
        ),
        ("[recover]\nepochs = 1.5\n", "2", "[recover] epochs must be a whole number or auto, got 1.5", "auto:"),
        (
            "[recover]\nreconstruct = 'yes'\n",
            "2",
            "[recover] reconstruct must be true, false or auto",
            "reconstruct:",
        ),
        (
            "[recover.settings]\nlr = -1\n",
            "2",
            "[recover.settings] lr must be > 0, got -1.0",
            "set it to a value > 0",
        ),
        (
            *("[learn]\nschedule = 'gradual'\n[learn.settings]\nschedule = 'cosin'\n", "4"),
            *("[learn.settings] schedule must be cosine or step, got 'cosin'", "did you mean 'cosine'?"),
        ),
        (
            *(
                "[learn.settings]\noptimizer = 'adamm'\n",
                "2",
                "no [learn.settings] optimizer called 'adamm' in torch",
            ),
            "did you mean 'adam'?",
        ),
        (
            *("[recover.settings.optimizer_parameters]\nmomentun = 3\n", "1"),
            *("[recover.settings] optimizer_parameters: optimizer 'sgd' has no parameter 'momentun'", "'momentum'?"),
        ),
        ("[data.settings]\nmean = [0.1, inf]\n", "2", "[data.settings] mean must be finite, got 0.1,inf", "is usual"),
        (
            "[data.settings]\nsize = 9\n",
            "2",
            "[data.settings] size must be a list of 2 whole numbers, got 9",
            "size:",
        ),
        ("[data.settings]\nval_fraction = 1\n", "2", "[data.settings] val_fraction must lie between 0 and 1", "0.1"),
        ("[model]\ndynamic = ['2,x']\n", "2", "[model] dynamic 2,x: 'x' is no axis", "[model] dynamic 2,3 opens"),
    ],
)
def test_a_mistake_in_a_recipe_is_named_with_file_line_and_key(tmp_path, text, line, said, hint):
    path = recipe_file(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, {"prune": {"macs": None}, "data": {"source": None}})
    assert caught.value.message.startswith(f"{path}:{line}: {said}")
    assert hint in caught.value.hint
    assert "--" not in str(caught.value)


BOTH = "can be met by removing channels or by zeros, and"


@pytest.mark.parametrize(
    ("text", "over", "said"),
    [
        (
            *("[prune]\nmacs = 0.5\n\nlatency = '5ms'\n", {}),
            ":2 and 4: a budget is one number, got [prune] macs and [prune] latency",
        ),
        (
            *("[prune]\npatterns = ['channel', 'auto']\n", {"latency": "5ms"}),
            f":2: --latency 5ms {BOTH} [prune] patterns says both",
        ),
        (
            *("[prune]\nlatency = '5ms'\n", {"patterns": ("channel", "auto")}),
            f":2: [prune] latency 5ms {BOTH} --pattern says both",
        ),
        ("[prune]\nstep = 4\n", {"step": 0}, "--step must be at least 1, got 0"),
        ("[prune]\nstep = 8\n", {"macs": 1.7}, "--macs is the fraction of multiply-adds"),
    ],
)
def test_values_that_do_not_go_together_are_named_by_where_each_was_set(tmp_path, text, over, said):
    path = recipe_file(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, {"prune": over})
    assert caught.value.message.startswith(f"{path}{said}" if said.startswith(":") else said)


def test_a_budget_of_the_command_line_takes_the_place_of_the_files(tmp_path):
    prune = read_recipe(recipe_file(tmp_path, "[prune]\nlatency = '5ms'\n"), {"prune": {"macs": 0.3}}).prune
    assert (prune.macs, prune.latency) == (0.3, None)


def test_what_is_found_out_later_speaks_of_the_file_too(tmp_path):
    origins = origins_of(
        recipe_file(tmp_path, "[prune]\nstep = 8\nscope = 'uniform'\n"), {"prune": {"latency": "5ms"}}
    )
    with pytest.raises(BudgetError) as caught, origins.speaking():
        raise BudgetError(
            "--latency 5ms is out of reach with --step 8",
            hint="a smaller --step; `deploypruner plan --step 8`, --macs",
        )
    assert caught.value.message == f"{origins.path}:2: --latency 5ms is out of reach with [prune] step 8"
    assert caught.value.hint == "a smaller [prune] step; `deploypruner plan --step 8`, --macs"
    with pytest.raises(InputError, match=r"^no file 'photos'"), origins.speaking():
        raise InputError("no file 'photos'", hint="check --data")


LINES = """\
# [prune]
seed = 3

data.settings."val_fraction" = 0.2
[model]
source = '''
[prune]
step = 1'''
[prune]
exclude = [  # [prune]
    "step = 2",
]
step = 4
[prune.parameters]
p = 2.0
[[prune.layers]]
match = "a"

[[prune.layers]]
match = "b"
step = 5
[recover.settings]
lr = 1
[learn]
settings = {lr = 2, ema = 0.5}
"""


def test_every_key_is_found_on_its_own_line(tmp_path):
    origins = Origins(recipe_file(tmp_path, LINES))
    for line, *place in (
        (2, "seed"),
        (4, "data", "settings", "val_fraction"),
        (6, "model", "source"),
        (9, "prune"),
        (10, "prune", "exclude"),
        (13, "prune", "step"),
        (15, "prune", "parameters", "p"),
        (17, "prune", "layers", 0, "match"),
        (19, "prune", "layers", 1),
        (21, "prune", "layers", 1, "step"),
        (19, "prune", "layers", 1, "cut"),  # not there: of what it belongs to
        (23, "recover", "settings", "lr"),
        (25, "learn", "settings", "ema"),
    ):
        assert origins.at(tuple(place)) == f"{origins.path}:{line}: ", place
    assert LINES.splitlines()[20] == "step = 5"  # the lines above are counted from 1


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no recipe file '.*nothing\.toml'"):
        read_recipe(tmp_path / "nothing.toml", {})
    with pytest.raises(InputError, match=r"recipe '.*' is a folder, not a file"):
        read_recipe(tmp_path, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_recipe(binary, {})
    for text, said in (
        ("seed = 1\nprune = = 3\n", r"r\.toml:2: the recipe is not TOML: invalid value at column 9"),
        ("[prune]\nexclude = [\n'a',\n", r"r\.toml:3: the recipe is not TOML: invalid value at the end"),
        ("[prune]\nstep = 1\nstep = 2\n", r"r\.toml:3: the recipe is not TOML: cannot overwrite a value at column 9"),
    ):
        with pytest.raises(InputError, match=said + r"[\s\S]*hint: see recipe\.toml of any build"):
            read_recipe(recipe_file(tmp_path, text), {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PruneRecipe(step=0), "--step must be at least 1, got 0"),
        (lambda: PruneRecipe(samples=0), "prune.samples must be at least 1, got 0"),
        (lambda: PruneRecipe(batch_size=-2), "prune.batch_size must be at least 1, got -2"),
        (lambda: RecoverRecipe(epochs=-1), "--epochs must be at least 0, got -1"),
        (lambda: RecoverRecipe(batchnorm_batches=0), "recover.batchnorm_batches must be at least 1, got 0"),
        (lambda: QuantizeRecipe(samples=0), "quantize.samples must be at least 1, got 0"),
        (lambda: MeasureRecipe(threads=0), "--threads must be at least 1 and at most 1024, got 0"),
        (lambda: MeasureRecipe(seconds=0.5), "--seconds must be at least 1, got 0.5"),
        (lambda: MeasureRecipe(seconds=float("nan")), "--seconds must be at least 1, got nan"),
        (lambda: MeasureRecipe(samples=0), "measure.samples must be at least 1, got 0"),
        (lambda: DataSettings(val_fraction=1.0), "val_fraction must lie between 0 and 1"),
    ],
)
def test_a_number_out_of_range_is_named(make, said):
    with pytest.raises(RecipeError, match=said):
        make()
