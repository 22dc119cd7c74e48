"""How far careful readers agree with the labels and with each other.

    python benches/baseline/readers.py

Two language models read the 510 reports of fixtures/reports.dev.jsonl without
their labels and gave report type and severity by the labelling guide alone
(fixtures/readers.dev.csv); two read who wrote 124 reports and how
(fixtures/registers*.csv). What they reach is what a model that has learnt the
guide perfectly could reach; the labels' own habits can be learnt beyond that.
"""

import csv
import json
import pathlib
from collections import Counter

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "fixtures"


def table(name):
    with open(FIXTURES / name, encoding="utf-8", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def accuracy(pairs):
    return sum(a == b for a, b in pairs) / len(pairs)


def kappa(pairs, distance):
    """Cohen's kappa with the distance between two values as weight."""
    observed = sum(distance(a, b) for a, b in pairs) / len(pairs)
    left, right = (Counter(side) for side in zip(*pairs))
    chance = sum(n * m * distance(a, b) for a, n in left.items() for b, m in right.items()) / len(pairs) ** 2
    return 1 - observed / chance


def main():
    with open(FIXTURES / "reports.dev.jsonl", encoding="utf-8") as file:
        labels = {report["id"]: report for report in map(json.loads, file)}
    read = table("readers.dev.csv")
    sides = {"labels": lambda i: (labels[i]["report_type"], labels[i]["severity"])}
    for reader in "12":
        sides[f"reader {reader}"] = lambda i, r=reader: (read[i][f"report_type_{r}"], int(read[i][f"severity_{r}"]))
    print(f"{len(read)} reports: report type (accuracy), severity (quadratic weighted kappa)")
    names = list(sides)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            pairs = [(sides[one](i), sides[other](i)) for i in read]
            types = accuracy([(a[0], b[0]) for a, b in pairs])
            severity = kappa([(a[1], b[1]) for a, b in pairs], lambda a, b: (a - b) ** 2)
            print(f"  {one} and {other}: {types:.3f}, {severity:.3f}")
    both = Counter()
    for i in read:
        types = {sides[name](i)[0] for name in names[1:]}
        if len(types) == 1 and labels[i]["report_type"] not in types:
            both[labels[i]["report_type"], types.pop()] += 1
    print("  both readers against the label:", ", ".join(f"{a} read as {b} {n}" for (a, b), n in both.most_common(4)))
    first, second = table("registers.dev.csv"), table("registers.second-reader.csv")
    for column in ("writer", "style"):
        pairs = [(first[i][column], row[column]) for i, row in second.items()]
        print(f"{len(pairs)} reports: {column}, kappa {kappa(pairs, lambda a, b: a != b):.2f}")


if __name__ == "__main__":
    main()
