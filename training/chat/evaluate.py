"""What scmmgpt-chat must show: types in free text beside baselines, facts, language, cost. Writes one JSON.

    python -m scmmgpt.training.chat.evaluate --data $SCMMGPT_DATA --recipe training/recipes/eval_dev.yaml \
        --cells 200 hub_cards/scmmgpt-chat/results.json

Studies are those of the part `test`, which no weights of ours have seen.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import anndata
import numpy as np
import torch
import typer
import yaml
from torch.nn import functional as F

import scmmgpt
from scmmgpt.cell_context import raised_genes, study_of
from scmmgpt.chat_model import assembled
from scmmgpt.claims import ClaimReader
from scmmgpt.hub_cards import EMBEDDED_MODEL
from scmmgpt.loading import LoadedModel, load
from scmmgpt.processing.prompting_scmmgpt import cell_context, reading
from scmmgpt.reading import GROUPS_AT_ONCE
from scmmgpt.talks import Talks
from scmmgpt.training.evaluation.metrics import accuracy, hierarchical_f1, macro_f1, meant_types
from scmmgpt.training.evaluation.type_tree import TypeTree

QUESTION = "What type of cell is this?"
QUESTIONS = Path(__file__).parent / "biology_questions.json"
CELLS_AT_ONCE, NEW_TOKENS = 32, 22
COST_FILE, WRITTEN = "real/pbmc68k_reduced_scanpy.h5ad", 48


@dataclass
class TestStudy:
    """Some cells of a study that no training has seen."""

    name: str
    cells: anndata.AnnData
    contexts: dict[str, list[str]] = field(default_factory=dict)

    @property
    def truth(self) -> np.ndarray:
        return self.cells.obs["cell_type"].astype(str).to_numpy()

    def write_contexts(self, loaded: LoadedModel) -> None:
        """With the genes that each cell raises in the study, and without."""
        genes = loaded.processor.gene_tokenizer
        features = {name: np.asarray(values) for name, values in genes(self.cells).items()}
        study, species = study_of(genes, features), genes.account["species"]
        num_measured = len(genes.measured_genes(self.cells))
        tissue = str(self.cells.obs["tissue"].iloc[0])
        for kind in ("genes", "no genes"):
            self.contexts[kind] = []
            for number in range(self.cells.n_obs):
                values = study.values[[number]]
                raised = raised_genes(study, values, 6) if kind == "genes" else []
                self.contexts[kind].append(cell_context(species, tissue, (values.nnz, num_measured), raised))


def read_studies(data: Path, recipe: Path, number: int, names: list[str], seed: int = 0) -> list[TestStudy]:
    parts = yaml.safe_load(recipe.read_text(encoding="utf-8"))["parts"]
    files = [study["file"] for study in next(part for part in parts if part["name"] == "test")["studies"]]
    studies = []
    for file in files:
        name = Path(file).stem
        if names and name not in names:
            continue
        cells = anndata.read_h5ad(data / file)
        chosen = np.random.default_rng(seed).permutation(cells.n_obs)[:number]
        studies.append(TestStudy(name, cells[np.sort(chosen)].copy()))
    return studies


@dataclass
class Judges:
    """What reads types off texts, and how far apart types are."""

    reader: ClaimReader
    tree: TypeTree


# ---- systems: what each says of each cell


def say(loaded: LoadedModel, prompts: list[str], tokens: torch.Tensor | None) -> list[str]:
    """What the model writes to prompts; each `<cell>` is filled with the tokens of its row."""
    texts: list[str] = []
    for start in range(0, len(prompts), CELLS_AT_ONCE):
        part = slice(start, start + CELLS_AT_ONCE)
        texts += Talks(loaded, None if tokens is None else tokens[part]).answers(prompts[part], NEW_TOKENS)
    return texts


def prompts_of(loaded: LoadedModel, contexts: list[str], with_cell: bool = True) -> list[str]:
    template = loaded.processor.apply_chat_template
    texts = [
        template(reading(QUESTION, [context]), add_generation_prompt=True, tokenize=False) for context in contexts
    ]
    return texts if with_cell else [text.replace(loaded.processor.cell_token, "A cell.") for text in texts]


@torch.inference_mode()
def systems(chat: LoadedModel, base: LoadedModel, study: TestStudy) -> dict[str, Callable[[], list[str]]]:
    genes = chat.processor.gene_tokenizer(study.cells, return_tensors="pt")
    tokens = chat.model.get_cell_tokens(**genes)
    others = np.random.default_rng(1).permutation(len(study.truth))
    blank = tokens.mean(0, keepdim=True).expand_as(tokens)
    with_genes, without = (prompts_of(chat, study.contexts[kind]) for kind in ("genes", "no genes"))
    plain = prompts_of(base, study.contexts["genes"], with_cell=False)
    return {
        "annotate": lambda: called_types(chat, study),
        "small decoder": lambda: small(study),
        "chat: cell tokens and genes": lambda: say(chat, with_genes, tokens),
        "cell tokens without genes": lambda: say(chat, without, tokens),
        "genes with blank tokens": lambda: say(chat, with_genes, blank),
        "genes with tokens of another cell": lambda: say(chat, with_genes, tokens[others]),
        "base LLM with genes as text": lambda: say(base, plain, None),
    }


def types_named(texts: list[str], reader: ClaimReader) -> list[str]:
    """The first type that each text names, "unknown" where it names none."""
    found = (next((term.label for _, _, term in reader.types_in(text)), "unknown") for text in texts)
    return list(found)


def figures(truth: np.ndarray, named: list[str], tree: TypeTree) -> dict[str, float]:
    meant = meant_types(np.array(named, object), sorted(set(truth)), tree, finer_counts=True)
    return {
        "accuracy": round(accuracy(truth, meant), 3),
        "macro_f1": round(macro_f1(truth, meant), 3),
        "hierarchical_f1": round(hierarchical_f1(truth, np.array(named, object), tree), 3),
    }


def naming(
    chat: LoadedModel, base: LoadedModel, studies: list[TestStudy], about: Judges, found: dict, wanted: list[str]
) -> Iterator[None]:
    """Fills `found` system by system, and yields after each: what is there already is not measured again."""
    for study in studies:
        study.write_contexts(chat)
        entry = found.setdefault(study.name, {"cells": study.cells.n_obs, "systems": {}})
        rows = entry["systems"]
        for name, write in systems(chat, base, study).items():
            if name in rows or (wanted and name not in wanted):
                continue
            texts = write()
            named = texts if name == "annotate" else types_named(texts, about.reader)
            rows[name] = figures(study.truth, named, about.tree)
            print(study.name, name, rows[name], flush=True)
            rows[name]["examples"] = [
                f"{truth}: {text}" for truth, text in zip(study.truth[:4], texts[:4], strict=True)
            ]
            yield


def called_types(chat: LoadedModel, study: TestStudy) -> list[str]:
    return list(scmmgpt.annotate(study.cells, model=chat, progress=False).obs["scmmgpt_cell_type"].astype(str))


def small(study: TestStudy) -> list[str]:
    described = scmmgpt.describe(study.cells, model=EMBEDDED_MODEL, max_new_tokens=24, progress=False)
    return list(described.obs["scmmgpt_description"].astype(str))


# ---- facts: what is printed, and what of another type is let pass


def facts(chat: LoadedModel, studies: list[TestStudy], tree: TypeTree) -> dict[str, Any]:
    """Descriptions of each source type as a cluster; its printed claims against the source's own labels."""
    from scmmgpt.api import Execution, Verb
    from scmmgpt.reading import check, descriptions, read_cells

    right = printed = raw = rejected = pairs = wrong_context = 0
    rows: list[dict[str, Any]] = []
    seconds = 0.0
    for study in studies:
        verb = Verb.begin("describe", study.cells, chat, Execution(progress=False), generative=True)
        names, groups = np.unique(study.truth, return_inverse=True)
        began = time.perf_counter()
        read = read_cells(verb, list(names), groups)
        texts = descriptions(read, 64)
        seconds += time.perf_counter() - began
        for group, (truth, text) in enumerate(zip(names, texts, strict=True)):
            checked = check(read, text, group)
            shown = [claim for claim in checked.claims if claim.verdict == "supported"]
            withheld = {claim.sentence for claim in checked.claims if claim.verdict == "contradicted"}
            shown = [claim for claim in shown if claim.sentence not in withheld]
            fits = [claim.kind != "type" or related(claim.subject, truth, tree) for claim in shown]
            right, printed, raw = right + sum(fits), printed + len(fits), raw + len(checked.claims)
            wrong_context += sum(
                claim.kind in ("species", "tissue") for claim in shown if claim.verdict != "supported"
            )
            for other in range(len(names)):
                if other != group and not related(read.labels[other], read.labels[group], tree):
                    verdicts = [claim.verdict for claim in check(read, checked.printed, other).claims]
                    if any(claim.kind == "type" for claim in shown):
                        pairs, rejected = pairs + 1, rejected + ("contradicted" in verdicts)
            row = {"study": study.name, "truth": truth, "called": read.labels[group], "raw": text}
            rows.append(row | {"printed": checked.printed})
    genes = [len({c for c in row["printed"].split() if c.strip(",.[]") in known_genes(chat)}) for row in rows]
    return {
        "clusters": len(rows),
        "fact_precision": round(right / max(printed, 1), 3),
        "printed_share_of_claims": round(printed / max(raw, 1), 3),
        "text_of_another_type_rejected": round(rejected / max(pairs, 1), 3),
        "pairs": pairs,
        "wrong_species_or_tissue_printed": wrong_context,
        "distinct_descriptions": len({row["raw"] for row in rows}),
        "genes_named_per_description": round(float(np.mean(genes)), 2),
        "seconds_per_cluster": round(seconds / len(rows), 2),
        "descriptions": rows,
    }


