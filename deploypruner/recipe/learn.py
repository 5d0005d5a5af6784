"""How the dense model is trained while its channels are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.errors import RecipeError
from deploypruner.recipe.option import documented, option


@documented
@dataclass(frozen=True)
class LearnSettings:
    """Pace of the schedules that remove channels while training; 0 lets the length of the training decide.

    Raises:
        RecipeError: A value out of its range.

    Source:
        Molchanov et al., arXiv:1906.10771: N channels every 10 to 30 minibatches, momentum 0.9 or none. Its authors'
        code says that momentum "turned to be useless", so the default is none. The default pace is ours.
    """

    every: int = option(
        0,
        "Minibatches from one ranking of the channels to the next. By default there are 30 rankings, over the "
        "first half of the training (iterative) or its first 70 % (gradual).",
    )
    channels: int = option(
        0,
        "Channels that the iterative schedule removes at each ranking; under a budget of time the way is as "
        "long as the channels that one shot removes. By default it is spread evenly over the rankings.",
    )
    momentum: float = option(
        0.0,
        "Share of the earlier scores in each ranking, in [0, 1).",
    )

    def __post_init__(self) -> None:
        for name in ("every", "channels"):
            if getattr(self, name) < 0:
                raise RecipeError(
                    f"learn.pace.{name} must be at least 0, got {getattr(self, name)}",
                    hint="0 chooses a number that fits",
                )
        if not 0 <= self.momentum < 1:
            raise RecipeError(
                f"learn.pace.momentum must be in [0, 1), got {self.momentum:g}", hint="0 is none, 0.9 much"
            )
