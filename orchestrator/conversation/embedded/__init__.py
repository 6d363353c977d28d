"""Embedded models behind OpenAI's HTTP dialect, each in a process of its own."""
