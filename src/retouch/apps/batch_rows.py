"""The rows of a batch: read, checked, keyed, put into groups and in order; and made from clips and sweeps.

A row is an edit request, or `{"id": "...", "request": {...}, "tags": {...}}`; a file has one a line. All that
can be known of a row without torch is known before the first one runs.
"""

import dataclasses
import functools
import glob
import io
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, final

from retouch.errors import ParamsError, RequestError, RetouchError
from retouch.fields import describe, near, pair, parse
from retouch.files import write_whole
from retouch.identity import file_digest, identity
from retouch.media.opening import check_part, pictures_at
from retouch.media.probe import PictureStream, probe
from retouch.models.refs import TINY, catalogue, resolve
from retouch.params import MODEL_ROLES, Params, frame_range, from_folder, given_as, named_paths
from retouch.registry import method
from retouch.regular import open_regular
from retouch.request import EditRequest

ROWS_PER_GROUP: Final = 32
"""Rows that one worker takes on together."""
_ROW = ("id", "request", "tags")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Given: TypeAlias = "EditRequest | Mapping[str, object]"


@final
@dataclass(frozen=True)
class Fault:
    """What is wrong with a line."""

    line: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """Say it with the line's number."""
        return f"line {self.line}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    def as_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return dataclasses.asdict(self)


