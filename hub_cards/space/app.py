"""The Space: upload cells, see their names on a map, select, describe, compare, chat, search, generate, download."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

sys.path.insert(0, str(Path(__file__).resolve().parent))
from session import MAX_CELLS, MAX_GENERATED, MAX_UPLOAD_MB, Session

import scmmgpt

HERE = Path(__file__).resolve().parent
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
INTRODUCTION = f"""# Single cells and language
Name the cells of an h5ad, look at them on a map, and ask about them. Up to {MAX_CELLS:,} cells and {MAX_UPLOAD_MB} MB;
your cells are seen by nobody else and deleted when you leave.
"""
UNTRAINED = "> **The weights of this model are untrained**: its names and texts mean nothing yet."
MAP_HINT = "Click a cell, or draw around several. Dark rings or full colour: selected; orange rings: found by search."
TABLE: dict[str, Any] = {"interactive": False, "show_label": False, "wrap": True}
TYPES = ["type", "cells", "median confidence"]


@contextmanager
def told() -> Iterator[None]:
    """What a person did wrong is shown to that person."""
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise gr.Error(str(error), duration=15, print_exception=False) from error


@told()
def open_file(path: str | None, session: Session) -> tuple[Any, ...]:
    if path is None:
        return session, {}, "Upload a file or take the sample."
    session.open_file(path)
    return _opened(session)


@told()
def open_sample(session: Session) -> tuple[Any, ...]:
    session.open_sample()
    return _opened(session)


def _opened(session: Session) -> tuple[Any, ...]:
    return (
        session,
        session.points(),
        f"{session.cells.n_obs:,} cells x {session.cells.n_vars:,} genes. Now annotate them.",
    )


@told()
def annotate(labels: str, min_confidence: float, session: Session) -> tuple[Any, ...]:
    rows = session.annotate(labels, min_confidence)
    return session, session.points(), rows, f"{session.cells.n_obs:,} cells named; different names: {len(rows)}."


@told()
def select(session: Session, event: gr.EventData) -> tuple[Any, ...]:
    line = session.select(event.cells)
    return session, session.points(), line


@told()
def describe(session: Session) -> str:
    return session.describe()


@told()
def compare(session: Session) -> list[list[Any]]:
    return session.compare()


def chat(question: str, history: list[dict], session: Session) -> Iterator[tuple[Any, ...]]:
    turns = [*history, {"role": "user", "content": question}]
    with told():
        for answer in session.chat(question):
            yield [*turns, {"role": "assistant", "content": answer}], "", session


@told()
def search(text: str, session: Session) -> tuple[Any, ...]:
    rows = session.search(text)
    return session, session.points(), rows


@told()
def generate(text: str, num_cells: int, seed: int, session: Session) -> tuple[Any, ...]:
    summary, path = session.generate(text, num_cells, seed)
    return summary, gr.DownloadButton("Download the pseudo-cells (h5ad)", value=path, interactive=True)


@told()
def download(session: Session) -> tuple[Any, ...]:
    cells, report = session.write_results()
    return gr.File(value=[cells, report], visible=True)


def _data_panel() -> dict[str, Any]:
    parts = {"upload": gr.File(label="Cells (.h5ad)", file_types=[".h5ad"], type="filepath", height=150)}
    parts["sample"] = gr.Button("Take the sample: 700 blood cells", elem_id="sample")
    parts["labels"] = gr.Textbox(
        label="Labels, one a line",
        placeholder="Empty: the types that the model was trained on",
        lines=3,
        elem_id="labels",
    )
    parts["confidence"] = gr.Slider(0, 1, value=0.3, step=0.05, label="Least confidence; below it a name backs off")
    parts["annotate"] = gr.Button("Annotate", variant="primary", elem_id="annotate")
    parts["status"] = gr.Markdown("Upload a file or take the sample.", elem_id="status")
    return parts


def _map_panel() -> dict[str, Any]:
    scatter = gr.HTML(
        value={},
        html_template='<canvas aria-label="Map of the cells"></canvas><div class="legend"></div>',
        css_template=(HERE / "scatter.css").read_text(encoding="utf-8"),
        js_on_load=(HERE / "scatter.js").read_text(encoding="utf-8"),
        elem_id="map",
    )
    return {"map": scatter, "selection": gr.Markdown(MAP_HINT, elem_id="selection")}


def _answer_tabs() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Tab("Names"):
        parts["types"] = gr.Dataframe(headers=TYPES, elem_id="types", column_widths=["50%", "18%", "32%"], **TABLE)
    with gr.Tab("Selected cells"):
        with gr.Row():
            parts["describe"] = gr.Button("Describe", elem_id="describe")
            parts["compare"] = gr.Button("Compare with the rest", elem_id="compare")
        parts["description"] = gr.Markdown(elem_id="description")
        headers = ["gene", "% of the selected", "% of the rest"]
        parts["genes"] = gr.Dataframe(headers=headers, elem_id="genes", column_widths=["40%", "30%", "30%"], **TABLE)
    with gr.Tab("Chat"):
        parts["chat"] = gr.Chatbot(label="About the most typical of the selected cells", height=280, elem_id="chat")
        parts["question"] = gr.Textbox(label="Question", placeholder="What type of cell is this?", elem_id="question")
    with gr.Tab("Search"):
        parts["query"] = gr.Textbox(label="Look for", placeholder="cells that make antibodies", elem_id="query")
        parts["search"] = gr.Button("Search", elem_id="search")
        headers = ["cell", "type", "score"]
        parts["hits"] = gr.Dataframe(headers=headers, elem_id="hits", column_widths=["40%", "40%", "20%"], **TABLE)
    with gr.Tab("Generate"):
        parts["wish"] = gr.Textbox(label="Make cells like", value="a B cell from blood", elem_id="wish")
        with gr.Row():
            parts["number"] = gr.Slider(1, MAX_GENERATED, value=50, step=1, label="Cells")
            parts["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0)
        parts["generate"] = gr.Button("Generate", elem_id="generate")
        parts["summary"] = gr.Markdown(elem_id="summary")
        parts["made"] = gr.DownloadButton("Download the pseudo-cells (h5ad)", interactive=False, elem_id="made")
    with gr.Tab("Download"):
        parts["download"] = gr.Button("Prepare the annotated cells and the report", elem_id="download")
        parts["files"] = gr.File(visible=False, label="Your files", elem_id="files")
    return parts


def build(model: str | None = None) -> gr.Blocks:
    """The page around a model: a directory, a Hub repository, or None for the model that comes with the package."""
    loaded = scmmgpt.load(model, generative=True)
    with gr.Blocks(title="Single cells and language", delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION + ("" if loaded.training_summary else UNTRAINED))
        session = gr.State(None, time_to_live=3600, delete_callback=lambda value: value and value.close())
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                parts = _data_panel()
            with gr.Column(scale=2, min_width=320):
                parts |= _map_panel()
        parts |= _answer_tabs()
        # Not as the state's first value: that would be copied, model and all, for every visitor.
        page.load(lambda: Session(loaded), None, session)
        _wire(parts, session)
    return page


def _wire(parts: dict[str, Any], session: gr.State) -> None:
    opened = [session, parts["map"], parts["status"]]
    parts["upload"].upload(open_file, [parts["upload"], session], opened, **ONE_AT_A_TIME)
    parts["sample"].click(open_sample, [session], opened, **ONE_AT_A_TIME)
    named = [session, parts["map"], parts["types"], parts["status"]]
    parts["annotate"].click(annotate, [parts["labels"], parts["confidence"], session], named, **ONE_AT_A_TIME)
    chosen = [session, parts["map"], parts["selection"]]
    parts["map"].select(select, [session], chosen, show_progress="hidden")
    parts["describe"].click(describe, [session], [parts["description"]], **ONE_AT_A_TIME)
    parts["compare"].click(compare, [session], [parts["genes"]], **ONE_AT_A_TIME)
    said = [parts["chat"], parts["question"], session]
    parts["question"].submit(chat, [parts["question"], parts["chat"], session], said, **ONE_AT_A_TIME)
    found = [session, parts["map"], parts["hits"]]
    for event in (parts["search"].click, parts["query"].submit):
        event(search, [parts["query"], session], found, **ONE_AT_A_TIME)
    wish = [parts["wish"], parts["number"], parts["seed"], session]
    parts["generate"].click(generate, wish, [parts["summary"], parts["made"]], **ONE_AT_A_TIME)
    parts["download"].click(download, [session], [parts["files"]], **ONE_AT_A_TIME)


def main() -> None:
    page = build(os.environ.get("SCMMGPT_MODEL"))
    # White on the default orange, or on a lighter blue, is hard to read.
    darker = {"button_primary_background_fill": "*primary_600", "button_primary_background_fill_hover": "*primary_700"}
    theme = gr.themes.Default(primary_hue="blue").set(**darker)
    page.queue(max_size=32).launch(max_file_size=f"{MAX_UPLOAD_MB}mb", show_error=True, theme=theme)


if __name__ == "__main__":
    main()