def known_genes(chat: LoadedModel) -> frozenset[str]:
    return frozenset(chat.processor.gene_tokenizer.genes)


def related(one: str, other: str, tree: TypeTree) -> bool:
    """The same type, or one above the other."""
    first, second = tree.lineage(one), tree.lineage(other)
    return one == other or bool(first and second and (first <= second or second <= first))


# ---- the language itself


@torch.inference_mode()
def knowledge(loaded: LoadedModel, questions: list[list[str]]) -> float:
    """The share of questions of school biology to which the right answer, the first, is the most probable of four."""
    right, tokenizer = 0, loaded.processor.tokenizer
    for question, *options in questions:
        chat = [{"role": "user", "content": f"{question} Answer in a few words."}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        scores = [
            answer_score(loaded, asked, tokenizer(option, add_special_tokens=False)["input_ids"]) for option in options
        ]
        right += int(np.argmax(scores) == 0)
    return round(right / len(questions), 3)


def answer_score(loaded: LoadedModel, asked: list[int], said: list[int]) -> float:
    """Mean log-probability of an answer's tokens."""
    ids = torch.tensor([asked + said])
    logits = loaded.model(input_ids=ids, logits_to_keep=len(said) + 1).logits[0, :-1].float()
    return -F.cross_entropy(logits, torch.tensor(said)).item()


# ---- what it costs


def cost_of_command(place: Path, data: Path) -> dict[str, Any]:
    """A description of all clusters of one file by the command.

    Before any model is loaded here: until it is another program, a process counts as large as the one it comes from.
    """
    file = data / COST_FILE
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "scmmgpt", "describe", str(file), "--output", str(Path(folder) / "out.h5ad")]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--cluster-key", "cell_type", "--model", str(place)], check=True, capture_output=True
        )
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "file": COST_FILE,
        "clusters": int(anndata.read_h5ad(file, backed="r").obs["cell_type"].nunique()),
        "seconds": round(seconds, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_megabytes": used.ru_maxrss // 1024,
    }


