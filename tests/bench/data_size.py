"""`make bench-data`: many rows from the file to the first step, against plain TRL with the same config.

1. Preparation: preference pairs of 1 KB are read, checked, written and tokenized; rows per second from end to end, and
   the memory of the process beside what its imports take. The same with a chat template, on fewer rows.
2. Restart: from the command to the first log entry, of an attempt that finds the rows of the one before; plain TRL
   finds its own caches. What plain TRL took to make them is told beside it.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import accumulate, product
from pathlib import Path
from typing import Any

import shapes
from bench_trainer import environment, execute, launch, num_gpus

TARGET_ROWS_PER_SECOND = 3000
TARGET_PEAK_BYTES = 1_500_000_000
TARGET_RESTART_SECONDS = 5.0
VOCABULARY = 32768
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="plain pairs of 1 KB (default %(default)s)")
    parser.add_argument("--chat-rows", type=int, default=50_000, help="conversations (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("bench-data.json"))
    parser.add_argument("--measure", type=Path, help="for this command alone: prepare the rows of a job file")
    given = parser.parse_args()
    if given.measure is not None:
        print(json.dumps(prepare(given.measure)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        root = Path(folder)
        found: dict[str, Any] = {"environment": environment(num_gpus()), "settings": vars(given)}
        for name, rows in (("plain", given.rows), ("chat", given.chat_rows)):
            print(f"preparation: {rows} rows, {name}", flush=True)
            job = make_job(root / name, rows, chat=name == "chat")
            found[name] = {"rows": rows, **measured(job)}
        found["restart"] = restart(root / "plain")
        found["environment"]["load_average_at_the_end"] = os.getloadavg()
    given.output.write_text(json.dumps(found, indent=1, default=str) + "\n")
    return summarize(found)


def make_job(folder: Path, rows: int, chat: bool) -> Path:
    """Write a tiny model with a tokenizer as large ones have, the rows and a job of two steps."""
    size = shapes.Shape(32, 64, 1, 2, VOCABULARY, 8, 8, 2, 1024)
    logged = {"perDeviceBatchSize": 2, "maxSteps": 2, "maxLength": 1024, "loggingSteps": 1}
    path = shapes.make_job(folder, size, world=1, gpus=num_gpus() > 0, steps=2, rows=2, training=logged)
    texts = Texts()
    with (folder / "train.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in texts.pairs(rows, chat))
    texts.tokenizer().save_pretrained(folder / "model")
    return path


class Texts:
    """Texts of words as common as those of a language; their tokens have about seven letters."""

    def __init__(self) -> None:
        self._random = random.Random(shapes.SEED)
        syllables = ["".join(parts) for parts in product("bcdfghklmnprstvw", "aeiou", ["", "n", "r", "s"])]
        lengths = (1, 2, 2, 3, 4)
        self._words = ["".join(self._random.choices(syllables, k=self._random.choice(lengths))) for _ in range(40_000)]
        self._weights = list(accumulate(1 / (i + 10) for i in range(len(self._words))))

    def text(self, length: int) -> str:
        words = self._random.choices(self._words, cum_weights=self._weights, k=length // 4)
        return " ".join(words)[:length]

    def pairs(self, number: int, chat: bool) -> Iterator[dict[str, Any]]:
        for _ in range(number):
            prompt, chosen, rejected = self.text(300), " " + self.text(340), " " + self.text(340)
            if chat:
                yield {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
            else:
                yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}

    def tokenizer(self) -> Any:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        special = ["<pad>", "<end>", "<|im_start|>", "<|im_end|>"]
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, show_progress=False, initial_alphabet=alphabet
        )
        bpe.train_from_iterator([self.text(600) for _ in range(5000)], trainer)
        made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="<end>")
        made.chat_template = TEMPLATE
        return made


def measured(job: Path) -> dict[str, Any]:
    """Return what a process of its own found."""
    argv = [sys.executable, __file__, "--measure", str(job)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, env=variables, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(path: Path) -> dict[str, Any]:
    """Prepare the rows of a job as rank 0 does; return seconds, CPU seconds of all processes, and bytes."""
    from trl_contract.resolve import resolve
    from trl_trainer.launch.job import library_settings, read_job

    job = resolve(read_job(str(path)))
    os.environ.update(library_settings(job))
    from trl_trainer import data, rank, stages  # noqa: F401  (all that a rank imports)
    from trl_trainer.models.tokenizer import load_tokenizer

    tokenizer, stage = load_tokenizer(job), stages.of(job)
    folder = Path(job.paths.storage) / job.uid / "data"
    imports = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    times = [(time.monotonic(), cpu())]
    written = data.write(job, stage, tokenizer, folder)
    times.append((time.monotonic(), cpu()))
    name = data.build(job, stage, tokenizer, stages.tokenizing(job, stage, tokenizer), written, folder)
    times.append((time.monotonic(), cpu()))
    (began, cpu_began), (wrote, cpu_wrote), (ended, cpu_ended) = times
    return {
        "write_seconds": wrote - began,
        "write_cpu_seconds": cpu_wrote - cpu_began,
        "tokenize_seconds": ended - wrote,
        "tokenize_cpu_seconds": cpu_ended - cpu_wrote,
        "imports_bytes": imports,
        "peak_bytes": memory("VmHWM") - imports,
        "largest_worker_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "source_bytes": Path(job.paths.train or "").stat().st_size,
        "arrow_bytes": (folder / name / "train.arrow").stat().st_size,
    }


def memory(field: str) -> int:
    """Return a line of this process's /proc status, in bytes."""
    line = next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(field))
    return int(line.split()[1]) * 1024


