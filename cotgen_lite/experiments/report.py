"""The tables of what was found, read from the result files: on the terminal, in the README and in chapter 11.

The paper's own numbers stand here (`PAPER`, `JANUS`), and how a method is called (`LABELS`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cotgen_lite.experiments.findings import FINDINGS, findings
from cotgen_lite.experiments.results import read_json, read_scores
from cotgen_lite.hub import write_atomically
from cotgen_lite.prompts import TAGS

# GenEval accuracy by tag and overall, N = 20, 18 steps (paper, tables 1 to 3).
PAPER = {
    "baseline": (0.95, 0.52, 0.49, 0.82, 0.11, 0.28, 0.53),
    "zs-orm": (0.99, 0.63, 0.63, 0.84, 0.19, 0.39, 0.61),
    "ft-orm": (0.99, 0.72, 0.65, 0.84, 0.25, 0.33, 0.63),
    "zs-prm": (0.98, 0.51, 0.54, 0.82, 0.11, 0.23, 0.53),
    "ft-prm": (0.98, 0.55, 0.54, 0.83, 0.13, 0.29, 0.55),
    "parm": (0.99, 0.77, 0.68, 0.86, 0.29, 0.45, 0.67),
    "dpo": (0.96, 0.70, 0.50, 0.82, 0.30, 0.43, 0.62),
    "it-dpo": (0.98, 0.72, 0.53, 0.84, 0.40, 0.46, 0.65),
    "it-dpo-guided-orm": (0.98, 0.78, 0.44, 0.81, 0.50, 0.48, 0.67),
    "it-dpo+zs-orm": (0.99, 0.79, 0.63, 0.85, 0.44, 0.50, 0.70),
    "it-dpo+ft-orm": (0.98, 0.80, 0.62, 0.83, 0.59, 0.54, 0.72),
    "it-dpo+parm": (0.98, 0.83, 0.64, 0.84, 0.59, 0.62, 0.74),
    "it-dpo-guided-orm+ft-orm": (0.98, 0.84, 0.64, 0.85, 0.66, 0.52, 0.75),
    "it-dpo-guided-parm": (0.97, 0.75, 0.60, 0.83, 0.54, 0.53, 0.69),
    "it-dpo-guided-parm+parm": (0.99, 0.86, 0.67, 0.84, 0.66, 0.64, 0.77),
    "self-correct": (0.92, 0.50, 0.47, 0.79, 0.10, 0.27, 0.51),
    "self-correct+ft-orm": (0.97, 0.57, 0.54, 0.86, 0.20, 0.35, 0.58),
    "self-correct+parm": (0.98, 0.65, 0.61, 0.91, 0.26, 0.40, 0.64),
    "self-correct+parm++": (0.97, 0.60, 0.58, 0.89, 0.24, 0.38, 0.61),
    "self-correct+parm++reflect": (0.99, 0.71, 0.69, 0.95, 0.36, 0.49, 0.70),
    "seq:baseline": (0.71, 0.34, 0.21, 0.58, 0.07, 0.04, 0.32),  # LlamaGen (table 4)
    "seq:zs-orm": (0.75, 0.37, 0.24, 0.61, 0.08, 0.06, 0.35),
    "seq:ft-orm": (0.80, 0.41, 0.29, 0.65, 0.10, 0.08, 0.39),
    "seq:dpo": (0.78, 0.43, 0.30, 0.63, 0.19, 0.14, 0.41),
    "seq:parm": (0.84, 0.45, 0.31, 0.67, 0.20, 0.21, 0.46),  # as printed; the mean of its tags is 0.447
}
JANUS = {
    "seq:baseline": (0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80),  # Janus-Pro (table 4)
    "seq:zs-orm": (0.99, 0.91, 0.77, 0.90, 0.79, 0.67, 0.84),
    "seq:ft-orm": (0.99, 0.93, 0.82, 0.92, 0.91, 0.76, 0.89),
    "seq:dpo": (0.99, 0.89, 0.65, 0.92, 0.82, 0.72, 0.83),
    "seq:parm": (1.00, 0.95, 0.80, 0.93, 0.91, 0.85, 0.91),
}
LABELS = {
    "baseline": "baseline",
    "random": "random choice of {n} (the baseline, by construction)",
    "zs-orm": "zero-shot ORM, best of {n}",
    "ft-orm": "fine-tuned ORM, best of {n}",
    "zs-prm": "zero-shot PRM, best of {n} at each step",
    "ft-prm": "fine-tuned PRM, best of {n} at each step",
    "parm": "PARM, {n} paths",
    "parm-first": "PARM, {n} paths, asked at the first clear step only",
    "parm-from-12": "PARM, {n} paths, asked from step 12 on",
    "oracle": "oracle, best of {n}",
    "dpo": "DPO",
    "it-dpo": "iterative DPO",
    "dpo-guided-orm": "DPO, guided by the fine-tuned ORM (measured on fewer images)",
    "it-dpo-guided-orm": "iterative DPO, guided by the fine-tuned ORM",
    "it-dpo-guided-parm": "iterative DPO, guided by PARM",
    "dpo+zs-orm": "DPO, zero-shot ORM on top, best of {n}",
    "dpo+ft-orm": "DPO, fine-tuned ORM on top, best of {n}",
    "it-dpo+zs-orm": "iterative DPO, zero-shot ORM on top, best of {n}",
    "it-dpo+ft-orm": "iterative DPO, fine-tuned ORM on top, best of {n}",
    "dpo+parm": "DPO, PARM on top, {n} paths",
    "it-dpo+parm": "iterative DPO, PARM on top, {n} paths",
    "it-dpo-guided-orm+zs-orm": "iterative DPO guided by the ORM, zero-shot ORM on top, best of {n}",
    "it-dpo-guided-orm+ft-orm": "iterative DPO guided by the ORM, fine-tuned ORM on top, best of {n}",
    "it-dpo-guided-parm+zs-orm": "iterative DPO guided by PARM, zero-shot ORM on top, best of {n}",
    "it-dpo-guided-parm+ft-orm": "iterative DPO guided by PARM, fine-tuned ORM on top, best of {n}",
    "it-dpo-guided-parm+parm": "iterative DPO guided by PARM, PARM on top, {n} paths",
    "self-correct": "self-correction fine-tuning",
    "self-correct+zs-orm": "self-correction, zero-shot ORM, best of {n}",
    "self-correct+ft-orm": "self-correction, fine-tuned ORM, best of {n}",
    "self-correct+parm": "self-correction, PARM, {n} paths",
    "self-correct+parm++": "self-correction, PARM++, {n} paths, not reflecting",
    "self-correct+parm++reflect": "self-correction, PARM++, {n} paths, reflecting",
    "self-correct+parm++-more-samples": "… more samples instead of reflection",
    "self-correct+parm++-no-reasons": "… reflecting without reasons",
    "self-correct+parm++-shuffled-reasons": "… with another image's reasons",
    "self-correct+parm++-judges-reasons": "… with the training judge's reasons",
    "seq:baseline": "next-token generator (paper: LlamaGen, here and below)",
    "seq:oracle": "next-token generator, oracle, best of {n}",
    "seq:zs-orm": "next-token generator, zero-shot ORM, best of {n}",
    "seq:ft-orm": "next-token generator, fine-tuned ORM, best of {n}",
    "seq:ft-orm-retaught": "… with an ORM taught on its own images",
    "seq:parm": "next-token generator, PARM, {n} paths",
    "seq:parm-retaught": "… with a PARM taught on its own images",
    "seq:dpo": "next-token generator, DPO",
    "seq:dpo+zs-orm": "next-token generator, DPO, zero-shot ORM on top, best of {n}",
    "seq:dpo+ft-orm": "next-token generator, DPO, fine-tuned ORM on top, best of {n}",
}
# Rows of the paper's tables, with our controls among them; table 2 has those of table 1 as its parts.
TABLES = {
    table: tuple(methods.split())
    for table, methods in {
        1: "baseline random zs-orm ft-orm zs-prm ft-prm oracle dpo it-dpo",
        2: "it-dpo-guided-orm it-dpo+zs-orm it-dpo+ft-orm it-dpo-guided-orm+ft-orm",
        3: "baseline ft-orm parm parm-from-12 it-dpo+parm it-dpo-guided-parm it-dpo-guided-parm+parm",
        4: "seq:baseline seq:zs-orm seq:ft-orm seq:ft-orm-retaught seq:parm seq:parm-retaught seq:oracle seq:dpo",
        5: "baseline self-correct self-correct+ft-orm self-correct+parm self-correct+parm++ "
        "self-correct+parm++reflect self-correct+parm++-more-samples self-correct+parm++-no-reasons",
    }.items()
}
COLUMNS = ("single", "two", "counting", "colors", "position", "attribute", "overall")
SECOND = "next"  # in the course's own data: the folder of the second world
START, END = "<!-- results:start -->", "<!-- results:end -->"


def paper_scores(method: str) -> dict[str, float]:
    """The paper's accuracies of a method by tag, with "overall"; KeyError if the paper has none."""
    return dict(zip((*TAGS, "overall"), PAPER[method], strict=True))


