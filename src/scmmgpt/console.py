"""What the shell command says and how it ends: results on stdout, one short reason on stderr, an exit code."""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FINE, OUR_FAULT, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130
_MAX_LINES, _MAX_WIDTH = 6, 400
_WIDEST_COLUMN = 40  # wider texts are folded


def run_to_exit_code(command: Callable[[], Any], *, debug: bool = False) -> int:
    """Run a command and say why when it fails: 0 fine, 1 our fault, 2 the user's mistake, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a label that the terminal cannot spell ends no run
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        code = _run(command, debug)
    if code == FINE:
        _print_warnings(caught)
    return code


def _run(command: Callable[[], Any], debug: bool) -> int:
    import typer

    try:
        code = command()
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else FINE
    except (KeyboardInterrupt, typer.Abort):
        return _fail("Interrupted. The same command goes on where this one stopped.", INTERRUPTED, debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader, such as `head`, has seen enough
        return FINE
    except typer.exceptions.TyperException as error:
        return _fail(getattr(error, "format_message", error.__str__)(), USERS_MISTAKE, debug)
    except Exception as error:  # the last line of defence: no traceback unless asked for
        return _fail_because_of(error, debug)


def _fail_because_of(error: Exception, debug: bool) -> int:
    # Here: `--help` answers before transformers could be loaded.
    from .atomic_files import is_no_room
    from .errors import MissingExtraError, UserError, first_line

    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("scmmgpt"):
        error = MissingExtraError(error.name)
    if isinstance(error, UserError):
        return _fail(str(error), USERS_MISTAKE, debug)
    if is_no_room(error):
        return _fail(
            f"No space is left on the disk ({first_line(error)}); make room and run it again.", USERS_MISTAKE, debug
        )
    if isinstance(error, MemoryError):
        message = f"There is not enough memory ({first_line(error)}): end other programs, or give the cells in smaller files."
        return _fail(message, USERS_MISTAKE, debug)
    reason = f"{type(error).__name__}: {error}"
    message = f"This is an error of scmmgpt, not yours. {reason}\nAdd --debug to see where it happened."
    return _fail(message, OUR_FAULT, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = [line[:_MAX_WIDTH] for line in f"scmmgpt: {message}".splitlines() if line.strip()]
    print(*lines[:_MAX_LINES], sep="\n", file=sys.stderr)  # noqa: T201
    return code


def _print_warnings(caught: Iterable[warnings.WarningMessage]) -> None:
    messages = dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
    for message in messages:
        print(f"warning: {message}", file=sys.stderr)  # noqa: T201


def say(result: dict[str, Any], *, as_json: bool, lines: Iterable[str] = ()) -> None:
    """The result of a verb: as one JSON object, or as the lines written for people."""
    if as_json:
        print(_json(result))  # noqa: T201
        return
    from rich.console import Console

    for line in lines:
        Console(highlight=False, soft_wrap=True).print(line, markup=False)


def say_table(rows: list[dict[str, Any]], *, as_json: bool, most: int | None = None) -> None:
    """Rows as a table, of which people are shown `most` and told how many more there are, or as a JSON list."""
    if as_json:
        print(_json(rows))  # noqa: T201
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    texts = [{name: _short(value) for name, value in row.items()} for row in rows[:most]]
    shown = _columns_that_fit(texts, console.width)
    table = Table(*shown)
    for row in texts:
        table.add_row(*(Text(row[name]) for name in shown))
    console.print(table)
    if len(texts) < len(rows):
        console.print(f"and {len(rows) - len(texts)} more, which --json lists", markup=False)
    if texts and len(shown) < len(texts[0]):
        left_out = ", ".join(name for name in texts[0] if name not in shown)
        console.print(f"Not shown here, but with --json: {left_out}", markup=False)


def named_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table of cells with their names as `cell`, whatever columns of that name the table has."""
    return table.rename(columns={"cell": "obs_cell"}).reset_index(names="cell").to_dict("records")


def _json(value: Any) -> str:
    """JSON knows no NaN."""
    return json.dumps(json.loads(json.dumps(value, default=str), parse_constant=lambda _: None))


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _columns_that_fit(rows: list[dict[str, str]], width: int) -> list[str]:
    """The first columns, and of the others those that are narrow enough to be read beside them."""
    shown: list[str] = []
    for name in rows[0] if rows else ():
        widest = max(len(text) for text in (name, *(row[name] for row in rows)))
        needed = min(widest, _WIDEST_COLUMN) + len(" | ")
        if len(shown) < 2 or needed < width:
            shown.append(name)
            width -= needed
    return shown


def say_outcome(outcome: Any, place: Path | str, as_json: bool) -> None:
    """What a verb that lives elsewhere returned: a mapping of figures, or nothing."""
    figures = dict(outcome) if isinstance(outcome, dict) else {}
    say({"output": str(place)} | figures, as_json=as_json, lines=[*pairs(figures), f"Done: {place}"])


def pairs(figures: dict[str, Any]) -> list[str]:
    """One line for each figure."""
    return [f"{name}: {value}" for name, value in figures.items()]
