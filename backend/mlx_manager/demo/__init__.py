"""The embedded demo model: a tiny trained Llama in this folder, so that the server answers with no download."""

from pathlib import Path

DEMO_MODEL_ID = "demo"


def demo_model_path() -> Path:
    """The folder that holds the demo model's weights, config and tokenizer."""
    return Path(__file__).parent
