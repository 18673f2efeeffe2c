"""Methods measured against edits whose truth is known: clips of the drawn world, changed, and truly edited.

Beside the methods stand the rows that keep a table honest: the source itself (doing nothing), the true edit
(the best there is), and for each method that takes words a null edit, the source's own words as the target.
Rows are kept as they come, so that a bench that was stopped goes on where it stopped.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, cast, final

import numpy as np

from retouch.errors import Cancelled, InputError, RetouchError
from retouch.events import Listener, Notice, ignore
from retouch.fields import near
from retouch.files import write_whole
from retouch.identity import identity
from retouch.media.compare import draw_sheet
from retouch.media.io import read_picture, write_picture
from retouch.metrics import Case, find_metric, measure
from retouch.metrics.alignment import ImageTextEncoder
from retouch.metrics.fidelity import Mask, changed_pixels
from retouch.metrics.uncertainty import MeanInterval, bootstrap_interval, paired_interval
from retouch.models.loading import folder_identity
from retouch.models.refs import resolve
from retouch.registry import method
from retouch.registry import names as registered
from retouch.run import Edited, Run
from retouch.spec import MethodSpec
from retouch.world import (
    BACKGROUNDS,
    COLOURS,
    OBJECTS,
    PATTERNS,
    STYLES,
    WORLD_VERSION,
    Change,
    Clip,
    Scene,
    Variety,
    edited_clip,
)

HELD_OUT = 2 * 10**9
"""Seeds from here on are never trained on: the embedded family uses those below 10**9."""

KINDS: Mapping[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "pattern": PATTERNS[1:],
    "object": OBJECTS,
    "background": BACKGROUNDS,
    "style": STYLES[1:],
}
"""The kinds of change, and the words to change to; plain is no word of a caption, so it is not among them."""

COLUMNS = ("fidelity-inside", "fidelity-outside", "warp-error", "clip-direction")
BASELINE = "frame_by_frame"
SOURCE, TRUTH, NULL = "the source itself", "the true edit", "null edit: "
PRESETS: Mapping[str, str] = {
    "colour": "attribute",
    "pattern": "attribute",
    "background": "attribute",
    "object": "shape",
    "style": "style",
}
"""The preset that a method with such presets is run with, by the kind of change."""


@final
@dataclass(frozen=True, eq=False)
class BenchTrial:
    """One change of one clip, with its truth."""

    number: int
    kind: str
    change: str
    clip: Clip
    target: Clip

    @property
    def name(self) -> str:
        """Its name in files: number, kind and word."""
        return f"{self.number:03}-{self.kind}-{self.change.replace(' ', '-')}"

    @cached_property
    def inside(self) -> Mask:
        """Where the edit belongs: what the true edit changes.

        A style changes every pixel; there the object is inside and the background outside, held to the truth.
        """
        if self.kind == "style":
            return np.asarray(self.clip.masks[:-1].any(axis=0))
        return changed_pixels(self.clip.video.frames, self.target.video.frames)


Give: TypeAlias = Callable[[BenchTrial, Path], object]


@final
@dataclass(frozen=True)
class BenchRow:
    """What one contender got on one trial; `figures` is empty where it failed, and `error` says how.

    `told` is what the method itself measured, such as how well its inversion brings the source back.
    """

    trial: str
    kind: str
    contender: str
    figures: Mapping[str, float]
    error: str = ""
    told: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class BenchPlan:
    """What to measure, on what, and with which encoder."""

    methods: tuple[str, ...]
    kinds: tuple[str, ...] = ("colour", "pattern", "object", "style")
    clips: int = 40
    frames: int = 8
    size: int = 64
    seed: int = 0
    world_seed: int = HELD_OUT
    """Of the first clip's scene; the others count on from it."""
    model: str = "tiny:sd"
    steps: int = 10
    """Of every method that goes in steps, so that time is what they have alike."""
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Parameters a method, over its preset."""
    encoder: ImageTextEncoder | None = None
    network: str = ""
    crop: str = ""

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise InputError(f"there is no kind of change {kind!r}", hint=f"kinds: {', '.join(KINDS)}")
        if self.clips < 1 or self.frames < 2:
            raise InputError(
                f"{self.clips} clips of {self.frames} frames measure nothing",
                hint="ask for one clip or more of two frames or more",
            )


def make_trials(bench: BenchPlan) -> Iterator[BenchTrial]:
    """The trials: every clip with a change of every kind; the words follow from the seed of the clip."""
    variety = Variety(pair=0.0, styles=("none",), patterns=PATTERNS)
    for number in range(bench.clips):
        seed = bench.world_seed + number
        clip = Clip.of(Scene.sample(seed, variety), bench.frames, bench.size)
        for kind in bench.kinds:
            word = _pick_word(clip.scene, kind, seed)
            change = Change.parse(f"{kind}={word}")
            yield BenchTrial(number, kind, word, clip, edited_clip(clip, change))


def run_bench(bench: BenchPlan, folder: Path, *, listen: Listener = ignore) -> list[BenchRow]:
    """Measures every contender on every trial that has no row in `folder` yet, and gives all rows.

    A method that fails on a trial gets a row that says so, and the others go on.

    Raises:
        InputError: the folder holds other things, or rows of a bench with other settings, which must not be
            mixed; or a setting is of no method that is measured, or none of its parameters.
    """
    _check_settings(bench)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / "settings.json").is_file():
        raise InputError(f"{folder} holds other things than a bench", hint="choose another folder with --out")
    rows = _kept_row(bench, folder)
    done = {(row.trial, row.contender) for row in rows}
    clip, made = -1, dict[str, Edited]()
    for trial in make_trials(bench):
        if trial.number != clip:
            clip = trial.number
            made.clear()
            shutil.rmtree(folder / "work", ignore_errors=True)  # what the runs of one clip shared
        missing = [name for name in list_contenders(bench) if (trial.name, name) not in done]
        if missing:
            listen(Notice(f"{trial.name}: {trial.clip.caption} -> {trial.target.caption}"))
        for name in missing:
            row = _run_contender(bench, trial, name, folder, made, listen)
            rows.append(row)
            with (folder / "rows.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(asdict(row)) + "\n")
    shutil.rmtree(folder / "work", ignore_errors=True)
    return [row for row in rows if row.contender in list_contenders(bench) and row.kind in bench.kinds]


def _check_settings(bench: BenchPlan) -> None:
    for name, values in bench.settings.items():
        if name not in bench.methods:
            raise InputError(f"--set names {name!r}, which is not measured", hint=near(name, bench.methods))
        known = method(name).params.model_fields
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"{name} has no parameter {unknown[0]!r}", hint=near(unknown[0], known))


def list_contenders(bench: BenchPlan) -> list[str]:
    """All rows of a table: doing nothing, each method's null edit, the methods, the truth."""
    nulls = [NULL + name for name in bench.methods if TOLD & set(method(name).params.model_fields)]
    return [SOURCE, *nulls, *bench.methods, TRUTH]


