"""Publish a model directory on the Hub: checked first, then everything in one commit, or nothing at all."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scmmgpt.errors import UserError

from .repository_check import check_repository

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 4
FIRST_WAIT = 1.0  # seconds; doubled with each attempt
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What a loader would read, and must therefore vanish from the Hub when the directory no longer holds it.
_STALE_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".py")
_TEXT_SUFFIXES = (".json", ".md", ".py", ".txt", ".jinja")
_MAX_DIFF_LINES = 40


@dataclass
class RemoteState:
    """What the Hub holds under a name, before anything is sent."""

    exists: bool = False
    private: bool = False
    head: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass
class Changes:
    """How the Hub's files will differ after the commit."""

    added: list[str]
    changed: list[str]
    deleted: list[str]
    unchanged: list[str]

    @classmethod
    def between(cls, local: dict[str, tuple[str, str]], remote: dict[str, str]) -> Changes:
        """From {path: hashes} here to {path: hash} there."""
        both = local.keys() & remote.keys()
        return cls(
            added=sorted(local.keys() - both),
            changed=sorted(path for path in both if remote[path] not in local[path]),
            deleted=sorted(path for path in remote.keys() - both if path.endswith(_STALE_SUFFIXES)),
            unchanged=sorted(path for path in both if remote[path] in local[path]),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.deleted)


def push(
    directory: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
) -> dict[str, Any]:
    """Publish a model directory as one commit, and say what changed.

    Parameters
    ----------
    directory
        A complete Hub repository, as `scmmgpt.hub_cards.export.export` writes it.
    repo_id
        "org/name". Created when it does not exist.
    private
        Create the repository so that only its owners see it. A public one is never filled by mistake.
    revision
        The branch; created when it does not exist. None is `main`.
    create_pr
        Propose the commit as a pull request instead of making it.
    dry_run
        Say what would change, and change nothing.
    token
        A Hub token that may write; None takes the one of `hf auth login` or HF_TOKEN.
    """
    files = check_repository(Path(directory))
    if not _NAME.fullmatch(repo_id):
        raise UserError(f"{repo_id!r} is not a repository name; give it as org/name.")
    if create_pr and revision not in (None, "main"):
        raise UserError("A pull request always goes to `main`: give `create_pr` or `revision`, not both.")
    api = _api(token)
    state = _explained(lambda: _remote_state(api, repo_id, revision), repo_id)
    _check_target(api, Path(directory), repo_id, state, private)
    hashes = _hashes(files)
    changes = Changes.between(hashes, state.hashes)
    figures = _figures(repo_id, revision, files, changes)
    if dry_run:
        diff = _explained(lambda: _text_diff(api, repo_id, state, files, changes), repo_id)
        return figures | {"dry_run": True, "diff": diff}
    if not changes:
        return figures | {
            "commit": state.head,
            "note": "Nothing to publish: the Hub already holds exactly these files.",
        }
    head = _explained(lambda: _place_on_hub(api, repo_id, state.head, private, revision), repo_id)
    # A second try after a lost answer would open a second pull request.
    attempts = 1 if create_pr else ATTEMPTS
    return figures | _explained(
        lambda: _commit(api, repo_id, files, hashes, head, revision, create_pr), repo_id, attempts=attempts
    )


def lines_of(outcome: dict[str, Any]) -> list[str]:
    """What `push` returned, for a person to read."""
    signs = {"added": "+", "changed": "~", "deleted": "-"}
    lines = [f"{sign} {name}" for kind, sign in signs.items() for name in outcome[kind]]
    lines += outcome.get("diff", [])
    lines.append(f"{outcome['unchanged']} files unchanged, {outcome['megabytes']} MB new")
    if outcome.get("dry_run"):
        return [*lines, "Nothing was published: this was a dry run."]
    return [*lines, outcome.get("note") or f"Published: {outcome['url']}"]


def _api(token: str | None) -> HfApi:
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise UserError("There is no Hugging Face token: run `hf auth login`, or set HF_TOKEN, and push again.")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


def _remote_state(api: HfApi, repo_id: str, revision: str | None) -> RemoteState:
    from huggingface_hub import RepoFile
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repo_id)
    except RepositoryNotFoundError:
        return RemoteState()
    try:
        head = api.model_info(repo_id, revision=revision).sha if revision else info.sha
    except RevisionNotFoundError:
        head = info.sha  # a new branch starts from main
    entries = api.list_repo_tree(repo_id, recursive=True, revision=head)
    tree = [entry for entry in entries if isinstance(entry, RepoFile)]
    hashes = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree}
    return RemoteState(True, bool(info.private), head, hashes)


def _check_target(api: HfApi, directory: Path, repo_id: str, state: RemoteState, private: bool) -> None:
    """Refuse a name that is taken by something else, and a public place for a private model."""
    if not state.exists:
        return
    if private and not state.private:
        raise UserError(f"{repo_id!r} exists and is public: choose another name, or make it private on the Hub first.")
    is_adapter = (directory / "adapter_config.json").is_file()
    marker = "adapter_config.json" if is_adapter else "config.json"
    content = [path for path in state.hashes if path not in (".gitattributes", "README.md", "LICENSE")]
    if not content:
        return
    if marker not in state.hashes:
        raise UserError(f"{repo_id!r} is not empty ({', '.join(content[:3])}); choose another name.")
    remote = json.loads(_explained(lambda: _read_remote(api, repo_id, state.head, marker), repo_id))
    name = "peft_type" if is_adapter else "model_type"
    here = json.loads((directory / marker).read_text(encoding="utf-8")).get(name)
    if remote.get(name) != here:
        raise UserError(
            f"{repo_id!r} holds another architecture ({name} {remote.get(name)!r}, here {here!r}); choose another name."
        )


