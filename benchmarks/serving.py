"""The serving process against LitServe, same model, batch and wait, in interleaved rounds.

Both serve a tiny Llama over HTTP to 16 clients; LitServe's model calls transformers' `generate` on
a batch, as its users do. Clients ask for 16 greedy tokens each, which lets a static batch come out
even, and then for 4 to 28, as answers differ. Last, batches that mix adapters against batches of
one. Goals: >= 1.5 times LitServe's requests/s with a lower p99; mixed adapters <= 1.1 times one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil

NEEDS_STACK = False
CLIENTS, BATCH, WAIT_MS = 16, 16, 3
LENGTHS = {"equal": [16], "mixed": [4, 8, 12, 16, 20, 24, 28]}
"""Tokens that clients ask for, in turn."""
ROUNDS, ROUND_S = 3, 8.0
PROMPT = "Once upon a time there was"

MODEL = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
from loomos.training.tokenizer import byte_tokenizer
torch.manual_seed(0)
tokenizer = byte_tokenizer()
config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), hidden_size=128,
    intermediate_size=344, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512)
model = AutoModelForCausalLM.from_config(config)
model.generation_config.eos_token_id = None
model.save_pretrained(sys.argv[1])
tokenizer.eos_token = None
tokenizer.save_pretrained(sys.argv[1])
"""

OURS = """
import sys, torch, uvicorn
from datetime import UTC, datetime
from pathlib import Path
from loomos.jobs.serving import EndpointSpec, Route, Target
from loomos.serving.app import create_app
from loomos.serving.engine_process import EngineOptions, EngineProcess
from loomos.serving.hosting import Hosted
from loomos.serving.outcomes import RecordWriters
from loomos.serving.service import Service
class Table:
    routes = {"m": Route(endpoint="m", generation=1, spec=EndpointSpec(model="m", max_queue=1000),
        stable=Target(version="m@0"), replicas=["s"], issued_at=datetime.now(UTC))}
class Host:
    failed, loaded = {}, ["m@0"]
    def __init__(self):
        engine = EngineProcess(Path(sys.argv[1]), EngineOptions(max_batch=int(sys.argv[3]),
            batch_wait_s=float(sys.argv[4]) / 1000, threads=1))
        self.hosted = Hosted(version="m@0", engine=engine)
    def get(self, version): return self.hosted
class Records(RecordWriters):
    def outcome(self, endpoint, outcome): outcome.model_dump(mode="json", exclude_defaults=True)
if __name__ == "__main__":
    service = Service(Table(), Host(), Records(None, "s"), "s")
    uvicorn.run(create_app(service, None), host="127.0.0.1", port=int(sys.argv[2]),
        log_level="error")
"""

LITSERVE = """
import sys, torch, litserve
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        self.tokenizer.padding_side = "left"
        self.model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
    def decode_request(self, request): return request["prompt"], request["max_tokens"]
    def batch(self, inputs): return inputs
    def predict(self, inputs):
        texts = [i[0] for i in inputs]
        ids = self.tokenizer(texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            made = self.model.generate(**ids, max_new_tokens=max(i[1] for i in inputs),
                do_sample=False, pad_token_id=self.tokenizer.pad_token_id)
        begin = ids["input_ids"].shape[1]
        rows = [row[begin : begin + i[1]] for row, i in zip(made, inputs)]
        return self.tokenizer.batch_decode(rows)
    def unbatch(self, output): return output
    def encode_response(self, output): return {"text": output}
if __name__ == "__main__":
    api = Api(max_batch_size=int(sys.argv[3]), batch_timeout=float(sys.argv[4]) / 1000)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), log_level="error",
        generate_client_file=False)
"""

ADAPTERS = """
import sys, time, json, threading, torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from loomos.serving.engine import Engine
from loomos.serving.rows import Row, Sampling
from loomos.serving.loading import load_model
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for n in range(3):
    model, tokenizer = load_model(folder)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(model, lora)
    for name, p in adapted.named_parameters():
        if "lora_" in name: torch.nn.init.normal_(p, std=0.1)
    adapted.save_pretrained(folder / f"adapter-{n}")
engine = Engine(*load_model(folder), max_batch=16)
engine.end_ids = frozenset()
folders = [folder / f"adapter-{n}" for n in range(3)]
slots = [engine.load_adapter(f) for f in folders]
prompt = tokenizer("Once upon a time there was")["input_ids"]
def batch(rows):
    left = threading.Semaphore(0)
    def deliver(piece):
        if piece.finish_reason: left.release()
    began = time.process_time()
    for slot in rows:
        engine.submit(Row(prompt=prompt, sampling=Sampling(max_tokens=16, temperature=0),
            deliver=deliver, slot=slot))
    for _ in rows: left.acquire()
    return time.process_time() - began
kinds = {"base": [0] * 16, "one": [slots[0]] * 16, "half_base": [0, slots[0]] * 8,
    "three_and_base": [0, *slots] * 4}
times = {name: [] for name in kinds}
for round in range(40):
    for name, rows in kinds.items(): times[name].append(batch(rows))
print(json.dumps({n: sorted(t[5:])[len(t[5:]) // 2] for n, t in times.items()}))
"""


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


