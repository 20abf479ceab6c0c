# /// script
# requires-python = ">=3.11"
# dependencies = ["scmmgpt[train,eval]"]
# ///
"""Does text -> cell compose? Cells of a type from a tissue in which training never saw that type.

    python training/unseen_pairs.py --config training/recipes/tiny_stage2.yaml output=runs/unseen_pairs \\
        data.cells_to_text=false data.unlabelled_share=0 training.max_steps=500 training.eval_strategy=no

One tissue of each of many types is taken out of the corpus, the recipe is trained on the rest, and cells are asked for
with the type and the tissue. A made mean profile should lie nearer to the pair's own real mean than to the type's mean
in the tissues of the same organism that were seen, on the genes in which those two differ most. The control asks for
the type without the tissue. Writes `unseen_pairs.json` and a picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from trl import SFTConfig

from scmmgpt.processing.prompting_scmmgpt import cell_request
from scmmgpt.training.corpus.reading import Corpus, Selection
from scmmgpt.training.evaluation.expression import log_normalised
from scmmgpt.training.run import plain_errors, read_command, training_arguments
from scmmgpt.training.settings import Stage2Settings
from scmmgpt.training.stage2 import LEAVE_TO_US, Stage2Trainer, run

MIN_CELLS, MIN_TISSUES, MOST_PAIRS = 30, 5, 24
NUM_CELLS = 200
NUM_GENES = 2_000


@dataclass(frozen=True)
class PartOfCorpus(Corpus):
    """A corpus some of whose rows no selection contains.

    Attributes
    ----------
    left_out
        (rows,) true for those.
    """

    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))

    def is_selected(self, rows: np.ndarray | slice, selection: Selection) -> np.ndarray:
        return super().is_selected(rows, selection) & ~self.left_out[rows]


@dataclass(frozen=True)
class Pair:
    """A type in a tissue, and the organism in which several tissues hold that type."""

    cell_type: str
    tissue: str
    organism: str


def choose_pairs(kinds: pd.DataFrame, seed: int) -> list[Pair]:
    """One tissue of each type that several tissues of one organism hold."""
    sizes = kinds.groupby(["cell_type", "organism", "tissue"]).size()
    tissues = sizes[sizes >= MIN_CELLS].reset_index().groupby(["cell_type", "organism"]).tissue.agg(sorted)
    tissues = tissues[tissues.map(len) >= MIN_TISSUES].groupby("cell_type").head(1)
    random = np.random.default_rng(seed)
    chosen = tissues.iloc[np.sort(random.permutation(len(tissues))[:MOST_PAIRS])]
    return [Pair(name, str(random.choice(held)), organism) for (name, organism), held in chosen.items()]


def left_out_rows(kinds: pd.DataFrame, pairs: Sequence[Pair], num_rows: int) -> np.ndarray:
    """Which rows of the corpus are of one of the pairs, in any organism."""
    result = np.zeros(num_rows, dtype=bool)
    keys = pd.MultiIndex.from_frame(kinds[["cell_type", "tissue"]])
    result[kinds.index[keys.isin([(pair.cell_type, pair.tissue) for pair in pairs])]] = True
    return result


def measure(trainer: Stage2Trainer, corpus: Corpus, kinds: pd.DataFrame, pairs: list[Pair]) -> list[dict]:
    """For each pair, how far made cells lie from its own mean and from the type's mean elsewhere."""
    collate, model = trainer.data_collator, trainer.model.eval()
    tokenizer = collate.processor.gene_tokenizer
    num_special = tokenizer.vocab_size - len(tokenizer.genes)
    rows = []
    for pair in pairs:
        of_type = kinds[(kinds.cell_type == pair.cell_type) & (kinds.organism == pair.organism)]
        own = of_type.index[of_type.tissue == pair.tissue].to_numpy()
        elsewhere = of_type.index[of_type.tissue != pair.tissue].to_numpy()
        real = [_mean_profile(corpus.matrix(part)[:, num_special:]) for part in (own, elsewhere)]
        facts = corpus.table(own[:1]).to_pylist()[0]
        with_tissue = cell_request(facts, collate.definition(facts))
        without = cell_request({"cell_type": pair.cell_type, "organism": pair.organism}, collate.definition(facts))
        made = [_made_profile(model, collate.processor, text) for text in (with_tissue, without)]
        genes = np.argsort(-np.abs(real[0] - real[1]), kind="stable")[:NUM_GENES]
        distances = {
            name: [round(float(np.linalg.norm((mean - other)[genes])), 3) for other in real]
            for name, mean in zip(("asked_with_tissue", "asked_without"), made, strict=True)
        }
        rows.append({**asdict(pair), "text": with_tissue, "num_real": len(own), **distances})
    return rows


