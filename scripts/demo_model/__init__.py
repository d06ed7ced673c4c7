"""The tiny demo model: its skills, tokenizer, training, export and evaluation. Nothing here is imported by the
server."""
