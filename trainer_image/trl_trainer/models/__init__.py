"""The base model, its tokenizer, the adapter and the reference."""
