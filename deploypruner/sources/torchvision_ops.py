"""The one place that imports torchvision, also where its compiled library does not fit this torch.

PyPI's torchvision is built for CUDA. Beside a CPU torch its library cannot be loaded, and `import torchvision`
stops at the first operator that the library would have declared. Declaring that operator's schema lets the
import finish: models run, and calling the operator itself still fails, as it must.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

from deploypruner.sources.foreign import require

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A declaration lives as long as its Library object.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision, declaring an operator only after an import has failed for the lack of it.

    Raises:
        InputError: torchvision is not installed, or cannot be imported for another reason.
    """
    for _ in _SCHEMAS:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or missing[1] not in _SCHEMAS:
                break
            _declare(missing[1])
        except ImportError:
            break
    return require("torchvision")


def _declare(name: str) -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(_SCHEMAS[name])
    _declared.append(library)
    # Submodules that survived the failed import are not attributes of the package the next import makes.
    for module in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[module]