def with_baseline(names: Sequence[str]) -> tuple[str, ...]:
    """The methods and the naive one that every table carries, where it is there; each once."""
    known = [BASELINE] if BASELINE in registered() else []
    return tuple(dict.fromkeys([*(method(name).name for name in names), *known]))


def params_for(spec: MethodSpec, trial: BenchTrial, folder: Path, bench: BenchPlan) -> dict[str, object]:
    """The parameters with which a method is told of the change, by the names of its fields.

    Raises:
        InputError: a field that must be given is none that the bench knows to fill.
    """
    fields = spec.params.model_fields
    # A null edit is of no kind: it shows what a method does by itself.
    null = trial.target is trial.clip
    values: dict[str, object] = {} if null else dict(spec.presets.get(PRESETS[trial.kind], {}))
    if "steps" in fields:
        values["steps"] = bench.steps
    goes_on = "image-to-video" in spec.needs
    if goes_on:
        values["model"] = "tiny:svd"
    elif "model" in fields and "prompt" in fields:
        values["model"] = bench.model
    told = {name: give(trial, folder) for name, give in GIVES.items() if name in fields}
    if told.keys() >= {"first", "keyframe"}:  # one frame tells the edit: the first to who goes on from it
        del told["keyframe" if goes_on else "first"]
    values |= {name: value for name, value in told.items() if value is not None}
    values |= bench.settings.get(spec.name, {})
    unknown = [name for name, info in fields.items() if info.is_required() and name not in values]
    if unknown:
        raise InputError(
            f"the bench cannot tell {spec.name} of the change: it asks for {', '.join(unknown)}",
            hint=f"give it with --set {spec.name}.{unknown[0]}=VALUE",
        )
    return values


