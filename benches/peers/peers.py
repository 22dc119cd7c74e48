"""Runs other engines on a Lyhörd model's own weights, beside Lyhörd.

    pip install -r benches/peers/requirements.txt
    cargo bench --no-run --bench peer
    python benches/peers/peers.py [--rounds 5] [--length 160] [--alone] [--markdown FILE]

Every engine gets the same texts. The peers get token ids and give the encoder's
logits; Lyhörd starts from the text and ends with the assessment, so that its
figures include tokenising, the lexical path and calibration. Before the rounds
each peer is tried in several configurations on a part of the texts and keeps the
fastest. Rounds are interleaved; the table holds medians.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

THREADS = 2
# Before numpy and torch start their threads.
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]


def texts_of(path, count, length, tokenizer):
    """Texts spread evenly over the file, or of about `length` tokens."""
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    ids = [[0, *tokenizer.encode(text, add_special_tokens=False).ids, 2] for text in texts]
    rows = [(text, row) for text, row in zip(texts, ids) if len(row) <= 510]
    if length:
        # Words are taken from one text after another until the length is right.
        stream = [token for _, row in rows for token in row[1:-1]]
        cut = [stream[i : i + length] for i in range(0, len(stream) - length, length)]
        joined = [tokenizer.decode(part) for part in cut]
        rows = [(t, [0, *tokenizer.encode(t, add_special_tokens=False).ids, 2]) for t in joined]
    step = max(1, len(rows) // count)
    return rows[::step][:count]


def network(bundle):
    """The model's network in PyTorch: ids and mask `[B, T]` to logits `[B, L]`."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((bundle / "config.json").read_text())["encoder"]
    import tomllib

    taxonomy = tomllib.loads((bundle / "taxonomy.toml").read_text())
    weights = {k: v for k, v in load_file(bundle / "model.safetensors").items() if not k.startswith("lexical.")}
    weights = {k: v.float() for k, v in weights.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    width = config["hidden_size"]

    # Each label of a multi-label head has a query of its own; the logits of any
    # other head share one. Ordinal and binary heads have one logit fewer.
    served, query = [], 0
    for name, labels in taxonomy.items():
        if not isinstance(labels, dict) or name == "heads":
            continue
        kind = taxonomy.get("heads", {}).get(name, {}).get("kind")
        if kind is None:
            kind = "ordinal" if all(k.isdigit() for k in labels) else "binary" if len(labels) == 1 else "single_label"
        if kind == "multi_label":
            served += range(query, query + len(labels))
            query += len(labels)
        else:
            count = {"ordinal": len(labels) - 1, "binary": 1}.get(kind, len(labels))
            served += [query] * count
            query += 1
    assert len(served) == weights["heads.bias"].numel(), "the taxonomy does not fit the heads"
    assert query == weights["label_attention.queries"].shape[0]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterDict({k.replace(".", "/"): torch.nn.Parameter(v, False) for k, v in weights.items()})
            self.register_buffer("served", torch.tensor(served))
            self.fused = True

        def linear(self, name, x):
            return torch.nn.functional.linear(x, self.w[f"{name}/weight"], self.w[f"{name}/bias"])

        def norm(self, name, x):
            return torch.nn.functional.layer_norm(x, (width,), self.w[f"{name}/weight"], self.w[f"{name}/bias"], eps)

        def forward(self, ids, mask):
            functional = torch.nn.functional
            batch, tokens = ids.shape
            positions = torch.arange(512)[:tokens] if not torch.onnx.is_in_onnx_export() else torch.cumsum(torch.ones_like(ids[0]), 0) - 1
            x = functional.embedding(ids, self.w["embeddings/word_embeddings/weight"])
            x = x + functional.embedding(positions, self.w["embeddings/position_embeddings/weight"])
            x = x + self.w["embeddings/token_type_embeddings/weight"][0]
            x = self.norm("embeddings/LayerNorm", x)
            away = (1.0 - mask[:, None, None, :].float()) * -1e9
            for layer in range(config["num_hidden_layers"]):
                part = f"encoder/layer/{layer}/"
                split = lambda y: y.view(batch, tokens, heads, width // heads).transpose(1, 2)
                q = split(self.linear(part + "attention/self/query", x))
                k = split(self.linear(part + "attention/self/key", x))
                v = split(self.linear(part + "attention/self/value", x))
                if self.fused:
                    context = functional.scaled_dot_product_attention(q, k, v, away.to(q.dtype))
                else:
                    scores = q @ k.transpose(-1, -2) / (width // heads) ** 0.5 + away
                    context = scores.softmax(-1) @ v
                context = context.transpose(1, 2).reshape(batch, tokens, width)
                x = self.norm(part + "attention/output/LayerNorm", x + self.linear(part + "attention/output/dense", context))
                inner = functional.gelu(self.linear(part + "intermediate/dense", x))
                x = self.norm(part + "output/LayerNorm", x + self.linear(part + "output/dense", inner))
            x = x.float()
            # The heads see content tokens only: neither specials nor padding.
            length = mask.sum(1, keepdim=True)
            content = (positions[None, :] > 0) & (positions[None, :] < length - 1)
            z = torch.tanh(self.linear("label_attention/projection", x))
            scores = z @ self.w["label_attention/queries"].T
            scores = scores + (1.0 - content[:, :, None].float()) * -1e9
            contexts = scores.softmax(1).transpose(1, 2) @ x
            local = (contexts[:, self.served] * self.w["heads/context/weight"]).sum(-1)
            inside = content[:, :, None].float()
            mean = (x * inside).sum(1) / inside.sum(1)
            largest = (x + (inside - 1.0) * 1e9).max(1).values
            pooled = torch.cat([mean, largest], 1)
            return local + functional.linear(pooled, self.w["heads/pooled/weight"], self.w["heads/bias"])

    return Network().eval()


def batches(rows, size, multiple=1):
    """Length-sorted padded batches: (places, ids, mask)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        longest = max(len(rows[i]) for i in places)
        longest = -(-longest // multiple) * multiple
        ids = np.full((len(places), min(longest, 510)), 1, np.int64)
        mask = np.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, : len(rows[place])] = rows[place]
            mask[row, : len(rows[place])] = 1
        yield places, ids, mask


def collected(rows, outputs):
    logits = [None] * len(rows)
    for places, values in outputs:
        for place, value in zip(places, values):
            logits[place] = value
    return np.array(logits)


class Torch:
    def __init__(self, model, dtype):
        self.model, self.dtype, self.configs = model, dtype, [4, 8, 16, 32]

    def run(self, rows, size):
        import torch

        outputs = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bf16"):
            for places, ids, mask in batches(rows, size):
                outputs.append((places, self.model(torch.from_numpy(ids), torch.from_numpy(mask)).float().numpy()))
        return collected(rows, outputs)


class OnnxRuntime:
    def __init__(self, path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        single = onnxruntime.SessionOptions()
        single.intra_op_num_threads = 1
        self.single = onnxruntime.InferenceSession(str(path), single, providers=["CPUExecutionProvider"])
        self.configs = [("batch", 1), ("batch", 4), ("batch", 8), ("batch", 16), ("two", 1), ("two", 4), ("two", 8)]

    def run(self, rows, config):
        how, size = config
        work = list(batches(rows, size))
        if how == "batch":
            return collected(rows, [(p, self.session.run(None, {"ids": i, "mask": m})[0]) for p, i, m in work])
        # Two threads that share the work, each with its own single-threaded calls.
        from concurrent.futures import ThreadPoolExecutor

        one = lambda item: (item[0], self.single.run(None, {"ids": item[1], "mask": item[2]})[0])
        with ThreadPoolExecutor(THREADS) as pool:
            return collected(rows, list(pool.map(one, work[::-1])))


class OpenVino:
    def __init__(self, path, precision):
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": THREADS,
        }
        model = core.read_model(str(path))
        self.compiled = {n: core.compile_model(model, "CPU", {**settings, "NUM_STREAMS": n}) for n in (1, 2)}
        self.configs = [(s, b, m) for s in (2, 1) for b, m in ((1, 1), (1, 16), (4, 8), (8, 8), (16, 8))]

    def run(self, rows, config):
        import openvino

        streams, size, multiple = config
        outputs = []
        queue = openvino.AsyncInferQueue(self.compiled[streams], 2 * streams)
        queue.set_callback(lambda request, places: outputs.append((places, request.get_output_tensor(0).data.copy())))
        for places, ids, mask in list(batches(rows, size, multiple))[::-1]:
            queue.start_async({"ids": ids, "mask": mask}, places)
        queue.wait_all()
        return collected(rows, outputs)


class Process:
    """A Lyhörd process that does a round for each line it is sent."""

    def __init__(self, binary, *arguments):
        self.child = subprocess.Popen(
            [binary, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.child.stdout.readline() == "ready\n", "the Lyhörd process did not start"

    def seconds(self):
        self.child.stdin.write("round\n")
        self.child.stdin.flush()
        return float(self.child.stdout.readline())


def export(model, bundle, folder):
    """ONNX files: as exported, fused for ONNX Runtime, and quantised to int8."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    plain, fused, int8 = (folder / name for name in ("plain.onnx", "fused.onnx", "int8.onnx"))
    model.fused = False
    ids = torch.ones(2, 7, dtype=torch.long)
    torch.onnx.export(
        model,
        (ids, ids),
        str(plain),
        input_names=["ids", "mask"],
        output_names=["logits"],
        dynamic_axes={"ids": {0: "B", 1: "T"}, "mask": {0: "B", 1: "T"}, "logits": {0: "B"}},
        opset_version=17,
        dynamo=False,
    )
    model.fused = True
    options = FusionOptions("bert")
    config = json.loads((bundle / "config.json").read_text())["encoder"]
    heads, width = config["num_attention_heads"], config["hidden_size"]
    optimized = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=width, optimization_options=options, opt_level=1)
    optimized.save_model_to_file(str(fused))
    print("fused operators:", optimized.get_fused_operator_statistics(), file=sys.stderr)
    quantize_dynamic(
        str(fused),
        str(int8),
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Attention"],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return plain, fused, int8


def cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.min((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def timed(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/lyhord-small-sv")
    parser.add_argument("--texts", type=pathlib.Path, default=ROOT / "fixtures/reports.dev.jsonl")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--length", type=int, help="cut texts to this many tokens, instead of mixed lengths")
    parser.add_argument("--alone", action="store_true", help="the time for one text alone: all threads share it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--binary", type=pathlib.Path, help="the built bench `peer` (default: found in target)")
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the table to this file")
    parser.add_argument("--without", default="", help="peers to leave out, by commas")
    args = parser.parse_args()

    import torch
    from tokenizers import Tokenizer

    torch.set_num_threads(THREADS)
    binary = args.binary or max((ROOT / "target/release/deps").glob("peer-*[0-9a-f]"), key=lambda p: p.stat().st_mtime)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    chosen = texts_of(args.texts, args.count, args.length, tokenizer)
    if args.alone:
        chosen = chosen[:1]
    rows = [row for _, row in chosen]
    tokens = sum(map(len, rows))
    # One text takes so little time that a round is the median of several.
    repeats = 21 if args.alone else 1
    measured = lambda once: statistics.median(once() for _ in range(repeats))
    print(f"{len(rows)} texts, {tokens} tokens", file=sys.stderr)

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        texts = folder / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text, _ in chosen))
        model = network(args.model)
        plain, fused, int8 = export(model, args.model, folder)
        peers = {
            "PyTorch f32": lambda: Torch(model, "f32"),
            "PyTorch bf16": lambda: Torch(model, "bf16"),
            "ONNX Runtime f32": lambda: OnnxRuntime(fused),
            "ONNX Runtime int8": lambda: OnnxRuntime(int8),
            "OpenVINO f32": lambda: OpenVino(plain, "f32"),
            "OpenVINO bf16": lambda: OpenVino(plain, "bf16"),
        }
        skip = [part.strip() for part in args.without.split(",") if part.strip()]
        peers = {name: make() for name, make in peers.items() if name not in skip}

        if args.alone:
            # One text is one batch; what is left to choose is how threads share it.
            for peer in peers.values():
                peer.configs = [c for c in peer.configs if c in (4, ("batch", 1), (1, 1, 1), (1, 1, 16))]
        reference, best, similarity = None, {}, {}
        sample = rows[:: max(1, len(rows) // 48)]
        for name, peer in peers.items():
            trials = []
            for config in peer.configs:
                peer.run(sample, config)
                trials.append((timed(lambda: peer.run(sample, config)), str(config), config))
            best[name] = min(trials)[2]
            logits = peer.run(rows, best[name])
            reference = logits if reference is None else reference
            similarity[name] = cosine(reference, logits)
            print(f"{name}: {best[name]}, cosine {similarity[name]:.5f}", file=sys.stderr)

        own = {}
        for precision in ("f32", "int8"):
            for threads in (1, THREADS):
                logits = folder / f"{precision}.jsonl"
                name = f"Lyhörd {precision}, {threads} thread{'s' * (threads > 1)}"
                mode = f"alone-{precision}" if args.alone else precision
                own[name] = Process(binary, args.model, texts, mode, threads, logits)
                values = np.array([json.loads(line) for line in logits.read_text().splitlines()])
                similarity[name] = cosine(reference, values)
        for precision in () if args.alone else ("f32", "int8"):
            own[f"limit: {precision} GEMM alone"] = Process(binary, args.model, texts, f"gemm-{precision}", THREADS)

        seconds = {name: [] for name in [*peers, *own]}
        for process in own.values():
            process.seconds()
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
            for name, peer in peers.items():
                seconds[name].append(measured(lambda: timed(lambda: peer.run(rows, best[name]))))
            for name, process in own.items():
                seconds[name].append(measured(process.seconds))

    median = {name: statistics.median(values) for name, values in seconds.items()}
    base = median.get("ONNX Runtime int8", next(iter(median.values())))
    lines = [
        f"{len(rows)} texts, {tokens / len(rows):.0f} tokens on average, {args.rounds} rounds, medians",
        "",
        "| engine | texts/s | tokens/s | of ONNX Runtime int8 | slowest/fastest round | cosine |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, value in median.items():
        spread = max(seconds[name]) / min(seconds[name])
        near = f"{similarity[name]:.5f}" if name in similarity else "-"
        lines.append(f"| {name} | {len(rows) / value:.1f} | {tokens / value:,.0f} | {base / value:.2f} | {spread:.2f} | {near} |")
    table = "\n".join(lines) + "\n"
    print(table)
    if args.markdown:
        args.markdown.write_text(table)


if __name__ == "__main__":
    main()
