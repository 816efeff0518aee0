"""Small words for messages, tables and reports."""

from __future__ import annotations


def count_text(count: int, noun: str) -> str:
    """`1 frame`, `2 frames`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
