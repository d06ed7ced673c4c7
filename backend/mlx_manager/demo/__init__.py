"""The embedded demo model: a tiny trained Llama, so that the server works without a download."""

from pathlib import Path

DEMO_MODEL_ID = "demo"


def demo_model_path() -> Path:
    """The folder with the demo model's weights, config and tokenizer."""
    return Path(__file__).parent
