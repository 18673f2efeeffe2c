"""`retouch keyframe`: frames of a clip as pictures, as they are or edited by words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from retouch.apps.scratch import scratch_run
from retouch.errors import ParamsError, RequestError
from retouch.params import frame_range

if TYPE_CHECKING:
    from retouch.tracking.register import RegisteredEdit

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("clip", type=PATH)
@click.option("--at", type=click.IntRange(0), multiple=True, help="Which frame; the first is 0. Repeatable.")
@click.option(
    "--range", "part", default="", metavar="FIRST-LAST", help="These frames, into a folder or clip."
)
@click.option("-o", "--out", type=PATH, help="The picture, frame-AT.png by default; of several, k-AT.png.")
@click.option("--force", is_flag=True, help="Replace what exists.")
@click.option("--edit", "prompt", default="", help="Edit the frame: what to do, as the model reads it.")
@click.option("--model", default="tiny:sd", show_default=True, help="Who edits: any image-edit pipeline.")
@click.option("--mask", type=PATH, help="Where to edit (white): one picture, or one a frame of the clip.")
@click.option("--reference", type=PATH, multiple=True, help="A picture to look at beside the words.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, another edit.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Denoising steps; else the model's own.")
@click.option("--guidance", type=click.FloatRange(0, 50), help="How strongly the words steer.")
@click.option("--strength", type=click.FloatRange(0, 1, min_open=True), help="How far the picture may go.")
@click.option(
    "--control", help="The ControlNet that holds a Stable Diffusion to the edges; tiny:sd has its own."
)
@click.option("--adapter", default="", help="The IP-Adapter that shows it the reference.")
@click.option("--atlas", type=PATH, help="The clip's atlas, through which several frames agree.")
@click.option("--box", multiple=True, help="Without one, a box around the object, as FRAME:x,y x,y.")
@click.option("--stroke", multiple=True, help="And a stroke over it, as FRAME:x,y x,y ...")
@click.option("--anyway", is_flag=True, help="Take words that the model was not taught.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
def keyframe(
    clip: Path,
    at: tuple[int, ...],
    part: str,
    out: Path | None,
    prompt: str,
    model: str,
    mask: Path | None,
    reference: tuple[Path, ...],
    seed: int,
    steps: int | None,
    guidance: float | None,
    strength: float | None,
    control: str | None,
    adapter: str,
    atlas: Path | None,
    box: tuple[str, ...],
    stroke: tuple[str, ...],
    device: str,
    *,
    force: bool,
    anyway: bool,
) -> None:
    """Take frames out of a clip, upright, to be painted on; or edit them by words.

    \b
    retouch keyframe clip.mp4 --at 40 -o k40.png
    retouch keyframe clip.mp4 --at 40 --edit "make the car red" --model ./instruct-pix2pix -o k40.png
    """  # noqa: D301 - click reads the mark
    from retouch.apps.preflight import check_clip_output, check_picture_output
    from retouch.media.io import read, read_frame, write, write_picture

    if bool(at) == bool(part):
        raise RequestError("which frame?", hint="give --at FRAME, or --range FIRST-LAST")
    if part and prompt:
        raise RequestError("a range is not edited", hint="name the key frames, each with --at")
    if part:
        out = out or Path(f"frames-{part}")
        check_clip_output(out, force=force)
        click.echo(write(read(clip, part=frame_range(part)), out, force=force))
        return
    places = picture_places(out, at)
    for place in places.values():
        check_picture_output(place, force=force)
    if not prompt:
        for index, place in places.items():
            click.echo(write_picture(read_frame(clip, index), place, force=force))
        return

    from retouch.apps.preflight import check_edit_words, check_keyframes
    from retouch.atlas.keyframes import edited_keyframes
    from retouch.atlas.prepare import atlas_for, marks_from
    from retouch.diffusion.picture_editor import EDGES_OF, check_editor, editor_named
    from retouch.files import check_free
    from retouch.media.masks import read_masks
    from retouch.media.pictures import read_rgb
    from retouch.media.probe import probe

    for place in places.values():
        for beside in (changed_place(place), place.with_suffix(".json")):
            check_free(beside, force=force)
    marks = marks_from(box=box, stroke=stroke)
    check_keyframes(at, probe(clip), mask=mask, agreeing=bool(atlas or marks))
    references = [read_rgb(path).transpose(1, 2, 0) for path in reference]
    control = EDGES_OF.get(model, "") if control is None else control
    check_editor(model, references=len(references), control=control, adapter=adapter)
    with scratch_run(device, seed=seed) as run:
        check_edit_words(prompt, model, anyway=anyway, tell=run.listen)
        editor = editor_named(
            model,
            run,
            prompt=prompt,
            steps=steps,
            guidance=guidance,
            strength=strength,
            control=control,
            adapter=adapter,
        )
        video = read(clip, scratch=run.folder / "read", listen=run.listen)
        through = atlas_for(video, run, file=atlas, marks=marks) if len(at) > 1 else None
        for index, made in edited_keyframes(
            video,
            at,
            prompt,
            editor,
            atlas=through,
            masks=None if mask is None else read_masks(mask, video),
            references=references,
            seed=seed,
            run=run,
        ):
            if not made.changed.any():
                run.notice(f"the edit changes nothing on {video.named_frames([index])}")
            click.echo(write_edit(made, index, places[index], force=force))


def picture_places(out: Path | None, at: Sequence[int]) -> dict[int, Path]:
    """Return where the picture of each frame goes; of several, the number is put before the suffix.

    Raises:
        ParamsError: a frame is named twice.
    """
    if len(set(at)) < len(at):
        raise ParamsError(f"frame {max(at, key=at.count)} is named twice", hint="name each once")
    if out is not None and len(at) > 1:
        return {index: out.with_name(f"{out.stem}-{index}{out.suffix}") for index in at}
    return {index: out or Path(f"frame-{index}.png") for index in at}


def changed_place(place: Path) -> Path:
    """Return where the mask of what changed goes, beside the picture."""
    return place.with_name(f"{place.stem}-changed.png")


def write_edit(made: "RegisteredEdit", index: int, place: Path, *, force: bool) -> str:
    """Write an edited key frame, what it changed and the offset found; return all in a sentence."""
    import numpy as np

    from retouch.files import replace_whole
    from retouch.media.io import write_picture

    offset, share = made.offset, float(made.changed.mean())
    told = {"frame": index, "x": offset.x, "y": offset.y, "zoom": offset.zoom, "turn": offset.turn}
    told |= {"changed": share, "agreement": made.agreement}
    write_picture(np.uint8(255) * made.changed, changed_place(place), force=force)
    with replace_whole(place.with_suffix(".json"), force=force) as draft:
        draft.write_text(json.dumps(told) + "\n", encoding="utf-8")
    write_picture(made.picture, place, force=force)
    return f"{place}: {share:.1%} changed; the answer lay at {offset.words()}"
