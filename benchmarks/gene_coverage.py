"""How the genes of every development file were recognised: one line per file.

python benchmarks/gene_coverage.py [FOLDER_OR_FILE ...]
"""

import argparse
import os
from pathlib import Path

from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.processing import ScMMGPTGeneTokenizer
from scmmgpt.processing.gene_identity_scmmgpt import ROUTES, GeneNames
from scmmgpt.processing.gene_vocabulary_scmmgpt import GeneVocabulary

COLUMNS = ("genes", "known", *ROUTES, "merged", "counts covered", "matrix", "species")


def embedded_gene_tokenizer() -> ScMMGPTGeneTokenizer:
    """The gene tokenizer over the embedded model's vocabulary."""
    vocabulary = GeneVocabulary.read(EMBEDDED_MODEL / "gene_vocabulary.tsv.gz")
    names = GeneNames.read(EMBEDDED_MODEL / "gene_names.tsv.gz")
    return ScMMGPTGeneTokenizer(vocabulary.genes, vocabulary.ensembl_ids, gene_names=names, max_genes=None)


def coverage(gene_tokenizer: ScMMGPTGeneTokenizer, path: Path) -> dict | None:
    """The account of one file, read in chunks; None = it holds no cells."""
    for _ in gene_tokenizer.iter_chunks(path):
        pass
    return gene_tokenizer.account


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, help="h5ad files or folders; by default $SCMMGPT_DATA")
    paths = parser.parse_args().paths or [Path(os.environ.get("SCMMGPT_DATA", "."))]
    gene_tokenizer = embedded_gene_tokenizer()
    found = sorted(path for place in paths for path in (place.rglob("*.h5ad") if place.is_dir() else [place]))
    print(f"{'file':<32}" + "".join(f"{name:>10}" for name in COLUMNS[:-3]), *COLUMNS[-3:], sep="  ")
    for path in found:
        account = coverage(gene_tokenizer, path)
        if account is None:
            continue
        numbers = [account["num_genes"], account["num_matched"], *account["matched"].values()]
        print(
            f"{path.stem:<32}" + "".join(f"{number:>10}" for number in [*numbers, account["merged_duplicates"]]),
            f"{account['share_of_counts']:>14.1%}",
            f"{account['matrix']}: {account['matrix_detail']}",
            account["species"],
            sep="  ",
        )


if __name__ == "__main__":
    main()