def rows_by_method(out: Path, judge: str = "learned") -> dict[str, dict]:
    """The row of every method at its largest n, of the first training seed, from `results/scores.jsonl` under `out`.

    FileNotFoundError if that is missing.
    """
    chosen = [row for row in read_scores(out) if row["judge"] == judge and row["seed"] == 0]
    rows = sorted(chosen, key=lambda row: row["n"])
    return {row["method"]: row for row in rows}


def table_lines(out: Path) -> list[str]:
    """The table as lines of markdown: methods by tags, ours with its interval, the template judge's, the paper's."""
    ours, template = rows_by_method(out), rows_by_method(out, "template")
    lines = [
        f"| method | {' | '.join(COLUMNS)} | 95% interval | template judge | paper |",
        f"|{'---|' * (len(COLUMNS) + 4)}",
    ]
    for method, label in LABELS.items():
        if method not in ours:
            continue
        lines.append(f"| {label.format(n=ours[method]['n'])} | {_cells(method, ours, template)} |")
    return lines


def _cells(method: str, ours: Mapping[str, dict], template: Mapping[str, dict]) -> str:
    """A method's numbers by tag, overall, its interval, the template judge's and the paper's."""
    row = ours[method]
    values = [f"{row['tags'][tag]:.2f}" for tag in TAGS] + [f"**{row['overall']:.3f}**"]
    values += ["{:.3f} to {:.3f}".format(*row["ci"]), f"{template[method]['overall']:.3f}"]
    return " | ".join([*values, f"{PAPER[method][-1]:.2f}" if method in PAPER else "–"])