def _edited_keyframe(trial: BenchTrial, folder: Path) -> tuple[str, ...]:
    """The true edit of the middle frame, as FRAME=PICTURE."""
    middle = len(trial.target.video) // 2
    return (f"{middle}={_draw_trial(trial, middle, folder)}",)


def _object_box(trial: BenchTrial, _: Path) -> tuple[str, ...]:
    """A box around the object in the middle frame, as FRAME:x,y x,y, where it is in the picture."""
    middle = len(trial.clip.video) // 2
    rows, columns = np.nonzero(trial.clip.masks[0, middle, 0])
    if not len(rows):
        return ()
    return (f"{middle}:{columns.min()},{rows.min()} {columns.max()},{rows.max()}",)


def _draw_trial(trial: BenchTrial, frame: int, folder: Path) -> Path:
    picture = np.ascontiguousarray(trial.target.video.frames[frame].transpose(1, 2, 0))
    return write_picture(picture, folder / f"frame-{frame}.png", force=True)


def _object_words(trial: BenchTrial, _: Path) -> tuple[str, ...] | None:
    """The object's word where the prompts are the same, so that no word can be found by what differs."""
    same = trial.clip.caption == trial.target.caption
    return (trial.clip.scene.actors[0].object,) if same else None


GIVES: Mapping[str, Give] = {
    "prompt": lambda trial, _: trial.target.caption,
    "source_prompt": lambda trial, _: trial.clip.caption,
    "first": lambda trial, folder: _draw_trial(trial, 0, folder),
    "keyframe": _edited_keyframe,
    "box": _object_box,
    "object_words": _object_words,
    "new_words": _object_words,
}
"""How the change is given, by the name of the parameter that takes it; None leaves it at its default."""


TOLD = {"prompt", "first", "keyframe"}
"""Parameters that say what the clip should become; a method with one of them has a null edit."""


def _run_contender(
    bench: BenchPlan, trial: BenchTrial, name: str, folder: Path, made: dict[str, Edited], listen: Listener
) -> BenchRow:
    try:
        outcome = _contender_result(bench, trial, name, folder, made, listen)
        figures = _measure_result(bench, trial, name, outcome)
    except Cancelled:
        raise
    except RetouchError as error:
        return BenchRow(trial.name, trial.kind, name, {}, f"{type(error).__name__}: {error}")
    # The last frame is the farthest from any that a method was given ready.
    frame = outcome.video.frames[-1].transpose(1, 2, 0)
    place = folder / "frames" / trial.name
    place.mkdir(parents=True, exist_ok=True)
    write_picture(np.ascontiguousarray(frame), place / f"{_row_file(name)}.png", force=True)
    return BenchRow(trial.name, trial.kind, name, figures, told=dict(outcome.figures))


