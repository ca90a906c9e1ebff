"""How much `import deep_sparse_coding` adds to `import torch`: fresh processes, interleaved, medians.

Run: python benchmarks/import_time.py [--runs 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

_ASKED = 0.15
_CODE = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import deep_sparse_coding
print(middle - start, time.perf_counter() - middle)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    # The first run compiles and keeps the bytecode, as an ordinary installation does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    torch_seconds, own_seconds = [], []
    for _ in range(runs + 1):
        command = [sys.executable, "-c", _CODE]
        words = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
        torch_seconds.append(float(words[0]))
        own_seconds.append(float(words[1]))
    # The first run fills the caches.
    torch_median, own_median = statistics.median(torch_seconds[1:]), statistics.median(own_seconds[1:])
    print(f"import torch                       {torch_median:.3f} s (median of {runs})")
    print(f"import deep_sparse_coding on top   {own_median:.3f} s (asked for: at most {_ASKED} s)")


if __name__ == "__main__":
    main()
