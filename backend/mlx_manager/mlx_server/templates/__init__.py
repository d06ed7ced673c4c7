"""Chat templates, which are programs that a model's files bring: rendered by processes apart, within limits."""
