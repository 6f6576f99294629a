"""Draw docs/figure.svg, the README's figure, from a finished run folder: refusal against KL for every arm.

python benchmarks/figure.py runs/demo
"""

import argparse
from pathlib import Path

import vl_convert

from resect.artifacts import write_text
from resect.report.charts import tradeoff
from resect.report.read import read_run
from resect.report.svg import configure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figure.svg"))
    options = parser.parse_args()
    chart = tradeoff(read_run(options.run), wide=True)
    if chart is None:
        raise SystemExit("The run has no curves to draw.")
    spec = configure(chart).to_dict()
    spec["config"]["background"] = "#ffffff"
    write_text(options.out, vl_convert.vegalite_to_svg(spec) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
