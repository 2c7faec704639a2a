"""Texts of people: prompts and questions to token ids and back, files of prompts, and what a tokenizer would lose."""
