#!/usr/bin/env python3
"""Compares `cargo bench` with PyTorch on this machine, interleaved, and prints ours / torch.

Each round runs every item once with either program, one right after the other, and the next round swaps who goes first,
so that a slow spell of the machine falls on both. A ratio below 1 means that ours is faster. Items are the names that
both programs know; see torch_bench.py.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
NETWORKS = ("unet2d_forward", "spatial_step", "video_forward", "vae_decode")


def groups(only: str | None) -> list[str]:
    """What one process measures: each network alone, since it is large; all products, all convolutions together."""
    if only:
        return [word for word in only.split(",") if word]
    return [*NETWORKS, "gemm", "conv"]


def output_of(command: list[str], what: str, cwd: pathlib.Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{what} failed with status {done.returncode}: {' '.join(command)}")
    return done.stdout


def records(text: str) -> dict[str, float]:
    """Name to median seconds, from JSON lines; other lines are passed over."""
    found = {}
    for line in text.splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            found[record["name"]] = float(record["seconds"]["median"])
    return found


def run_ours(group: str, args) -> dict[str, float]:
    bench = "step" if group.startswith(NETWORKS) else "kernels"
    command = ["cargo", "bench", "--quiet", "--bench", bench, "--", "--json", "--only", group]
    if args.threads:
        command += ["--threads", str(args.threads)]
    return records(output_of(command, "our benchmark", HERE.parent.parent))


def run_torch(group: str, args) -> dict[str, float]:
    command = [args.python, str(HERE / "torch_bench.py"), "--only", group, *args.torch_args.split()]
    if args.threads:
        command += ["--threads", str(args.threads)]
    return records(output_of(command, "torch_bench.py"))


def table(ours: dict[str, list[float]], torch: dict[str, list[float]]) -> list[str]:
    rows = [("name", "ours min", "ours median", "torch min", "torch median", "ratio median", "ratio min..max")]
    for name in ours:
        if name in torch:
            a, b = ours[name], torch[name]
            ratios = [x / y for x, y in zip(a, b)]
            rows.append((name, *(f"{1e3 * f(v):.3f} ms" for v in (a, b) for f in (min, statistics.median)),
                         f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}..{max(ratios):.3f}"))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) if c == 0 else cell.rjust(w) for c, (cell, w) in enumerate(zip(row, widths)))
            for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated names or beginnings of names, e.g. unet2d_forward,gemm")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has torch and diffusers")
    parser.add_argument("--torch-args", default="", help='more arguments for torch_bench.py, e.g. "--channels-last"')
    args = parser.parse_args()
    ours: dict[str, list[float]] = {}
    torch: dict[str, list[float]] = {}
    for round_ in range(args.rounds):
        sides = [(run_ours, ours), (run_torch, torch)]
        for group in groups(args.only):
            for run, into in sides if round_ % 2 == 0 else reversed(sides):
                for name, seconds in run(group, args).items():
                    into.setdefault(name, []).append(seconds)
        print(f"round {round_ + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    print("\n".join(table(ours, torch)))
    for program, only in (("ours", ours.keys() - torch.keys()), ("torch", torch.keys() - ours.keys())):
        if only:
            print(f"measured by {program} alone: {', '.join(sorted(only))}", file=sys.stderr)


if __name__ == "__main__":
    main()
