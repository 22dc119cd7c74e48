"""Training steps of the same network in PyTorch f32 and by `lyhord train`, in
tokens per second, interleaved.

    cargo build --release
    python benches/peers/training.py [--rounds 3] [--steps 12]

Both train all layers on the training reports in steps of about 2,000 tokens
with AdamW; PyTorch pads batches of texts of like length, as it must.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from peers import ROOT, THREADS, batches, network


def pytorch(model, rows, steps):
    import torch

    model.requires_grad_(True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    tokens = 0
    groups = []
    # Texts of like length together, as many as fit into 2,000 tokens.
    order = sorted(rows, key=len)
    while order:
        longest = len(order[-1])
        group = order[-max(1, 2000 // longest) :]
        groups.append(group)
        del order[-len(group) :]
    groups = groups[:: max(1, len(groups) // steps)][:steps]
    start = time.perf_counter()
    for group in groups:
        for _, ids, mask in batches(group, len(group)):
            optimizer.zero_grad()
            logits = model(torch.from_numpy(ids), torch.from_numpy(mask))
            torch.nn.functional.softplus(logits).sum().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            tokens += int(mask.sum())
    return tokens / (time.perf_counter() - start)


def lyhord(steps, base):
    with tempfile.TemporaryDirectory() as folder:
        command = [
            ROOT / "target/release/lyhord", "train",
            "--taxonomy", "fixtures/taxonomy/taxonomy.toml",
            "--data", "fixtures/reports.train.jsonl", "--dev", "fixtures/reports.dev.jsonl",
            "--base", base, "--output", folder,
        ]
        log = pathlib.Path(folder) / "training/log.jsonl"
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not log.exists() or log.read_text().count("\n") < steps:
            assert child.poll() is None, "lyhord train ended"
            time.sleep(0.5)
        child.kill()
        child.wait()
        return json.loads(log.read_text().splitlines()[-1])["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/lyhord-small-sv")
    parser.add_argument("--base", default="models/base/multilingual-e5-small-sv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()

    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(THREADS)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    with open(ROOT / "fixtures/reports.train.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    rows = [[0, *tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in texts]
    rows = [row for row in rows if len(row) <= 510]
    model = network(args.model)
    theirs, ours = [], []
    for number in range(args.rounds):
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
        theirs.append(pytorch(model, rows, args.steps))
        ours.append(lyhord(args.steps, args.base))
    a, b = statistics.median(theirs), statistics.median(ours)
    print(f"PyTorch f32 {a:,.0f} tokens/s, Lyhörd {b:,.0f} tokens/s, ratio {b / a:.2f}")


if __name__ == "__main__":
    main()
