"""What notices loops, and what ends them with an answer.

    python examples/bench_rescue.py --part detector     # docs/results/rescue_detector.json
    python examples/bench_rescue.py --part bed          # docs/results/rescue_bed.json
    python examples/bench_rescue.py --part stories      # docs/results/rescue_stories.json
    python examples/bench_rescue.py --part detector --quick

- detector: alarms on real texts that do not loop, recall on planted loops, ROC, cost (`rescue/detector.py`,
  `protocols/detector.yaml`).
- bed: a home-trained reasoner, quantized, and every way of dealing with what goes wrong (`rescue/bed.py`).
- stories: the same with SmolLM2-135M, taught by `rescue/story_bed.yaml`.

Stopped runs go on where they were. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.protocol import ROOT

BEDS = {"bed": "rescue", "stories": "rescue_stories"}
"""Parts that are a bed, and their protocols."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["detector", *BEDS], required=True)
    parser.add_argument("--tier", choices=["quick", "session", "full"], default="session")
    parser.add_argument("--quick", action="store_const", const="quick", dest="tier", help="the same as --tier quick")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the folder with gsm8k/, …")
    given = parser.parse_args()
    os.chdir(ROOT)
    if given.part in BEDS:
        importlib.import_module("examples.rescue.bed").main(given.tier, BEDS[given.part])
    else:
        importlib.import_module("examples.rescue.detector").main(given.tier, given.data)


if __name__ == "__main__":
    main()
