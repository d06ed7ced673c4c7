"""MLX Manager: an OpenAI-compatible inference server for MLX models."""
