from __future__ import annotations

from pathlib import Path

import pytest

from deploypruner.errors import InputError, RecipeError
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
from deploypruner.recipe.reading import overlay, read_recipe


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
    with pytest.raises(RecipeError, match=f"'{name}' follows from '{DERIVED[name]}'"):
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
    ("text", "said", "hint"),
    [
        ("[prune]\nmac = 0.5\n", "no key 'prune.mac'", "did you mean 'macs'?"),
        ("[prun]\nmacs = 0.5\n", "no key 'prun'", "did you mean 'prune'?"),
        ("[recover.settings]\nlearning = 1\n", "no key 'recover.settings.learning'", "known:"),
        ("data = 'images'\n", "data is a section, got 'images'", r"write \[data\]"),
        ("[prune]\nmacs = 'half'\n", "prune.macs = 'half'", "correct the value of prune.macs"),
        (
            "[[prune.layers]]\nmatch = 'a'\nmaxcut = 0.5\n",
            "no key 'prune.layers.0.maxcut'",
            "did you mean 'max_cut'?",
        ),
        ("[prune]\nlayers = ['a']\n", "prune.layers is a list of tables, got 'a'", r"write \[\[prune.layers\]\]"),
        (
            "[[prune.layers]]\nmatch = 'a'\nmin_width = 0\n",
            "--min-width must be at least 1 channel, got 0",
            "16 keeps",
        ),
        ("[prune]\nheads = 'colums'\n", "prune.heads = 'colums'", "correct the value of prune.heads"),
        ("[quantize]\nmethod = 'max'\n", "quantize.method = 'max'", "correct the value of quantize.method"),
        ("[recover]\nepochs = 1.5\n", "recover.epochs = 1.5", "correct the value"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(tmp_path, text, said, hint):
    with pytest.raises(RecipeError, match=said) as caught:
        read_recipe(recipe_file(tmp_path, text), {"prune": {"macs": None}, "data": {"source": None}})
    caught.match(hint)


def test_a_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no recipe file '.*nothing\.toml'"):
        read_recipe(tmp_path / "nothing.toml", {})
    with pytest.raises(InputError, match=r"recipe '.*' is a folder, not a file"):
        read_recipe(tmp_path, {})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_recipe(binary, {})
    with pytest.raises(InputError, match=r"is not TOML: [\s\S]*hint: see recipe\.toml of any build"):
        read_recipe(recipe_file(tmp_path, "prune = = 3\n"), {})


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