def speed_of_writing(chat: LoadedModel, data: Path) -> dict[str, Any]:
    """Tokens a second, several texts at once."""
    genes = chat.processor.gene_tokenizer(anndata.read_h5ad(data / COST_FILE)[:1], return_tensors="pt")
    prompts = prompts_of(chat, ["Species: human."]) * GROUPS_AT_ONCE
    with torch.inference_mode():
        tokens = chat.model.get_cell_tokens(**genes).expand(GROUPS_AT_ONCE, -1, -1)
    began = time.perf_counter()
    Talks(chat, tokens).answers(prompts, WRITTEN, min_new_tokens=WRITTEN)
    return {
        "tokens_per_second": round(GROUPS_AT_ONCE * WRITTEN / (time.perf_counter() - began), 1),
        "texts_at_once": GROUPS_AT_ONCE,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
    }


def main(
    data: Annotated[Path, typer.Option(envvar="SCMMGPT_DATA")],
    output: Path,
    recipe: Path = Path("training/recipes/eval_dev.yaml"),
    cells: int = 200,
    study: Annotated[list[str] | None, typer.Option(help="Only these; repeat it.")] = None,
    base: Annotated[Path | None, typer.Option(help="The base LLM; default: where it is found.")] = None,
    system: Annotated[list[str] | None, typer.Option(help="Only these; repeat it. Those measured stay.")] = None,
    part: Annotated[list[str] | None, typer.Option(help="naming, facts, knowledge, cost; default: all.")] = None,
) -> None:
    """Measure, and write or complete one JSON."""
    from scmmgpt.chat_model import ChatRepository, joined
    from scmmgpt.hub_cards import CHAT_MODEL

    parts = part or ["naming", "facts", "knowledge", "cost"]
    found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    began = time.perf_counter()
    place = assembled(base=base)
    found.setdefault("assembly_seconds", round(time.perf_counter() - began, 1))
    of_command = cost_of_command(place, data) if "cost" in parts else {}
    chat = load(place, device="cpu", generative=True)
    tree, reader = TypeTree(chat.ontology), ClaimReader(chat.ontology, frozenset(chat.processor.gene_tokenizer.genes))
    repository = ChatRepository(CHAT_MODEL)
    model, processor = joined(repository, repository.base.find(base), with_adapters=False)
    plain = LoadedModel("base", place, model, processor, torch.device("cpu"))
    studies = read_studies(data, recipe, cells, study or [])
    if "naming" in parts:
        judges, table = Judges(reader, tree), found.setdefault("naming", {})
        for _ in naming(chat, plain, studies, judges, table, system or []):
            write(output, found)
    if "facts" in parts:
        found["facts"] = facts(chat, studies, tree)
        write(output, found)
    if "knowledge" in parts:
        questions = json.loads(QUESTIONS.read_text(encoding="utf-8"))
        known = {"chat": knowledge(chat, questions), "base": knowledge(plain, questions)}
        found["knowledge"] = known | {"questions": len(questions)}
        write(output, found)
    if "cost" in parts:
        found["cost"] = of_command | speed_of_writing(chat, data)
    write(output, found)


def write(output: Path, found: dict[str, Any]) -> None:
    output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
