"""The recover stage composes re-estimation and fine-tuning the way training saw the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from deploypruner.folder import BuildFolder
from deploypruner.graph import trace
from deploypruner.progress import SilentProgress
from deploypruner.recipe import DataRecipe, Recipe, RecoverRecipe
from deploypruner.recover.batchnorm import reestimate_batchnorm
from deploypruner.recover.settings import FinetuneSettings
from deploypruner.sources.data import as_data
from deploypruner.stages import Build, Given
from deploypruner.stages.recover import reestimate
from tests.nets import make


def test_statistics_are_those_of_the_batches_training_sees():
    images = np.random.default_rng(0).integers(0, 255, (96, 3, 16, 16), dtype=np.uint8)
    data = as_data((images, np.zeros(96, np.int64)))
    net, x = make("residual")
    found = {}
    for augment in (True, False):
        recover = RecoverRecipe(batchnorm_batches=1, settings=FinetuneSettings(augment=augment))
        recipe = Recipe(data=DataRecipe(), recover=recover)
        build = Build(recipe, BuildFolder(Path("unused")), "", Given(), SilentProgress(), data=data)
        module = trace(net, x).module
        assert reestimate(build, module) == 3
        found[augment] = module.state_dict()["stem.1.running_var"]

        expected = trace(net, x).module
        epoch = data.train.epoch(batch_size=64, seed=0, shuffle=True, augment=augment)
        reestimate_batchnorm(expected, epoch, max_batches=1)
        torch.testing.assert_close(found[augment], expected.state_dict()["stem.1.running_var"])
    assert not torch.allclose(found[True], found[False])
