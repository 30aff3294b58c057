"""Vision-language models of transformers: they read and write, so that their rows can be made."""
