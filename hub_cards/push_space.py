"""Publish the page as a static Space: one commit, or nothing at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmmgpt.errors import UserError

from .push import _NAME, Changes, RemoteState, _api, _explained, _figures, _hashes
from .static_space import MODEL_FOLDER, MOST_BYTES, build_page

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from scmmgpt.loading import ModelSource

KIND, SDK = "space", "static"
# What makes a folder the page, and a Space one of ours.
MARKS = ("index.html", f"{MODEL_FOLDER}/manifest.json", "README.md")
_OF_THE_HUB = (".gitattributes", "README.md", "index.html", "style.css")


def push_page(
    repo_id: str,
    directory: str | os.PathLike | None = None,
    *,
    model: ModelSource = None,
    private: bool = False,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> dict[str, Any]:
    """Publish the page as one commit, and say what changed.

    Parameters
    ----------
    repo_id
        "org/name" of a Space. Created when it does not exist.
    directory
        A folder that `scmmgpt export page` wrote; None builds one first.
    model
        The model of a page that is built, see `build_page`.
    private, create_pr, dry_run, token
        As for `push`.
    """
    if not _NAME.fullmatch(repo_id):
        raise UserError(f"{repo_id!r} is not a repository name; give it as org/name.")
    if directory is not None and model is not None:
        raise UserError("A page that is built already has its model: leave out the folder or the model.")
    api = _api(token)
    if directory is not None:
        return _push(api, repo_id, Path(directory), private, create_pr, dry_run)
    with tempfile.TemporaryDirectory() as workshop:
        build_page(Path(workshop) / "page", model=model)
        return _push(api, repo_id, Path(workshop) / "page", private, create_pr, dry_run)


def check_page(directory: Path) -> dict[str, Path]:
    """{name on the Hub: local file} of a folder that is a page."""
    missing = [name for name in MARKS if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{str(directory)!r} is no page ({missing[0]} is missing): `scmmgpt export page` writes one.")
    files = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    size = sum(path.stat().st_size for path in files.values())
    if size > MOST_BYTES:
        raise UserError(f"The page has {size / 1e6:.0f} MB; {MOST_BYTES / 1e6:.0f} MB is the most.")
    return files


def _push(api: HfApi, repo_id: str, directory: Path, private: bool, create_pr: bool, dry_run: bool) -> dict[str, Any]:
    files = check_page(directory)
    state = _explained(lambda: _remote_state(api, repo_id), repo_id)
    _check_target(repo_id, state, private)
    changes = _changes(_hashes(files), state)
    figures = _figures(repo_id, None, files, changes)
    if dry_run:
        return figures | {"dry_run": True}
    if not changes:
        note = "Nothing to publish: the Hub already holds exactly these files."
        return figures | {"commit": state.head, "note": note}
    if state.head is None:
        _explained(
            lambda: api.create_repo(repo_id, repo_type=KIND, space_sdk=SDK, private=private, exist_ok=True), repo_id
        )
        state = _explained(lambda: _remote_state(api, repo_id), repo_id)
        changes = _changes(_hashes(files), state)
    return figures | _explained(lambda: _commit(api, repo_id, files, changes, state, create_pr), repo_id, attempts=1)


def _remote_state(api: HfApi, repo_id: str) -> RemoteState:
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(repo_id, repo_type=KIND)
    except RepositoryNotFoundError:
        return RemoteState()
    entries = api.list_repo_tree(repo_id, recursive=True, repo_type=KIND, revision=info.sha)
    tree = [entry for entry in entries if isinstance(entry, RepoFile)]
    hashes = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree}
    return RemoteState(True, bool(info.private), info.sha, hashes)


def _check_target(repo_id: str, state: RemoteState, private: bool) -> None:
    """Refuse a Space that is something else, and a public place for a private page."""
    if private and state.exists and not state.private:
        raise UserError(f"{repo_id!r} exists and is public: choose another name, or make it private on the Hub first.")
    others = sorted(set(state.hashes) - set(_OF_THE_HUB))
    if others and not set(MARKS) <= set(state.hashes):
        raise UserError(f"{repo_id!r} is another Space ({', '.join(others[:3])}); choose another name.")


def _changes(local: dict[str, tuple[str, str]], state: RemoteState) -> Changes:
    """Every file that the page no longer has is deleted: scripts carry a new name with each build."""
    changes = Changes.between(local, state.hashes)
    changes.deleted = sorted(state.hashes.keys() - local.keys() - {".gitattributes"})
    return changes


def _commit(
    api: HfApi, repo_id: str, files: dict[str, Path], changes: Changes, state: RemoteState, create_pr: bool
) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    additions = [CommitOperationAdd(name, files[name]) for name in changes.added + changes.changed]
    info = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name) for name in changes.deleted)],
        commit_message="Publish the page with scmmgpt",
        repo_type=KIND,
        create_pr=create_pr,
        parent_commit=state.head,
    )
    return {"commit": info.oid, "url": info.pr_url or f"{api.endpoint}/spaces/{repo_id}"}