def _contender_result(
    bench: BenchPlan, trial: BenchTrial, name: str, folder: Path, made: dict[str, Edited], listen: Listener
) -> Edited:
    """What a contender makes of a trial.

    Runs of one clip share a store, so that it is inverted once; a request that was made of it before, such
    as a null edit under another kind of change, has its result in `made`.
    """
    if name == SOURCE:
        return Edited(trial.clip.video)
    if name == TRUTH:
        return Edited(trial.target.video)
    told = trial
    if name.startswith(NULL):
        name, told = name.removeprefix(NULL), replace(trial, target=trial.clip)
    spec = method(name)
    with tempfile.TemporaryDirectory(prefix="retouch-bench-") as scratch:
        params = spec.fill(params_for(spec, told, Path(scratch), bench))
        asked = identity((spec.name, params))
        if asked in made:
            return made[asked]
        run = Run.alone(folder / "work" / f"{trial.number:03}-{spec.name}", seed=bench.seed, listen=listen)
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.compute.repeatable():
            found = cast("Edited", spec.load(spec.edit)(trial.clip.video, params, run))
        # A later run of the clip writes into the same files.
        made[asked] = replace(found, video=found.video.like(np.array(found.video.frames)))
        return made[asked]


def _measure_result(bench: BenchPlan, trial: BenchTrial, name: str, outcome: Edited) -> dict[str, float]:
    case = Case(
        outcome.video.frames,
        trial.clip.video.frames,
        truth=trial.target.video.frames,
        mask=trial.inside,
        flow=trial.clip.forward,
        seen=trial.clip.forward_seen,
        encoder=bench.encoder,
        network=bench.network,
        crop=bench.crop,
        prompt=trial.target.caption,
        source_prompt=trial.clip.caption,
    )
    # Likeness to the source is a virtue of an edit that should change nothing, and of no other.
    wanted = (*COLUMNS, "psnr-source") if name == SOURCE or name.startswith(NULL) else COLUMNS
    return measure(case, tuple(metric for metric in wanted if find_metric(metric).fits(case)))


def summarise_rows(rows: Sequence[BenchRow]) -> dict[str, dict[str, dict[str, MeanInterval]]]:
    """Means with intervals by kind of change, contender and figure, over the trials that did not fail."""
    found: dict[str, dict[str, dict[str, MeanInterval]]] = {}
    for kind, name, key in _table_cells(rows):
        values = [row.figures[key] for row in _rows_of(rows, kind, name) if key in row.figures]
        found.setdefault(kind, {}).setdefault(name, {})[key] = bootstrap_interval(values)
    return found


def paired_differences(
    rows: Sequence[BenchRow], baseline: str = BASELINE
) -> dict[str, dict[str, dict[str, MeanInterval]]]:
    """Means of contender minus baseline with their intervals, over the trials on which neither failed."""
    found: dict[str, dict[str, dict[str, MeanInterval]]] = {}
    for kind, name, key in _table_cells(rows):
        base = {row.trial: row.figures for row in _rows_of(rows, kind, baseline)}
        both = [
            row for row in _rows_of(rows, kind, name) if key in row.figures and key in base.get(row.trial, {})
        ]
        if name != baseline and both:
            ours = [row.figures[key] for row in both]
            theirs = [base[row.trial][key] for row in both]
            found.setdefault(kind, {}).setdefault(name, {})[key] = paired_interval(ours, theirs)
    return found


def write_results(bench: BenchPlan, rows: Sequence[BenchRow], folder: Path) -> tuple[str, dict[str, object]]:
    """Writes figures, table and contact sheet into the folder; gives the table and the figures."""
    told, found = markdown_table(bench, rows), bench_figures(bench, rows)
    write_whole(folder / "table.md", told)
    write_whole(folder / "figures.json", json.dumps(found, indent=2) + "\n")
    write_picture(contact_sheet(bench, folder), folder / "sheet.png", force=True)
    return told, found


