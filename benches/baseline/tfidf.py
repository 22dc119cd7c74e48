#!/usr/bin/env python3
"""The baseline to beat: TF-IDF and logistic regression, one model a head.

Trained on fixtures/reports.train.jsonl, measured on fixtures/reports.dev.jsonl or other
labelled files (--dev reports.other-writers.dev reports.more-writers.dev):

    python benches/baseline/tfidf.py               # reports only
    python benches/baseline/tfidf.py --snippets    # reports and snippets
    python benches/baseline/tfidf.py --snippets --other-writers --share 0.25    # a quarter of all
    python benches/baseline/tfidf.py --search      # choose C by cross-validation on the training texts

Risk areas are scored at threshold 0.5 and with a threshold per label fitted on dev. The
latter is cross-fitted: dev report i is in fold i % 5, and its thresholds come from the other
four folds; the pooled predictions are scored once.

C is 30 for all heads: the best of 0.3, 1, 3, 10 and 30 in three-fold cross-validation on the
training reports, where mean average precision is 0.676, 0.710, 0.725, 0.733 and 0.736.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, cohen_kappa_score, f1_score
from sklearn.model_selection import KFold
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import MultiLabelBinarizer

FIXTURES = Path(__file__).resolve().parent.parent.parent / "fixtures"
FOLDS = 5
HEADS = ("report_type", "sector", "severity", "harm", "danger")
SEARCHED = (0.3, 1.0, 3.0, 10.0, 30.0)


def read(name):
    with open(FIXTURES / f"{name}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def vectorizer():
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True, dtype=np.float32)
    return FeatureUnion([("words", words), ("characters", characters)])


def vectorize(train_texts, test_texts):
    """Features of both, fitted on the first."""
    union = vectorizer()
    matrices = union.fit_transform(train_texts).tocsr(), union.transform(test_texts).tocsr()
    for matrix in matrices:
        matrix.sum_duplicates()  # Worker processes get them read-only and could not sort them.
    return matrices


def fit(features, target, c):
    # Liblinear's dual solver is the quick one for few rows and many columns; it is binary.
    if len(set(target)) > 2:
        return fit_one_against_rest(features, target, c)
    return LogisticRegression(C=c, solver="liblinear", dual=True, max_iter=300, random_state=0).fit(features, target)


class OneAgainstRest:
    def __init__(self, classes, models):
        self.classes, self.models = classes, models

    def predict(self, features):
        scores = np.column_stack([model.predict_proba(features)[:, 1] for model in self.models])
        return self.classes[scores.argmax(1)]


def fit_one_against_rest(features, target, c):
    classes = np.unique(target)
    return OneAgainstRest(classes, [fit(features, target == value, c) for value in classes])


def head_rows(rows, head):
    """Rows on which `head` is known, and its values there (snippets have no report type)."""
    known = [index for index, row in enumerate(rows) if row[head] is not None]
    return known, np.array([rows[index][head] for index in known])


def predict_areas(features, areas, test_features, c, jobs):
    """[test rows, areas] probabilities."""
    one = delayed(lambda target: fit(features, target, c).predict_proba(test_features)[:, 1])
    return np.column_stack(Parallel(n_jobs=jobs)(one(column) for column in areas.T))


def best_thresholds(truth, probabilities):
    """The threshold of each label with the highest F1; ties go to the one nearest to 0.5."""
    grid = np.arange(0.02, 0.981, 0.01)
    chosen = []
    for label in range(truth.shape[1]):
        scores = [f1_score(truth[:, label], probabilities[:, label] >= t, zero_division=0) for t in grid]
        best = np.flatnonzero(np.isclose(scores, max(scores)))
        chosen.append(grid[best[np.abs(grid[best] - 0.5).argmin()]])
    return np.array(chosen)


def cross_fitted(truth, probabilities):
    fold = np.arange(len(truth)) % FOLDS
    predicted = np.zeros_like(truth)
    for held_out in range(FOLDS):
        thresholds = best_thresholds(truth[fold != held_out], probabilities[fold != held_out])
        predicted[fold == held_out] = probabilities[fold == held_out] >= thresholds
    return predicted


def f1(truth, predicted, average):
    return float(f1_score(truth, predicted, average=average, zero_division=0))


def evaluate(train, dev, c, jobs):
    """Figures by file of dev reports, of models that are fitted once."""
    rows = [row for rows in dev.values() for row in rows]
    features, dev_features = vectorize([row["text"] for row in train], [row["text"] for row in rows])
    binarizer = MultiLabelBinarizer()
    areas = binarizer.fit_transform([row["risk_areas"] for row in train])
    truth = binarizer.transform([row["risk_areas"] for row in rows])
    probabilities = predict_areas(features, areas, dev_features, c["areas"], jobs)

    def one_head(head):
        known, values = head_rows(train, head)
        model = fit(features[known], values, c["heads"])
        return model.predict_proba(dev_features)[:, 1] if head == "danger" else model.predict(dev_features)

    predicted = dict(zip(HEADS, Parallel(n_jobs=jobs)(delayed(one_head)(head) for head in HEADS)))
    expected = {head: np.array([row[head] for row in rows]) for head in HEADS}
    measured, start = {}, 0
    for name, part in dev.items():
        of_file = slice(start, start + len(part))
        start += len(part)
        heads = {head: (expected[head][of_file], predicted[head][of_file]) for head in HEADS}
        measured[name] = measure(truth[of_file], probabilities[of_file], heads, binarizer.classes_.tolist())
    return features.shape[1], measured


def measure(truth, probabilities, heads, areas):
    tuned = cross_fitted(truth, probabilities)
    half = probabilities >= 0.5
    figures = {
        "macro_f1_at_half": f1(truth, half, "macro"),
        "micro_f1_at_half": f1(truth, half, "micro"),
        "macro_f1": f1(truth, tuned, "macro"),
        "micro_f1": f1(truth, tuned, "micro"),
        "mean_average_precision": float(average_precision_score(truth, probabilities, average="macro")),
        "severity_quadratic_weighted_kappa": float(cohen_kappa_score(*heads["severity"], weights="quadratic")),
    }
    for head in ("severity", "report_type", "sector", "harm"):
        expected, predicted = heads[head]
        figures[f"{head}_accuracy"] = float((expected == predicted).mean())
    figures["danger_average_precision"] = float(average_precision_score(*heads["danger"]))
    per_label = dict(zip(areas, f1_score(truth, tuned, average=None, zero_division=0).tolist()))
    return {"figures": figures, "f1_by_area": per_label}


def search(reports, extra, jobs):
    """Mean average precision of the areas, and accuracy over the heads, by C, on the training texts alone."""
    areas = MultiLabelBinarizer().fit_transform([row["risk_areas"] for row in reports + extra])
    totals = {c: np.zeros(2) for c in SEARCHED}
    folds = list(KFold(3, shuffle=True, random_state=0).split(reports))
    for inside, outside in folds:
        rows = [reports[index] for index in inside] + extra
        label_rows = np.concatenate([inside, np.arange(len(reports), len(areas))])
        features, held_out = vectorize([row["text"] for row in rows], [reports[index]["text"] for index in outside])
        for c in SEARCHED:
            probabilities = predict_areas(features, areas[label_rows], held_out, c, jobs)
            correct = []
            for head in ("severity", "report_type", "sector", "harm"):
                known, values = head_rows(rows, head)
                predicted = fit(features[known], values, c).predict(held_out)
                correct.append(np.mean([reports[index][head] for index in outside] == predicted))
            totals[c] += average_precision_score(areas[outside], probabilities), np.mean(correct)
    return {c: (total / len(folds)).tolist() for c, total in totals.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snippets", action="store_true", help="train on snippets.train.jsonl as well")
    parser.add_argument("--other-writers", action="store_true", help="and on the three other files of reports to train on")
    parser.add_argument("--dev", nargs="+", default=["reports.dev"], metavar="NAME", help="files in fixtures to measure on (default reports.dev)")
    parser.add_argument("--share", type=float, default=1.0, help="train on this share of each file, evenly spread: for a learning curve")
    parser.add_argument("--c-areas", type=float, default=30.0, help="inverse regularisation of the risk areas (default %(default)s)")
    parser.add_argument("--c-heads", type=float, default=30.0, help="the same for the other heads (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument("--search", action="store_true", help="print cross-validated figures by C instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()

    started = time.monotonic()
    reports = read("reports.train")
    if arguments.other_writers:
        for writers in ("other-writers", "more-writers", "voices"):
            reports += read(f"reports.{writers}.train")
    extra = read("snippets.train") if arguments.snippets else []
    step = round(1 / arguments.share)
    reports, extra = reports[::step], extra[::step]
    if arguments.search:
        by_c = search(reports, extra, arguments.jobs)
        if arguments.json:
            print(json.dumps(by_c))
        else:
            for c, (mean_ap, accuracy) in by_c.items():
                print(f"C {c:5}: mAP {mean_ap:.4f}, mean accuracy of severity, type, sector, harm {accuracy:.4f}")
        return

    chosen = {"areas": arguments.c_areas, "heads": arguments.c_heads}
    dev = {name: read(name) for name in arguments.dev}
    features, measured = evaluate(reports + extra, dev, chosen, arguments.jobs)
    seconds = round(time.monotonic() - started, 1)
    if arguments.json:
        trained_on = {"reports": len(reports), "snippets": len(extra)}
        print(json.dumps({"trained_on": trained_on, "c": chosen, "features": features, "dev": measured, "seconds": seconds}))
        return
    print(f"{len(reports)} reports and {len(extra)} snippets, {features} features, {seconds} s")
    for name, result in measured.items():
        print(f"\n{name}")
        for figure, value in result["figures"].items():
            print(f"{figure:36} {value:.3f}")
        print("\nF1 by risk area, cross-fitted thresholds")
        for area, value in result["f1_by_area"].items():
            print(f"{area:36} {value:.3f}")


if __name__ == "__main__":
    main()
