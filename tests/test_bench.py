"""The benchmark that a GPU is lent for runs to its end: its whole flow, on a small shape and the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent / "bench/bench_gpu.py"
UPDATES = [f"update, {products} products, checkpointing {kept}" for kept in ("on", "off")
           for products in ("TF32", "fp32")]
PARTS = ["versions", "steps", "graphs, float32, nf4", "graphs, float32, dense", "margins", "decoding, nf4",
         "decoding, dense", *UPDATES, "twice", "against TRL", "kill and resume"]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_whole_and_keeps_what_each_part_found(tmp_path):
    command = [sys.executable, BENCH, "--quick", "--out", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == PARTS and found == json.loads(done.stdout.splitlines()[-1])
    assert found["steps"]["equal"] == found["steps"]["completions"] > 0 and found["kill and resume"]["resumed_after"]
    assert found["kill and resume"]["same_bits"] and found["twice"]["same_bits"]
    assert max(found["margins"][way] for way in ("scored in packed rows", "decoded token by token")) < 1e-4
    assert all(found[part]["equal"] == found[part]["rows"] for part in PARTS if part.startswith("graphs"))
