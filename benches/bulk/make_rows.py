"""Writes CSV exports of any length to measure bulk runs with.

    python benches/bulk/make_rows.py 100000 > target/rows.csv
    python benches/bulk/make_rows.py 1000000 --short > target/rows.csv

Each row is a dev report with a number in front, so that no two texts are the
same; with --short a sentence of 6 to 9 words. Standard library only; the same
rows at every run.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

SHORT = [
    "Ingen kom förrän {} minuter efter larmet.",
    "Brukare {} fick fel dos i går kväll.",
    "Hon ramlade i rum {} och ingen såg det.",
    "Hemtjänsten uteblev, ärende {}, tredje gången i veckan.",
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("rows", type=int)
parser.add_argument("--short", action="store_true")
arguments = parser.parse_args()

reports = Path(__file__).parents[2] / "fixtures" / "reports.dev.jsonl"
texts = [json.loads(line)["text"] for line in reports.open(encoding="utf-8")]

sys.stdout.reconfigure(encoding="utf-8", newline="")
writer = csv.writer(sys.stdout, delimiter=";")
writer.writerow(["diarienummer", "kommun", "text"])
for row in range(arguments.rows):
    if arguments.short:
        text = SHORT[row % len(SHORT)].format(row)
    else:
        text = f"Ärende {row}. {texts[row % len(texts)]}"
    writer.writerow([f"3.5.1-{row:07}/2026", "Ystad", text])
