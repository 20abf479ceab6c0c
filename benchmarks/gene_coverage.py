"""How the genes of every development file were recognised: one line per file.

python benchmarks/gene_coverage.py [FOLDER_OR_FILE ...]
"""

import os
import sys
from pathlib import Path

import pandas as pd

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTGeneTokenizer


def coverage(gene_tokenizer: ScMMGPTGeneTokenizer, path: Path) -> dict[str, object]:
    """The account of one file, read in chunks; nothing where it holds no cells."""
    for _ in gene_tokenizer.iter_chunks(path):
        pass
    account = gene_tokenizer.account
    if account is None:
        return {}
    return {
        "file": path.stem,
        "genes": account["num_genes"],
        "known": account["num_matched"],
        **account["matched"],
        "merged": account["merged_duplicates"],
        "counts covered": f"{account['share_of_counts']:.1%}",
        "matrix": f"{account['matrix']}: {account['matrix_detail']}",
        "species": account["species"],
    }


def main() -> None:
    places = [Path(place) for place in sys.argv[1:] or [os.environ.get("SCMMGPT_DATA", ".")]]
    gene_tokenizer = ScMMGPTGeneTokenizer.from_pretrained(EMBEDDED_MODEL).with_settings(max_genes=None)
    found = sorted(path for place in places for path in (place.rglob("*.h5ad") if place.is_dir() else [place]))
    rows = filter(None, (coverage(gene_tokenizer, path) for path in found))
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