def finding_lines(out: Path) -> list[str]:
    """A table of the paper's findings: seen, not seen or undecided, and a difference."""
    lines = ["| | the paper finds that | seen here? | difference | 95% interval | paper |"]
    lines.append(f"|{'---|' * 6}")
    for name, entry in findings(out).items():
        ends = "{:+.3f} to {:+.3f}".format(*entry["ci"])
        told = f"**{entry['seen']}** | {entry['delta']:+.3f} | {ends} | {entry['paper']} |"
        lines.append(f"| {name} | {FINDINGS[name]} | {told}")
    return lines


def rule_lines(out: Path) -> list[str]:
    """What each finding asks for, its verdict and difference, and its parts, a line each."""
    lines = []
    for name, entry in findings(out).items():
        told = "{:+.3f} [{:+.3f}, {:+.3f}]".format(entry["delta"], *entry["ci"])
        lines.append(f"- **{name}**: {entry['claim']}: {entry['seen']}, {told}")
        lines += [f"  - {part}" for part in entry["note"].split("; ") if part and not part.startswith("the weakest")]
    return lines


def paper_table(out: Path, tables: Sequence[int]) -> list[str]:
    """Rows of the paper's tables as lines of markdown: ours by tag, overall with its interval, by the template judge,
    the paper's overall, and what one image costs in passes of generator and verifier."""
    ours, template = rows_by_method(out), rows_by_method(out, "template")
    head = (*COLUMNS, "95% interval", "template judge", "paper", "passes", "looks")
    lines = [f"| method | {' | '.join(head)} |", f"|{'---|' * (len(head) + 1)}"]
    for method in (method for table in tables for method in TABLES[table]):
        row = ours[method]
        spent = (row["cost"][key] for key in ("generator_passes", "verifier_passes"))
        label = LABELS[method].format(n=row["n"]).replace(" (paper: LlamaGen, here and below)", "")
        costs = " | ".join(f"{number:,.0f}" for number in spent)
        lines.append(f"| {label} | {_cells(method, ours, template)} | {costs} |")
    return lines