def bench_figures(bench: BenchPlan, rows: Sequence[BenchRow]) -> dict[str, object]:
    """Everything that a machine may want to read of a bench."""
    return {
        "settings": settings_of(bench),
        "means": _plain_values(summarise_rows(rows)),
        "differences": {"from": BASELINE, "by_kind": _plain_values(paired_differences(rows))},
        "failed": [asdict(row) for row in rows if row.error],
    }


def markdown_table(bench: BenchPlan, rows: Sequence[BenchRow]) -> str:
    """The bench in Markdown: a table a kind of change, then the paired differences from the baseline."""
    means, apart = summarise_rows(rows), paired_differences(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row.figures))
    lines = ["# Edits against the truth", "", *_table_introduction(bench, rows, keys), ""]
    for kind, by_name in means.items():
        cells = {
            name: [_interval_text(figures[key]) if key in figures else "-" for key in keys]
            for name, figures in by_name.items()
        }
        lines += [f"## {kind}", "", *_render_table(keys, cells), ""]
        if kind in apart:
            both = [key for key in keys if any(key in row for row in apart[kind].values())]
            judged = {
                name: _judged_differences(row, both)
                for name, row in apart[kind].items()
                if name in bench.methods
            }
            if judged:
                lines += [f"Paired difference from {BASELINE}:", "", *_render_table(both, judged), ""]
    failed = [row for row in rows if row.error]
    if failed:
        lines += ["## Failed", "", *(f"- {row.contender} on {row.trial}: {row.error}" for row in failed), ""]
    return "\n".join(lines)