def _mean_profile(counts: sp.csr_matrix) -> np.ndarray:
    return np.asarray(log_normalised(sp.csr_matrix(counts)).mean(0)).ravel()


def _made_profile(model: Any, processor: Any, text: str) -> np.ndarray:
    inputs = processor.tokenizer([text], return_tensors="pt").to(model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    made = model.generate_cells(input_ids=ids, attention_mask=mask, num_cells=NUM_CELLS, seed=0)
    genes = processor.gene_tokenizer.gene_rows(made.gene_ids.numpy())
    counts = sp.csr_matrix(made.counts.numpy().astype(np.float32))
    return _mean_profile(counts[:, np.argsort(genes)])


def summary(rows: list[dict]) -> dict[str, float]:
    """Share of pairs whose made cells are nearer to their own mean, with the tissue in the text and without."""
    nearer = {name: np.mean([row[name][0] < row[name][1] for row in rows]) for name in _WAYS}
    closer = np.mean([row["asked_with_tissue"][0] < row["asked_without"][0] for row in rows])
    shares = {f"nearer_own_mean_{name}": round(float(share), 3) for name, share in nearer.items()}
    return {"pairs": len(rows), **shares, "tissue_brings_closer": round(float(closer), 3)}


_WAYS = {"asked_with_tissue": "type and tissue in the text", "asked_without": "the type and the organism alone"}


def draw(rows: list[dict], path: Path) -> None:
    """Each pair as a point: distance to its own mean against distance to the type's mean elsewhere."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 5), layout="constrained")
    for (name, label), colour in zip(_WAYS.items(), ("#1f6f8b", "#c98a2b"), strict=True):
        own, elsewhere = np.array([row[name] for row in rows]).T
        axis.scatter(own, elsewhere, s=18, label=label, color=colour)
    limits = [min(axis.get_xlim()[0], axis.get_ylim()[0]), max(axis.get_xlim()[1], axis.get_ylim()[1])]
    axis.plot(limits, limits, color="0.5", linewidth=1)
    axis.set(xlabel="distance to the pair's own mean", ylabel="distance to the type's mean in other tissues")
    axis.legend(title="above the line: nearer to its own")
    figure.savefig(path)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    command = read_command("Text to cell for unseen pairs of type and tissue.", Stage2Settings, arguments)
    settings = command.settings
    training = training_arguments(settings, SFTConfig, **LEAVE_TO_US)
    corpus = Corpus.open(settings.data.corpus)
    chosen = corpus.rows(Selection("train", settings.data.scheme, True))
    kinds = corpus.table(chosen, ["cell_type", "tissue", "organism"]).to_pandas().astype(str).set_index(chosen)
    pairs = choose_pairs(kinds, training.seed)
    rest = PartOfCorpus(corpus.path, corpus.manifest, corpus.splits, left_out_rows(kinds, pairs, len(corpus)))
    trainer = run(settings, training, rest, fresh=command.fresh)
    rows = measure(trainer, corpus, kinds, pairs)
    output = Path(settings.output)
    found = {"command": "training/unseen_pairs.py", "summary": summary(rows), "pairs": rows}
    (output / "unseen_pairs.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(rows, output / "unseen_pairs.svg")
    print(json.dumps(found["summary"], indent=1))


if __name__ == "__main__":
    with plain_errors():
        main()
