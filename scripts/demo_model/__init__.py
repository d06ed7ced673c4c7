"""The tiny demo model: its skills, tokenizer, training, export and evaluation. The server imports none of
it."""
