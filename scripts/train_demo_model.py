"""Builds the demo model from scratch: tokenizer, data, training, export and evaluation, on two CPU cores, with a
fixed seed.

    pip install torch tokenizers safetensors "mlx[cpu]" mlx-lm
    python scripts/train_demo_model.py

A killed run resumes from its checkpoint when started again.
"""

import argparse
import logging
from pathlib import Path

import torch
from tokenizers import Tokenizer

from demo_model.evaluation import evaluate, table
from demo_model.export import export
from demo_model.network import Llama, Shape
from demo_model.tokenizer import train_tokenizer
from demo_model.training import Plan, train

logger = logging.getLogger("train_demo_model")


MODEL = Shape()
DRAFT = Shape(hidden=64, layers=2, heads=2, kv_heads=1, mlp=128)


def main() -> None:
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    tokenizer = train_tokenizer(options.seed)
    model, draft = options.output, options.output / "draft"
    _make(Plan(MODEL, options.seed, options.steps), tokenizer, options.checkpoints / "model.pt", model)
    _make(Plan(DRAFT, options.seed, options.draft_steps), tokenizer, options.checkpoints / "draft.pt", draft)
    for folder in (model, draft):
        print(f"\n{folder}\n\n{table(evaluate(folder))}", flush=True)


def _make(plan: Plan, tokenizer: Tokenizer, checkpoint: Path, folder: Path) -> None:
    def on_checkpoint(model: Llama, step: int) -> None:
        export(model, tokenizer, folder)
        logger.info("step %d exported to %s", step, folder)

    train(plan, tokenizer, checkpoint, on_checkpoint)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo model and its draft model.")
    parser.add_argument("--output", type=Path, default=Path("backend/mlx_manager/demo"), help="folder of the model")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path(".cache/demo-model"), help="folder of checkpoints to resume from"
    )
    parser.add_argument("--steps", type=int, default=3700)
    parser.add_argument("--draft-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
