"""`scmmgpt describe` and `scmmgpt chat`: what a language model says about cells."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .cli_options import AsJson, BatchSize, Cells, ClusterKey, Device, KeyAdded, Model, Output, Overwrite
from .console import say

Server = Annotated[
    str | None,
    typer.Option(
        help="An OpenAI-compatible server nearby whose model answers instead, such as http://localhost:8080."
    ),
]
ServerModel = Annotated[str, typer.Option(help="The name of its model; default: the first that it offers.")]
Unchecked = Annotated[bool, typer.Option("--unchecked", help="Show also what the cells contradict.")]


def describe(
    cells: Cells,
    output: Output,
    model: Model = None,
    cluster_key: ClusterKey = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The greatest length of a description.")] = 64,
    unchecked: Unchecked = False,
    server: Server = None,
    server_model: ServerModel = "",
    key_added: KeyAdded = "scmmgpt",
    overwrite: Overwrite = False,
    device: Device = None,
    batch_size: BatchSize = None,
    json: AsJson = False,
) -> None:
    """Write a description of each cell or cluster by the language model; its claims are checked in the cells."""
    from . import api
    from .processing.result_keys_scmmgpt import ResultKeys

    about: dict[str, Any] = {"model": model, "cluster_key": cluster_key, "checked": not unchecked}
    if server is not None:
        from .llm_server import LlmServer, describe_by_server
        from .verb import Destination, Execution

        where: dict[str, Any] = {"destination": Destination(output, key_added, overwrite)}
        where["execution"] = Execution(device, batch_size)
        adata = describe_by_server(cells, LlmServer(server, server_model), **about, **where)
    else:
        how: dict[str, Any] = {"key_added": key_added, "overwrite": overwrite, "device": device}
        how |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        adata = api.describe(cells, output=output, **about, **how)
    texts = adata.obs[ResultKeys(key_added).description].astype(str)
    first = dict(zip(adata.obs_names[:5], texts[:5], strict=True))
    result = {"output": str(output), "cells": adata.n_obs, "distinct": int(texts.nunique()), "first": first}
    lines = [*(f"{name}: {text}" for name, text in first.items()), f"{adata.n_obs} descriptions written to {output}"]
    say(result, as_json=json, lines=lines)


def chat(
    cells: Cells,
    model: Model = None,
    cluster_key: ClusterKey = None,
    select: Annotated[list[str] | None, typer.Option(help="A cell or cluster to talk about; repeat it.")] = None,
    ask: Annotated[list[str] | None, typer.Option(help="A question; repeat it. Default: talk at a prompt.")] = None,
    unchecked: Unchecked = False,
    server: Server = None,
    server_model: ServerModel = "",
    device: Device = None,
    json: AsJson = False,
) -> None:
    """Talk about cells or clusters; earlier turns are kept."""
    from . import api
    from .conversation import talk_at_the_terminal
    from .errors import UserError

    about: dict[str, Any] = {"cluster_key": cluster_key, "select": select, "checked": not unchecked}
    if any(not question.strip() for question in ask or ()):
        raise UserError("The question is empty: give --ask some words.")
    conversation: Any
    if server is not None:
        from .llm_server import LlmServer, converse

        conversation = converse(cells, LlmServer(server, server_model), ask, **about, model=model, device=device)
    else:
        conversation = api.chat(cells, **about, model=model, device=device)
    if not ask:
        talk_at_the_terminal(conversation)
        return
    turns = [{"question": question, "answer": conversation.ask(question)} for question in ask]
    say({"turns": turns}, as_json=json, lines=(turn["answer"] for turn in turns))
