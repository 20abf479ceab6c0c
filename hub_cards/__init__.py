"""What a Hub repository holds besides code: cards, endpoint handler, Space, results and the embedded model."""

from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent / "scmmgpt-mini"
CHAT_MODEL = Path(__file__).parent / "scmmgpt-chat"
