"""What every test process needs."""

from __future__ import annotations

import signal

# A shell that starts pytest in the background makes it ignore SIGINT, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