async def _load(url: str, path: str, lengths: list[int]) -> dict[str, float]:
    """Requests/s and latency of 16 clients."""
    latencies: list[float] = []
    tokens = itertools.cycle(lengths)
    body = {"model": "m", "prompt": PROMPT, "temperature": 0}
    # aiohttp, since a dearer client would be what is measured on two cores.
    async with aiohttp.ClientSession() as http:
        end = time.monotonic() + ROUND_S

        async def client() -> None:
            while time.monotonic() < end:
                began = time.monotonic()
                content = {**body, "max_tokens": next(tokens)}
                async with http.post(url + path, json=content) as answer:
                    answer.raise_for_status()
                    await answer.read()
                latencies.append(time.monotonic() - began)

        began = time.monotonic()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        took = time.monotonic() - began
    ordered = sorted(latencies)
    return {
        "requests_per_s": len(ordered) / took,
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p99_ms": 1000 * ordered[int(len(ordered) * 0.99)],
        "count": float(len(ordered)),
    }


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        times = member.cpu_times()
        total += times.user + times.system
    return total


async def _up(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(url + "/health", timeout=2)).is_success:
                    return
            except httpx.HTTPError:
                await asyncio.sleep(0.3)


async def measure(stack: None) -> dict[str, Any]:
    """Alternate the two servers; then mix adapters."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MODEL, folder], check=True, capture_output=True)
        servers = {}
        for name, code in (("loomos", OURS), ("litserve", LITSERVE)):
            file = Path(folder) / f"serve_{name}.py"
            file.write_text(code)
            port = _port()
            command = [sys.executable, str(file), folder, str(port), str(BATCH), str(WAIT_MS)]
            servers[name] = (
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
                f"http://127.0.0.1:{port}",
            )
        paths = {"loomos": "/v1/completions", "litserve": "/predict"}
        rounds: dict[str, list[dict[str, float]]] = {}
        try:
            for _, url in servers.values():
                async with asyncio.timeout(120):
                    await _up(url)
            for number in range(ROUNDS + 1):
                for kind, lengths in LENGTHS.items():
                    for name, (process, url) in servers.items():
                        before = _cpu_s(psutil.Process(process.pid))
                        found = await _load(url, paths[name], lengths)
                        spent = _cpu_s(psutil.Process(process.pid)) - before
                        found["cpu_ms_per_request"] = 1000 * spent / found["count"]
                        if number:  # the first round warms both up
                            shown = {k: round(v, 1) for k, v in found.items()}
                            print("   ", name, kind, shown, flush=True)
                            rounds.setdefault(f"{name}/{kind}", []).append(found)
        finally:
            for process, _ in servers.values():
                for member in psutil.Process(process.pid).children(recursive=True):
                    member.kill()
                process.kill()
        adapters = subprocess.run(
            [sys.executable, "-c", ADAPTERS, folder], check=True, capture_output=True, text=True
        )
    mixed = json.loads(adapters.stdout.splitlines()[-1])
    result: dict[str, Any] = {}
    for kind in LENGTHS:
        for key in ("requests_per_s", "p99_ms", "cpu_ms_per_request"):
            values = {
                name: statistics.median(r[key] for r in rounds[f"{name}/{kind}"])
                for name in servers
            }
            result[f"{kind}_{key}"] = round(values["loomos"], 1)
            result[f"{kind}_{key}_litserve"] = round(values["litserve"], 1)
        result[f"{kind}_ratio"] = round(
            result[f"{kind}_requests_per_s"] / result[f"{kind}_requests_per_s_litserve"], 2
        )
    return {
        **result,
        "adapters_mixed_over_one": round(mixed["three_and_base"] / mixed["one"], 3),
        "adapters_half_base_over_one": round(mixed["half_base"] / mixed["one"], 3),
        "adapter_over_base": round(mixed["one"] / mixed["base"], 3),
    }