def contact_sheet(bench: BenchPlan, folder: Path, *, edits: int = 10) -> np.ndarray:
    """Draws the last frames of evenly chosen edits: source, true edit, then each method."""
    names = [SOURCE, TRUTH, *bench.methods]
    tried = [trial for trial in make_trials(bench) if (folder / "frames" / trial.name).is_dir()]
    kinds = len(bench.kinds)
    # A step that is no multiple of the number of kinds, so that every kind comes up.
    step = max(1, len(tried) // edits)
    step += step % kinds == 0 and kinds > 1
    chosen = tried[::step][:edits]
    places = [
        [folder / "frames" / trial.name / f"{_row_file(name)}.png" for name in names] for trial in chosen
    ]
    rows = [[read_picture(path)[..., :3] if path.exists() else None for path in row] for row in places]
    return draw_sheet(
        rows, ["source", "true edit", *bench.methods], [f"{t.kind}: {t.change}" for t in chosen]
    )


def settings_of(bench: BenchPlan) -> dict[str, object]:
    """What must be equal for rows to stand in one table."""
    prompted = any({"model", "prompt"} <= set(method(name).params.model_fields) for name in bench.methods)
    return {
        "world": WORLD_VERSION,
        "frames": bench.frames,
        "size": bench.size,
        "seed": bench.seed,
        "world_seed": bench.world_seed,
        "model": bench.model,
        "steps": bench.steps,
        "network": bench.network,
        "crop": bench.crop,
        "settings": {name: dict(values) for name, values in bench.settings.items()},
        "weights": folder_identity(resolve(bench.model)) if prompted else "",
        "methods": {name: _default_params(method(name)) for name in bench.methods},
    }


def _default_params(spec: MethodSpec) -> str:
    """What a method does when it is told nothing; rows from before a default changed are other rows."""
    fields = spec.params.model_fields.items()
    plain = {name: repr(info.get_default(call_default_factory=True)) for name, info in fields}
    presets = {name: {key: repr(value) for key, value in sets.items()} for name, sets in spec.presets.items()}
    return identity((plain, presets))


def _kept_row(bench: BenchPlan, folder: Path) -> list[BenchRow]:
    path, lines = folder / "settings.json", folder / "rows.jsonl"
    settings = json.loads(json.dumps(settings_of(bench), default=str))
    now = settings["methods"]
    if path.exists():
        before = {"world_seed": HELD_OUT, **json.loads(path.read_text(encoding="utf-8"))}
        # A method that joins, or is left out this time, makes the rows of the others no worse.
        known = before.get("methods", {})
        settings["methods"] = {**settings["methods"], **known}
        unlike = [key for key in settings if before.get(key) != settings[key] and key != "methods"]
        unlike += [name for name in bench.methods if known.get(name, now[name]) != now[name]]
        if unlike:
            raise InputError(
                f"{folder} holds a bench with other settings: {', '.join(unlike)}",
                hint="choose another folder with --out",
            )
    write_whole(path, json.dumps(settings, indent=2) + "\n")
    if not lines.exists():
        return []
    whole = [line for line in lines.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
    write_whole(lines, "".join(whole))  # a line that a kill cut short is measured again
    return [row for row in (BenchRow(**json.loads(line)) for line in whole) if not row.error]


def _pick_word(scene: Scene, kind: str, seed: int) -> str:
    """A word of the kind that the scene does not show yet, the same for the same seed."""
    actor = scene.actors[0]
    shown = {"colour": actor.colour, "pattern": actor.pattern, "object": actor.object}
    now = shown.get(kind, scene.background if kind == "background" else scene.style)
    words = [word for word in KINDS[kind] if word != now]
    return words[seed % len(words)]


def _table_cells(rows: Sequence[BenchRow]) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys((row.kind, row.contender, key) for row in rows for key in row.figures))


def _rows_of(rows: Sequence[BenchRow], kind: str, name: str) -> list[BenchRow]:
    return [row for row in rows if row.kind == kind and row.contender == name]


def _table_introduction(bench: BenchPlan, rows: Sequence[BenchRow], keys: Sequence[str]) -> list[str]:
    clips = len({row.trial.partition("-")[0] for row in rows})
    idle = [_figure_name(key) for key in keys if find_metric(_figure_name(key)).rewards_doing_nothing]
    return [
        f"{clips} clips of {bench.frames} frames at {bench.size} px, world seeds from {bench.world_seed}.",
        f"Model `{bench.model}`, {bench.steps} steps, seed {bench.seed}.",
        "Means with 95 % bootstrap intervals over clips.",
        "",
        "Columns: " + ", ".join(f"`{key}`" for key in keys) + ".",
        f"Doing nothing wins {', '.join(idle)}; read them beside the others.",
    ]


def _render_table(keys: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    metrics = [find_metric(_figure_name(key)) for key in keys]
    units = [f" ({metric.unit})" if metric.unit else "" for metric in metrics]
    heads = [f"{m.name}{unit}, {m.better} is better" for m, unit in zip(metrics, units, strict=True)]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(keys)]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def _judged_differences(figures: Mapping[str, MeanInterval], keys: Sequence[str]) -> list[str]:
    """Differences with a word: better or worse where the interval leaves zero out, else undecided."""
    cells = []
    for key in keys:
        if key not in figures:
            cells.append("-")
            continue
        sign = figures[key].sign * (1 if find_metric(_figure_name(key)).better == "higher" else -1)
        cells.append(f"{_interval_text(figures[key], signed=True)} {('undecided', 'better', 'worse')[sign]}")
    return cells


def _interval_text(found: MeanInterval, *, signed: bool = False) -> str:
    digits = 2 if max(abs(found.low), abs(found.high)) >= 1 else 4
    plus = "+" if signed else ""
    return f"{found.mean:{plus}.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def _figure_name(key: str) -> str:
    return key.partition("@")[0]


def _row_file(name: str) -> str:
    return name.replace(":", "").replace(" ", "-")


def _plain_values(found: Mapping[str, Mapping[str, Mapping[str, MeanInterval]]]) -> dict[str, object]:
    return {
        kind: {name: {key: asdict(value) for key, value in row.items()} for name, row in by_name.items()}
        for kind, by_name in found.items()
    }
