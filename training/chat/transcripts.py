"""Conversations of three turns about clusters, by scmmgpt-chat and by the small decoder, scored by one rubric.

    python -m scmmgpt.training.chat.transcripts --file CELLS.h5ad --label COLUMN hub_cards/scmmgpt-chat/transcripts.json

The rubric is applied by rule to both, without a look at which of them spoke.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import anndata
import typer

from scmmgpt.api import chat as talk_about
from scmmgpt.chat_model import assembled
from scmmgpt.claims import GENERAL, RAISED, SUPPORTED, TYPE, ClaimReader
from scmmgpt.conversation import Conversation
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import LoadedModel, load
from scmmgpt.reading_conversation import ReadingConversation
from scmmgpt.training.chat.evaluate import related
from scmmgpt.training.evaluation.type_tree import TypeTree

TURNS = ("What are these cells?", "Which genes speak for that?", "What do such cells do?")
RUBRIC = {
    "type": "The first answer names the type that the source gives to the cluster, or one above or below it.",
    "genes": "The second answer names a gene that is raised in the cluster beside its study.",
    "function": "The third answer says something that neither of the first two said.",
    "clean": "No answer states anything of the cells that they contradict.",
}


def talk_to(loaded: LoadedModel, cells: anndata.AnnData, label: str, cluster: str, checked: bool = True) -> list[str]:
    talk = talk_about(cells, cluster_key=label, select=[cluster], model=loaded, checked=checked)
    return [talk.ask(question, max_new_tokens=48) for question in TURNS]


def scores(
    answers: list[str], cluster: str, judge: Conversation, reader: ClaimReader, tree: TypeTree
) -> dict[str, int]:
    """Which points of the rubric three answers meet."""
    assert isinstance(judge, ReadingConversation)
    assert judge.read is not None
    checked = [reader.check(answer, judge.read.facts[0]) for answer in answers]
    named = [claim for claim in checked[0].claims if claim.kind == TYPE]
    raised = [claim for claim in checked[1].claims if claim.kind == RAISED and claim.verdict == SUPPORTED]
    wrong = [
        claim for text in checked for claim in text.claims if claim.verdict == "contradicted" and claim.kind != GENERAL
    ]
    return {
        "type": int(any(related(claim.subject, cluster, tree) for claim in named)),
        "genes": int(bool(raised)),
        "function": int(bool(answers[2]) and answers[2] not in answers[:2] and "withheld" not in answers[2]),
        "clean": int(not wrong),
    }


def main(
    file: Annotated[list[Path], typer.Option(help="Cells; repeat it.")],
    label: Annotated[str, typer.Option(help="The column of obs with the source's types.")],
    output: Path,
    clusters: Annotated[int, typer.Option(help="Clusters of each file, the largest first.")] = 10,
    cells: Annotated[int, typer.Option(help="Cells of each file that stand for it.")] = 600,
) -> None:
    """Talk about clusters, and score what was said."""
    chat, small = load(assembled(), generative=True), load(EMBEDDED_MODEL, generative=True)
    tree = TypeTree(chat.ontology)
    reader = ClaimReader(chat.ontology, frozenset(chat.processor.gene_tokenizer.genes))
    found: list[dict[str, Any]] = []
    for path in file:
        adata = anndata.read_h5ad(path)
        adata = adata[:: max(1, adata.n_obs // cells)].copy()
        adata.obs[label] = adata.obs[label].astype(str)
        for cluster in list(adata.obs[label].value_counts().index)[:clusters]:
            judge = talk_about(adata, cluster_key=label, select=[cluster], model=chat)
            row: dict[str, Any] = {"file": path.stem, "cluster": cluster}
            for name, loaded in (("chat", chat), ("small decoder", small)):
                answers = talk_to(loaded, adata, label, cluster)
                row[name] = {"answers": answers, "scores": scores(answers, cluster, judge, reader, tree)}
            print(cluster, row["chat"], flush=True)
            found.append(row)
            summary = {
                name: {point: sum(row[name]["scores"][point] for row in found) for point in RUBRIC}
                for name in ("chat", "small decoder")
            }
            output.write_text(
                json.dumps({"turns": TURNS, "rubric": RUBRIC, "sums": summary, "transcripts": found}, indent=1) + "\n",
                encoding="utf-8",
            )


if __name__ == "__main__":
    typer.run(main)
