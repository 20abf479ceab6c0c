"""What `benchmarks/page.py` measured, as the tables of a page."""

from scmmgpt.training.evaluation.results_table import markdown


def browser_tables(report: dict) -> str:
    """The page in Chromium: size and requests, time and memory, equality with Python."""
    size, timed = report["size"], [report[name] for name in ("seconds", "memory") if name in report]
    moved, schemes = report["smooth"], [report["readable"][scheme] for scheme in ("light", "dark")]
    lowest = [min(one[f"lowest_of_{what}"] for one in schemes) for what in ("text", "parts")]
    first = [
        ["built, by the processor", f"{report['build']['cpu_s']} s"],
        ["the whole page", f"{size['bytes'] / 1e6:.1f} MB in {size['files']} files"],
        ["first paint, from a local server", f"{size['first_paint_ms']} ms"],
        ["requests after the page has loaded, through a whole visit", str(len(size["requests_after"]))],
        ["lowest contrast of text (4.5 is asked) and of controls and colours (3)", "{} and {}".format(*lowest)],
        [
            f"a map of {moved['points']:,} points moved without a GPU, load {moved['load_average']:.1f}",
            f"{moved['frames_per_second']} frames a second of {moved['points_in_motion']:,} points, "
            f"{moved['cpu_ms_per_frame']:.0f} ms of the processor each",
        ],
    ]
    header = ["opened and named", "clock", "processor", "largest process", "before the file", "load of the machine"]
    second = [
        [
            f"{row['cells']:,} cells x {row['genes']:,} genes, {row['entries'] / 1e6:.1f} million entries",
            f"{row['wall_s']:.0f} s",
            f"{row['cpu_s']:.0f} s",
            f"{row['peak_mb']:,.0f} MB",
            f"{row['peak_before_mb']:,.0f} MB",
            f"{row['load_average']:.1f}",
        ]
        for row in timed
    ]
    ways = "default", "own labels"
    third = [
        [
            row["file"],
            f"{row['cells']:,} x {row['genes']:,}",
            f"{row['lowest_cosine']:.7f}",
            *(_share(row.get(f"same_{name}, {way}")) for way in ways for name in ("cell_type", "candidates")),
        ]
        for row in report.get("equality", [])
    ]
    titles = [
        "file",
        "cells x genes",
        "lowest cosine",
        *(f"same {n}, {way}" for way in ways for n in ("names", "sets")),
    ]
    tables = [markdown(["", ""], first, num_left=2), markdown(header, second, num_left=1)]
    tables += [markdown(titles, third, num_left=1)] * bool(third)
    about = report["machine"]
    where = f"Headless Chromium on {about['processor']}, {about['cores']} cores, {about['date']}."
    return "\n\n".join([*tables, where, *([report["note"]] if "note" in report else [])])


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"
