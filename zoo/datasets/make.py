"""Make offline data."""
import argparse
from pathlib import Path
import torch as th
from zoo.datasets.behaviour import train_behaviour

p = argparse.ArgumentParser()
p.add_argument("--env"); p.add_argument("--steps", type=int); p.add_argument("--out", type=Path); p.add_argument("--seed", type=int, default=0)
p.add_argument("--max-minutes", type=float, default=float("inf"))
p.add_argument("--ckpt", type=int, default=10000); p.add_argument("--save", type=int, default=50000)
if __name__ == "__main__":
    a = p.parse_args()
    th.set_num_threads(1)
    train_behaviour(a.env, a.steps, a.out / "behaviour", seed=a.seed, max_minutes=a.max_minutes, checkpoint_every=a.ckpt, save_every=a.save, report=lambda s: print(s, flush=True))