def cpu() -> float:
    return sum(os.times()[:4])


def restart(folder: Path) -> dict[str, float]:
    """Return the seconds from the command to the first log entry, of ours and of plain TRL, which runs twice."""
    job, found = folder / "job.json", {}
    for name in ("plain_first", "plain", "ours"):
        print(f"restart: {name}", flush=True)
        began = time.time()
        if name == "ours":
            execute([sys.executable, "-m", "trl_trainer.supervisor", "--job", str(job)], folder / "log")
            first = json.loads((folder / "storage/bench/metrics.jsonl").read_text().splitlines()[0])
            found[name] = datetime.fromisoformat(first["time"]).timestamp() - began
        else:
            os.environ["HF_DATASETS_CACHE"] = str(folder / "plain-cache")
            execute(launch("plain.py", 1, "--job", str(job)), folder / "log")
            del os.environ["HF_DATASETS_CACHE"]
            line = next(s for s in (folder / "log").read_text().splitlines() if "first log at" in s)
            found[name] = float(line.split()[-1]) - began
    return found


def summarize(found: dict[str, Any]) -> int:
    """Print the result; 1 when a target is missed."""
    for name in ("plain", "chat"):
        result = found[name]
        seconds = result["write_seconds"] + result["tokenize_seconds"]
        spent = result["write_cpu_seconds"] + result["tokenize_cpu_seconds"]
        result["rows_per_second"], result["cpu_us_per_row"] = result["rows"] / seconds, 1e6 * spent / result["rows"]
        print(f"{name}: {result['rows_per_second']:.0f} rows/s from end to end ({result['cpu_us_per_row']:.0f} us of"
              f" CPU a row; written in {result['write_seconds']:.1f} s, tokenized in"
              f" {result['tokenize_seconds']:.1f} s), peak {result['peak_bytes'] / 1e6:.0f} MB beside the imports,"
              f" largest worker {result['largest_worker_bytes'] / 1e6:.0f} MB with them")  # fmt: skip
    restart = found["restart"]
    print(f"restart to the first step: ours {restart['ours']:.1f} s, plain TRL {restart['plain']:.1f} s (its first"
          f" start {restart['plain_first']:.1f} s)")  # fmt: skip
    missed = [
        found["plain"]["rows_per_second"] < TARGET_ROWS_PER_SECOND,
        found["plain"]["peak_bytes"] > TARGET_PEAK_BYTES,
        restart["ours"] > restart["plain"] + TARGET_RESTART_SECONDS,
    ]
    print(f"targets: {TARGET_ROWS_PER_SECOND} rows/s, {TARGET_PEAK_BYTES / 1e9} GB, plain TRL plus"
          f" {TARGET_RESTART_SECONDS} s; {sum(missed)} missed")  # fmt: skip
    return 1 if any(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