def reading_lines(out: Path) -> list[str]:
    """How to read the table: judges, what difference can be detected, how often the judges agree."""
    results = {name: read_json(out, name) for name in ("judges", "test_set")}
    return [
        f"By the learned judge, which never labels training data, on {results['judges']['images']:,} images; intervals "
        "are bootstraps over prompts. The judges agree on these images with "
        f"κ = {results['judges']['kappa_on_generated_images']:.2f}. A true difference of "
        f"{results['test_set']['detectable_difference']:.3f} between best-of-n and baseline is detected with 80% power."
    ]


def profile_lines(out: Path) -> list[str]:
    """How our baseline's profile and the verifier's gain compare with the paper's, from the numbers alone."""
    rows = rows_by_method(out)
    names = dict(zip((*TAGS, "overall"), COLUMNS, strict=True))

    def order(tags: Mapping[str, float]) -> str:
        return ", ".join(names[tag] for tag in sorted(TAGS, key=lambda tag: -tags[tag]))

    base, best, top = (rows[method]["overall"] for method in ("baseline", "zs-orm", "oracle"))
    theirs = PAPER["zs-orm"][-1] - PAPER["baseline"][-1]
    share = f", {(best - base) / (top - base):.0%} of what an oracle would gain" if top > base else ""
    return [
        f"The baseline's tags from best to worst: {order(rows['baseline']['tags'])}; in the paper: "
        f"{order(paper_scores('baseline'))}. The zero-shot verifier gains {best - base:+.2f} (paper {theirs:+.2f})"
        f"{share}."
    ]


def print_table(out: Path) -> None:
    """Print table and findings."""
    print("\n".join(["", *_block(out), "", *rule_lines(out)]))


def write_readme(out: Path) -> None:
    """Put table and findings between the README's markers, if `out` is the course's own data folder, or in it."""
    out = out.parent if out.name == SECOND else out
    readme = out.parent / "README.md"
    if not readme.exists() or out.name != "data":
        return
    text = readme.read_text(encoding="utf-8")
    if START not in text:
        return
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    summary = "<details><summary>What each finding asks for, part by part</summary>"
    names = (
        "Short names are those of `data/results/scores.jsonl`: `zs-` and `ft-` for zero-shot and fine-tuned, `it-dpo` "
        "for iterative DPO, `seq:` for the next-token generator, `a+b` for verifier b on top of generator a."
    )
    rules = [summary, "", names, "", *rule_lines(out), "", "</details>"]
    block = "\n".join([*_block(out), "", *rules])
    write_atomically(readme, f"{head}{START}\n{block}\n{END}{tail}")


def _block(out: Path) -> list[str]:
    def lines(world: Path) -> list[str]:
        return [*table_lines(world), "", *reading_lines(world), "", *profile_lines(world), "", *finding_lines(world)]

    second = out / SECOND
    if not (second / "results/findings.json").exists():
        return lines(out)
    titles = (
        f"**The second world** (`data/{SECOND}/`), of chapters 00 and 01:",
        "**The first world** (`data/`), of chapters 02 to 11:",
    )
    return [titles[0], "", *lines(second), "", titles[1], "", *lines(out)]
