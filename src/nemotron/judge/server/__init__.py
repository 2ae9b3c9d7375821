"""A small OpenAI-compatible server for one judge model: ``python -m nemotron.judge.server --model DIR``."""
