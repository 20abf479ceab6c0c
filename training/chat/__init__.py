"""Instruction data and evaluation of scmmgpt-chat."""
