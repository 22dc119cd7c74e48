#!/usr/bin/env bash
# Runs `lyhord classify` over an export and prints the figures of docs/bulk.md:
# time, rate, the shares of reading and writing, and peak memory.
#
#   cargo build --release
#   python benches/bulk/make_rows.py 100000 > target/rows.csv
#   benches/bulk/measure.sh target/rows.csv target/rows.jsonl [OPTION...]
set -euo pipefail
input=$1 output=$2
shift 2
summary=$output.summary.json
/usr/bin/time -v target/release/lyhord classify "$input" -o "$output" \
  --summary "$summary" --progress none "$@" 2> "$output.time" || tail -40 "$output.time" >&2
python3 - "$summary" "$output.time" <<'PYTHON'
import json
import re
import sys

summary = json.load(open(sys.argv[1]))
peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", open(sys.argv[2]).read())
timing = summary["timing"]
print(f"rows            {summary['assessed'] + summary['rejected']:,}")
print(f"seconds         {timing['total']:,.1f}")
print(f"reports/s       {summary['reports_per_second']:,.1f}")
print(f"tokens/s        {summary['tokens'] / timing['total']:,.0f}")
print(f"reading         {100 * timing['reading'] / timing['total']:.2f} % of the time")
print(f"writing         {100 * timing['writing'] / timing['total']:.2f} % of the time")
print(f"peak memory     {int(peak[1]) / 1024:,.0f} MiB")
print(f"10 million rows {1e7 / summary['reports_per_second'] / 3600:,.1f} hours")
PYTHON
