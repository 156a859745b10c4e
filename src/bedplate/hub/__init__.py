"""Model directories in Hugging Face form, cards, and `Model`, what `load` returns."""