def _read_remote(api: HfApi, repo_id: str, revision: str | None, path: str) -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import get_session, hf_raise_for_status

    url = hf_hub_url(repo_id, path, revision=revision, endpoint=api.endpoint)
    response = get_session().get(url, headers={"Authorization": f"Bearer {api.token}"}, follow_redirects=True)
    hf_raise_for_status(response)
    return response.content


def _hashes(files: dict[str, Path]) -> dict[str, tuple[str, str]]:
    """The hashes by which the Hub may know each file: git's, and that of its large file storage."""
    hashes = {}
    for name, path in files.items():
        git, lfs = hashlib.sha1(b"blob %d\0" % path.stat().st_size), hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                git.update(block)
                lfs.update(block)
        hashes[name] = (git.hexdigest(), lfs.hexdigest())
    return hashes


def _figures(repo_id: str, revision: str | None, files: dict[str, Path], changes: Changes) -> dict[str, Any]:
    sent = changes.added + changes.changed
    return {
        "repository": repo_id,
        "revision": revision or "main",
        "added": changes.added,
        "changed": changes.changed,
        "deleted": changes.deleted,
        "unchanged": len(changes.unchanged),
        "megabytes": round(sum(files[name].stat().st_size for name in sent) / 1e6, 2),
    }


def _text_diff(api: HfApi, repo_id: str, state: RemoteState, files: dict[str, Path], changes: Changes) -> list[str]:
    """Changed lines of the changed text files, as `diff -u` writes them."""
    lines = []
    for name in [name for name in changes.changed if name.endswith(_TEXT_SUFFIXES)]:
        before = _read_remote(api, repo_id, state.head, name).decode(errors="replace").splitlines()
        after = files[name].read_text(encoding="utf-8").splitlines()
        diff = list(difflib.unified_diff(before, after, f"hub/{name}", f"here/{name}", lineterm="", n=1))
        left_out = len(diff) - _MAX_DIFF_LINES
        lines += diff[:_MAX_DIFF_LINES] + ([f"... {left_out} more lines of {name}"] if left_out > 0 else [])
    return lines


def _place_on_hub(api: HfApi, repo_id: str, head: str | None, private: bool, revision: str | None) -> str | None:
    """The head to commit on, after making the repository and the branch where they are missing."""
    if head is None:
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = _remote_state(api, repo_id, revision).head
    if revision and revision != "main":
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    return head


def _commit(
    api: HfApi,
    repo_id: str,
    files: dict[str, Path],
    hashes: dict[str, tuple[str, str]],
    expected_head: str | None,
    revision: str | None,
    create_pr: bool,
) -> dict[str, Any]:
    """Make everything visible in one commit on the head that was looked at, never on somebody else's work.

    An answer that got lost is told from a commit that got lost by looking at the Hub again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    state = _remote_state(api, repo_id, revision)
    changes = Changes.between(hashes, state.hashes)
    if not changes:
        return {"commit": state.head, "url": f"{api.endpoint}/{repo_id}"}
    if state.head != expected_head:
        raise UserError(f"{repo_id!r} was changed by somebody else just now; look at it and push again.")
    additions = [CommitOperationAdd(name, files[name]) for name in changes.added + changes.changed]
    info = api.create_commit(
        repo_id,
        [*additions, *(CommitOperationDelete(name) for name in changes.deleted)],
        commit_message="Publish with scmmgpt",
        revision=None if create_pr else revision,
        create_pr=create_pr,
        parent_commit=state.head,
    )
    return {"commit": info.oid, "url": info.pr_url or f"{api.endpoint}/{repo_id}"}


def _root_of(error: BaseException) -> BaseException:
    """huggingface_hub wraps what happens to a large file into a RuntimeError."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_passing(error: BaseException) -> bool:
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return False
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500 and status != 507
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError))


def _explained(action: Callable[[], Any], repo_id: str, attempts: int = ATTEMPTS) -> Any:
    """The action's result, tried again when the network or the Hub stumbles; else what the Hub objects in one line."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    wait = FIRST_WAIT
    while True:
        attempts -= 1
        try:
            return action()
        except UserError:
            raise
        except (HTTPError, OfflineModeIsEnabled, OSError, RuntimeError, ValueError) as error:
            cause = _root_of(error)
            if not attempts or not _is_passing(cause):
                raise UserError(_reason(cause, repo_id)) from error
        time.sleep(wait)
        wait *= 2


def _reason(error: BaseException, repo_id: str) -> str:
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    status, said = _status(error), _said_by_hub(error)
    untouched = "Nothing was published."
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set: unset it to push. {untouched}"
    if re.search(r"quota|storage limit|payment required", said, re.IGNORECASE) or status in (402, 413, 507):
        return f"There is no room left for {repo_id!r} on the Hub: {said} {untouched}"
    if status == 401:
        return f"The Hub does not accept this token: run `hf auth login` with a valid one. {untouched}"
    if status == 403:
        return f"This token may not write to {repo_id!r}: {said} Use one with write permission. {untouched}"
    if status == 412:
        return f"{repo_id!r} was changed by somebody else just now; look at it and push again. {untouched}"
    if status is not None:
        return f"The Hub refused {repo_id!r} with status {status}: {said} {untouched}"
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        kind = type(error).__name__
        return f"The connection to the Hub was lost ({kind}). {untouched} Push again to go on."
    return f"The Hub did not take {repo_id!r}: {said} {untouched}"


def _said_by_hub(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or (str(error).strip().splitlines() or [""])[-1]
    return f"{said.strip().rstrip('.')}."