@final
@dataclass(frozen=True)
class Row:
    """A request with the key under which its result is kept."""

    line: int
    key: str
    request: EditRequest
    identity: str
    """The hash of all that decides the result."""
    clip: str
    """The clip's digest."""
    models: tuple[str, ...] = ()
    work: float = 0.0
    """Pixels to compute, counted once a step: longer rows have more."""
    name: str = ""
    tags: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def group(self) -> str:
        """What rows share that one worker should carry out: their models and their clip."""
        return identity((self.models, self.clip))

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Self:
        """Return the row that `as_json` made these values of."""
        request = EditRequest.model_validate(told["request"])
        return cls(**{**told, "request": request, "models": tuple(told["models"])})

    def as_json(self) -> dict[str, object]:
        """Return the row as plain values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "request": self.request.model_dump(mode="json")}


def read_rows(
    source: Path | Iterable[Given], *, roots: Sequence[Path] | None = None
) -> tuple[list[Row], list[Fault]]:
    """Return the rows of a file, or those given, and what is wrong with the others.

    Args:
        source: A file of JSON lines, whose relative paths are meant from its folder; or the rows themselves.
        roots: Folders in which all files must lie; models then go by catalogue names. None trusts the rows.
    """
    here = source.absolute().parent if isinstance(source, Path) else Path.cwd()
    reader, faults = _Reader(here, roots), list[Fault]()
    for line, given in _lines(source):
        try:
            reader.add(line, given)
        except RetouchError as error:
            faults.append(Fault(line, str(error), error.hint))
    return reader.rows, faults


def _lines(source: Path | Iterable[Given]) -> Iterator[tuple[int, object]]:
    if not isinstance(source, Path):
        for number, given in enumerate(source, 1):
            yield number, given.model_dump(mode="json") if isinstance(given, EditRequest) else given
        return
    try:
        with open_regular(source) as file:
            lines = enumerate(io.TextIOWrapper(file, encoding="utf-8"), 1)
            yield from ((number, text) for number, text in lines if text.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"{source} cannot be read: {error}", hint="give a file with a request a line"
        ) from None


@final
class _Reader:
    """Rows that are read one by one, and what is known of their clips."""

    def __init__(self, here: Path, roots: Sequence[Path] | None) -> None:
        self.here, self.roots = here, roots
        self.rows: list[Row] = []
        self.seen: dict[str, Row] = {}
        self.digest = functools.cache(digest_of)
        self.probed = functools.cache(lambda path: probe(path).video)
        self.resolved = functools.cache(resolve)

    def add(self, line: int, given: object) -> None:
        """Check a row and take it up; raises RetouchError where it cannot be used."""
        values = _parsed(given)
        name, tags = _named(values)
        request, params = self._request(values.get("request", values))
        if self.roots is not None:
            _check_confined(request, params, self.roots)
        clip, video = self._clip(request)
        models = tuple(dict.fromkeys(ref for _, ref in _models(params)))
        for ref in models:
            self.resolved(ref)
        files = [(field, self._file(field, path)) for field, path in named_paths(params)]
        suffix = request.out.suffix if request.out else ""
        plain = request.model_dump(mode="json", exclude={"compute", "out", "video"})
        whole = identity((plain, suffix, clip, files))
        row = Row(
            line=line,
            key=name or whole[:20],
            request=request,
            identity=whole,
            clip=clip,
            models=models,
            work=float(video.width * video.height * _frames(request, video)) * steps_of(params),
            name=name,
            tags=tags,
        )
        before = self.seen.setdefault(row.key, row)
        if before.identity != row.identity:
            raise RequestError(
                f"id {name!r} is that of line {before.line}, which asks for something else",
                hint="Give each request an id of its own.",
            )
        self.rows.append(row)

    def _request(self, values: object) -> tuple[EditRequest, Params]:
        """Return a request with whole paths, and its parameters."""
        request = EditRequest.from_json(json.dumps(values))
        spec = method(request.method)
        params = spec.fill(from_folder(spec.params, request.params, self.here))
        update = {
            "video": self.here / request.video.expanduser(),
            "out": self.here / request.out.expanduser() if request.out else None,
            "params": params.model_dump(mode="json"),
        }
        return request.model_copy(update=update), params

    def _clip(self, request: EditRequest) -> tuple[str, PictureStream]:
        try:
            video = self.probed(request.video)
            check_part(request.video, frame_range(request.range), video.frames)
            return self.digest(request.video), video
        except RetouchError as error:
            raise type(error)(f"video: {error}", hint=error.hint) from None

    def _file(self, field: str, path: Path) -> str:
        try:
            return self.digest(path)
        except (RetouchError, OSError) as error:
            said = getattr(error, "strerror", None) or error
            raise ParamsError(f"{field}: {path} cannot be read: {said}") from None


def digest_of(path: Path) -> str:
    """Return the hash of a file, a folder, or the pictures that a pattern finds."""
    pictures = [] if path.exists() else pictures_at(path)
    return identity(pictures) if pictures else file_digest(path)


def _parsed(given: object) -> dict[str, Any]:
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise RequestError(f"it is no JSON: {error}", hint="a line is one JSON object") from None
    if not isinstance(values, dict):
        raise RequestError(f"it is a {type(values).__name__}, no JSON object")
    return values


def _named(values: Mapping[str, Any]) -> tuple[str, Mapping[str, object]]:
    """Return the id and the tags of a row."""
    if "request" not in values:
        return "", {}
    if unknown := sorted(set(values) - {*_ROW}):
        raise RequestError(f"a row has no {unknown[0]!r}", hint=near(unknown[0], _ROW) or "id, request, tags")
    name, tags = values.get("id", ""), values.get("tags", {})
    if not isinstance(tags, dict):
        raise RequestError(f"tags is {tags!r}; it must be a JSON object")
    if "id" in values and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise RequestError(
            f"id is {name!r}; it must be up to 100 letters, digits, dots, dashes or underscores"
        )
    return name, tags


def _models(params: Params) -> Iterator[tuple[str, str]]:
    for role in MODEL_ROLES:
        yield from given_as(params, role)


def _frames(request: EditRequest, video: PictureStream) -> int:
    part = frame_range(request.range)
    return len(part) if part else video.frames


def steps_of(params: Params) -> int:
    """Return how many steps an edit takes, tuning included; methods without any take one."""
    return int(getattr(params, "steps", 1)) + int(getattr(params, "tune_steps", 0))


def estimate_row(row: Row) -> tuple[int, str]:
    """Return the bytes that a row will take, and why it cannot be, if it cannot."""
    request, spec = row.request, method(row.request.method)
    if not spec.estimate:
        return 0, ""
    video = probe(request.video).video
    frames = len(frame_range(request.range) or range(video.frames))
    planned: Any = spec.load(spec.estimate)(
        frames, video.height, video.width, request.filled(), request.compute
    )
    try:
        planned.require(request.compute)
    except RetouchError as error:
        return planned.memory, str(error)
    return planned.memory, ""


def _check_confined(request: EditRequest, params: Params, roots: Sequence[Path]) -> None:
    """Refuse a row from outside that reaches beyond the folders it may use, or names a model by its place."""
    named = [("video", request.video), *named_paths(params)]
    for field, path in [*named, *([("out", request.out)] if request.out else [])]:
        if not any(path.resolve().is_relative_to(root.resolve()) for root in roots):
            raise RequestError(
                f"{field}: {path} lies in none of the folders that rows may use", hint="--root"
            )
    for field, ref in _models(params):
        if not (ref.startswith(TINY) or ref in catalogue()):
            raise RequestError(f"{field}: {ref} is no name of the catalogue", hint="see: retouch models list")


def check_all(faults: Sequence[Fault], name: str) -> None:
    """Raise RequestError where there are faults; it lists them."""
    if faults:
        told = "".join(f"\n  {fault}" for fault in faults[:20])
        more = f"\n  and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise RequestError(
            f"{len(faults)} of the rows of {name} cannot be used:{told}{more}",
            hint="mend them, or leave them out with --skip-bad",
        )


def groups_of(
    rows: Iterable[Row], *, largest: int = ROWS_PER_GROUP, keep_order: bool = False
) -> list[list[Row]]:
    """Return the rows in groups that share models and clip, in the order in which they should be done.

    Groups follow each other by model, the longest first; rows keep the file's order, and so do groups if
    asked.
    """
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in {row.key: row for row in reversed(list(rows))}.values():
        grouped[row.group].append(row)
    groups = [sorted(group, key=lambda row: row.line) for group in grouped.values()]
    groups.sort(key=lambda group: group[0].line)
    if not keep_order:
        groups.sort(key=lambda group: (group[0].models, -sum(row.work for row in group)))
    return [group[start : start + largest] for group in groups for start in range(0, len(group), largest)]


def in_shard(row: Row, shard: tuple[int, int]) -> bool:
    """Whether a row falls to the shard I of N, counted from 1; whole groups do."""
    index, total = shard
    return int(row.group[:15], 16) % total == index - 1


def parse_shard(text: str) -> tuple[int, int]:
    """Return I and N of `I/N`.

    Raises:
        ParamsError: it is no such thing.
    """
    index, total = pair(text, "I/N", example="--shard 3/16", mark="/")
    if not (index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total)):
        raise ParamsError(f"the shard {text!r} is not I/N, with I from 1 to N", hint="for example 3/16")
    return int(index), int(total)


def make_rows(
    clips: Sequence[str],
    method_name: str,
    *,
    sweeps: Sequence[str] = (),
    values: Sequence[str] = (),
    preset: str | None = None,
) -> list[EditRequest]:
    """Return a request for each clip and each combination of the swept values.

    Args:
        clips: Files, or patterns that find some.
        method_name: The method.
        sweeps: `NAME=0..9` or `NAME=a,b,c`; the seed, or a parameter of the method.
        values: `NAME=VALUE` for all rows.
        preset: Where the parameters start from.

    Raises:
        RequestError: there is no clip.
        ParamsError: the method does not take a value.
    """
    spec = method(method_name)
    matches = (sorted(glob.glob(pattern)) for pattern in clips)  # noqa: PTH207 - a pattern may be absolute
    found = [Path(path).absolute() for path in itertools.chain.from_iterable(matches)]
    if not found:
        raise RequestError(
            f"no clip is called {' or '.join(clips)}", hint="for example --clips 'shots/*.mp4'"
        )
    swept = [pair(text, "NAME=VALUES", example="--sweep seed=0..9") for text in sweeps]
    fixed: dict[str, Any] = dict([pair(text, example="--set steps=20") for text in values])
    lists = {option.name for option in describe(spec.params) if option.kind == "list"}
    requests = []
    for clip, *chosen in itertools.product(found, *(_swept(text) for _, text in swept)):
        given: dict[str, Any] = dict(fixed)
        given.update(zip([name for name, _ in swept], chosen, strict=True))
        ours: dict[str, Any] = {name: given.pop(name) for name in ("seed", "range") if name in given}
        given = {name: [value] if name in lists else value for name, value in given.items()}
        params = spec.fill(from_folder(spec.params, given, Path.cwd()), preset=preset)
        told: dict[str, Any] = {"video": clip, "method": method_name, **ours}
        requests.append(parse(EditRequest, {**told, "params": params.model_dump(mode="json")}))
    return requests


def _swept(text: str) -> list[str]:
    span = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    return [str(n) for n in range(int(span[1]), int(span[2]) + 1)] if span else text.split(",")


def write_rows(path: Path, rows: Iterable[Row | Fault | EditRequest]) -> None:
    """Write rows as JSON lines."""
    told = (row.model_dump(mode="json") if isinstance(row, EditRequest) else row.as_json() for row in rows)
    write_whole(path, "".join(json.dumps(values, ensure_ascii=False) + "\n" for values in told))
