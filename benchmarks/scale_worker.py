"""One network of `benchmarks.scale`: `python -m benchmarks.scale_worker FAMILY SIZE` prints one JSON object."""

from __future__ import annotations

import json
import sys

from benchmarks.scale import worker

if __name__ == "__main__":
    print(json.dumps(worker(sys.argv[1], sys.argv[2])))
