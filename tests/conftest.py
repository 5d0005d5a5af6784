"""What every test process needs."""

from __future__ import annotations

import signal

from deploypruner.graph.labels.tracing import Tracing

# A shell that starts pytest in the background makes it ignore SIGINT, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A rule that fails freezes what it touches; here it must not go unseen.
Tracing.strict = True
