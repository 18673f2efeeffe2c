// The stage: a frame with what is painted and marked on it, tools that work there, and comparing.

import { ask, clipPath, picture, runPath } from './api.js';
import { compareOver } from './compare.js';
import { StrokeRecorder, keepLists, layerToPaint, pencil } from './history.js';
import { outline, tinted } from './marks.js';
import { grab, layDown, outlinePicture } from './pictures.js';
import { change, layersHere, marksByKind, on, state } from './store.js';

const canvas = /** @type {HTMLCanvasElement} */ (document.getElementById('stage'));
const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d'));
const proxy = /** @type {HTMLVideoElement} */ (document.getElementById('proxy'));
/** What is compared, the one below first. */
const results = ['below', 'result'].map((id) => /** @type {HTMLVideoElement} */ (document.getElementById(id)));
const compared = () => (state.compare ? [state.compare.below, state.compare.run] : ['', '']);
const say = (/** @type {string} */ id, /** @type {string} */ text) => { const at = document.getElementById(id); if (at) at.textContent = text; };

/** @type {{frame: number, image: CanvasImageSource} | null} */ let still = null;
/** @type {{frame: number, image: ImageBitmap} | null} */ let carried = null;
/** @type {{frame: number, image: ImageBitmap} | null} */ let object = null;
/** @type {({frame: number, run: string, image: ImageBitmap} | null)[]} */ let previews = [null, null];
/** @type {any} */ let drawing = null;
/** @type {AbortController | null} */ let fetching = null;
/** @type {number} */ let resting = 0;

/** How image pixels become canvas pixels. */
export function view() {
  const clip = state.clip;
  if (!clip) return { scale: 1, x: 0, y: 0 };
  const pixels = devicePixelRatio;
  const fit = Math.min(canvas.width / clip.width, canvas.height / clip.height) * 0.97;
  const scale = state.zoom ? state.zoom * pixels : fit;
  return { scale, x: (canvas.width - clip.width * scale) / 2 + state.pan[0] * pixels, y: (canvas.height - clip.height * scale) / 2 + state.pan[1] * pixels };
}

/** Draw the stage, or only a rectangle of it in pixels of the clip, which is what keeps a stroke quick. */
export function draw(/** @type {number[] | null} */ part = null) {
  const clip = state.clip;
  pen.setTransform(1, 0, 0, 1, 0, 0);
  if (!clip) return pen.clearRect(0, 0, canvas.width, canvas.height);
  const { scale, x, y } = view();
  pen.save();
  pen.setTransform(scale, 0, 0, scale, x, y);
  if (part) { pen.beginPath(); pen.rect(part[0], part[1], part[2], part[3]); pen.clip(); } else {
    pen.save(); pen.setTransform(1, 0, 0, 1, 0, 0); pen.clearRect(0, 0, canvas.width, canvas.height); pen.restore();
  }
  pen.imageSmoothingEnabled = scale < 3;
  const exact = still?.frame === state.frame && !state.playing;
  const [below, above] = compared().map(shownOf);
  const shown = below ?? (exact && still ? still.image : proxy);
  if (shown !== proxy || proxy.readyState >= 2) pen.drawImage(shown, 0, 0, clip.width, clip.height);
  if (state.compare) { if (above) compareOver(pen, shown, above, scale); } else {
    if (state.carry && carried?.frame === state.frame && !layersHere().length) pen.drawImage(carried.image, 0, 0, clip.width, clip.height);
    if (object?.frame === state.frame && state.cutout && !state.playing) { pen.globalAlpha = 0.32; pen.drawImage(object.image, 0, 0, clip.width, clip.height); pen.globalAlpha = 1; }
    for (const layer of layersHere()) if (layer.visible) { pen.globalAlpha = layer.opacity; pen.drawImage(layer.canvas, 0, 0); }
    pen.globalAlpha = 1;
    for (const mark of [...state.marks, ...(drawing?.mark ? [drawing.mark] : [])]) if (mark.frame === state.frame) outline(pen, mark, scale);
    outlinePicture(pen, scale);
  }
  pen.restore();
  say('exact', exact ? 'exact' : 'small copy');
}

/** The frame of a run's result under the playhead, as far as it is here. */
function shownOf(/** @type {string} */ run, /** @type {number} */ which) {
  const found = previews[which];
  if (!run) return null;
  if (found?.run === run && found.frame === state.frame && !state.playing) return found.image;
  return results[which].readyState >= 2 ? results[which] : null;
}

/** Whether the frame under the playhead is shown with the paint that is carried into it. */
export const isCarried = () => state.carry && carried?.frame === state.frame;
/** Whether what the marks cut out, or the other frame of a comparison, is shown. */
export const isCut = () => object?.frame === state.frame;
export const isCompared = () => Boolean(state.compare) && previews[1]?.frame === state.frame;

/** Bring the exact frame, the cut-out, the carried paint and the compared frame, once the playhead rests. */
function rest() {
  clearTimeout(resting);
  fetching?.abort();
  if (!state.clip || state.playing) return;
  resting = setTimeout(bring, 150);
}

async function bring() {
  const { clip, frame } = state;
  if (!clip) return;
  const { signal } = (fetching = new AbortController());
  const quiet = async (/** @type {() => Promise<any>} */ work) => { try { await work(); } catch (error) { if (!signal.aborted) say('cutout-note', `${error.message}. ${error.hint ?? ''}`); } };
  const get = async (/** @type {string} */ path, /** @type {any} */ more = {}) => { const image = await picture(path, { signal, ...more }); signal.throwIfAborted(); return image; };
  if (still?.frame !== frame) await quiet(async () => { still = { frame, image: await get(clipPath(clip.id, `/frames/${frame}.png`)) }; });
  for (const [which, run] of compared().entries())
    if (run) await quiet(async () => { previews[which] = { frame, run, image: await get(runPath(run, `/preview/${frame}.jpg`)) }; });
  object = null;
  const marks = marksByKind();
  if (state.cutout && state.marks.some((mark) => mark.frame === frame))
    await quiet(async () => { object = { frame, image: await tinted(await get(clipPath(clip.id, '/cutout'), { method: 'POST', body: { frame, marks } })) }; say('cutout-note', ''); });
  if (state.carry && !layersHere().length && state.keys.size)
    await quiet(async () => { carried = { frame, image: await get(clipPath(clip.id, '/carry'), { method: 'POST', body: { frame, ...marks } }) }; say('cutout-note', ''); });
  draw();
}

/** Show the frame under the playhead from the small copy. */
function seek() {
  if (!state.clip || state.playing) return;
  const moment = (state.frame + 0.5) / rate();
  if (proxy.readyState) proxy.currentTime = moment;
  for (const result of results) if (result.readyState) result.currentTime = moment;
  draw();
  rest();
}

/** Frames a second, exactly. */
export function rate() {
  const [over, under] = (state.clip?.rate ?? '25').split('/').map(Number);
  return over / (under || 1);
}

for (const each of [proxy, ...results]) {
  const again = () => { if (!state.playing) draw(); each.requestVideoFrameCallback(again); };
  each.addEventListener('seeked', () => draw()); // on a busy machine the frame itself may come later
  each.requestVideoFrameCallback(again);
}

/** Play, or rest on the frame that is shown. */
export function play() {
  if (!state.clip || !proxy.readyState) return;
  if (state.playing) { for (const each of [proxy, ...results]) each.pause(); return change({ playing: false }); }
  proxy.loop = state.loop;
  change({ playing: true });
  for (const each of [proxy, ...results]) if (each.readyState) { each.playbackRate = state.speed; each.play(); }
  const follow = (/** @type {number} */ _now, /** @type {{mediaTime: number}} */ shown) => {
    if (!state.playing) return;
    change({ frame: Math.min(/** @type {any} */ (state.clip).frames - 1, Math.floor(shown.mediaTime * rate() + 0.01)) });
    for (const result of results) if (result.readyState && Math.abs(result.currentTime - proxy.currentTime) > 0.08) result.currentTime = proxy.currentTime;
    draw();
    proxy.requestVideoFrameCallback(follow);
  };
  proxy.requestVideoFrameCallback(follow);
}
proxy.addEventListener('ended', () => change({ playing: false }));

/** Load the small copy of the clip, waiting while it is made. */
export async function loadProxy() {
  const clip = state.clip;
  [still, carried, object, previews] = [null, null, null, [null, null]];
  proxy.removeAttribute('src');
  while (clip && clip === state.clip) {
    const answer = await ask(clipPath(clip.id, '/proxy'), { headers: { Range: 'bytes=0-0' } });
    if (answer instanceof Response) break;
    say('copying', `making a small copy: ${Math.round(100 * answer.done)} %`);
    await new Promise((done) => setTimeout(done, 300));
  }
  if (!clip || clip !== state.clip) return;
  say('copying', '');
  proxy.src = clipPath(clip.id, '/proxy');
  proxy.addEventListener('loadeddata', () => change({ frame: state.frame }), { once: true });
}

// --- tools

const placeOf = (/** @type {PointerEvent} */ event) => {
  const box = canvas.getBoundingClientRect();
  const { scale, x, y } = view();
  return [((event.clientX - box.left) * devicePixelRatio - x) / scale, ((event.clientY - box.top) * devicePixelRatio - y) / scale];
};

canvas.addEventListener('pointerdown', (event) => {
  if (!state.clip || !state.ready || state.playing || event.button) return;
  canvas.setPointerCapture(event.pointerId);
  const at = placeOf(event);
  if (state.compare) drawing = { split: true };
  else if (state.tool === 'brush' || state.tool === 'eraser') {
    const layer = layerToPaint();
    if (!layer) return;
    layDown(layer);
    drawing = { layer, recorder: new StrokeRecorder(layer.canvas), last: at };
    dab(at, at, event.pressure);
  } else if (state.tool === 'hand') drawing = { from: [event.clientX, event.clientY], pan: state.pan };
  else if (state.tool === 'pick') change({ brush: { ...state.brush, colour: colourAt(at) }, tool: 'brush' });
  else if (state.tool === 'move') { const drag = grab(at, view().scale); drawing = drag && { drag }; } else drawing = { mark: { kind: state.tool, frame: state.frame, points: [at, at], name: '' } };
});

canvas.addEventListener('pointermove', (event) => {
  if (!drawing) return;
  const at = placeOf(event);
  if (drawing.split) change({ compare: { ...state.compare, at: Math.min(1, Math.max(0, at[0] / /** @type {any} */ (state.clip).width)) } });
  else if (drawing.from) change({ pan: [drawing.pan[0] + event.clientX - drawing.from[0], drawing.pan[1] + event.clientY - drawing.from[1]] });
  else if (drawing.drag) { drawing.drag(at, event.shiftKey); draw(); } else if (drawing.recorder) {
    for (const step of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
      const to = placeOf(step);
      dab(drawing.last, to, step.pressure);
      drawing.last = to;
    }
  } else if (drawing.mark) {
    if (drawing.mark.kind === 'box') drawing.mark.points[1] = at;
    else drawing.mark.points.push(at);
    draw();
  }
});

function finish() {
  const ended = drawing;
  drawing = null;
  if (ended?.recorder) { ended.recorder.end(); change({ version: state.version + 1 }); }
  if (ended?.drag) change({ version: state.version + 1 });
  if (ended?.mark) addMark(ended.mark);
}
canvas.addEventListener('pointerup', finish);
canvas.addEventListener('pointercancel', finish);

/** Take in a mark that is large enough to mean something, with the corners of a box in order. */
export function addMark(/** @type {any} */ mark) {
  if (!state.ready) return;
  let points = mark.points;
  if (mark.kind === 'box') {
    const [[a, b], [c, d]] = points;
    points = [[Math.min(a, c), Math.min(b, d)], [Math.max(a, c), Math.max(b, d)]];
    if (points[1][0] - points[0][0] < 2 || points[1][1] - points[0][1] < 2) return draw();
  } else points = points.filter((/** @type {any} */ _, /** @type {number} */ i) => i === 0 || i === points.length - 1 || i % Math.ceil(points.length / 60) === 0);
  keepLists();
  change({ marks: [...state.marks, { ...mark, points }], version: state.version + 1 });
}

/** Paint from one place to another and show it at once. */
function dab(/** @type {number[]} */ from, /** @type {number[]} */ to, pressure = 0.5) {
  const { size, hardness, opacity, colour } = state.brush;
  const width = Math.max(1, size * (pressure && pressure !== 0.5 ? 0.3 + pressure : 1));
  const soft = (1 - hardness) * width / 2;
  const edge = width / 2 + 3 * soft + 2;
  const box = [Math.floor(Math.min(from[0], to[0]) - edge), Math.floor(Math.min(from[1], to[1]) - edge)];
  const area = [...box, Math.ceil(Math.max(from[0], to[0]) + edge) - box[0], Math.ceil(Math.max(from[1], to[1]) + edge) - box[1]];
  drawing.recorder.touch(...area);
  const brush = pencil(drawing.layer.canvas);
  brush.save();
  brush.globalCompositeOperation = state.tool === 'eraser' ? 'destination-out' : 'source-over';
  brush.globalAlpha = opacity;
  brush.strokeStyle = colour;
  brush.lineWidth = width;
  brush.lineCap = brush.lineJoin = 'round';
  brush.beginPath(); brush.rect(area[0], area[1], area[2], area[3]); brush.clip(); // a blur of all of it is slow
  if (soft > 0.5) brush.filter = `blur(${soft.toFixed(1)}px)`;
  brush.beginPath(); brush.moveTo(from[0], from[1]); brush.lineTo(to[0] + 0.01, to[1]); brush.stroke();
  brush.restore();
  draw(area);
}

function colourAt(/** @type {number[]} */ at) {
  const { scale, x, y } = view();
  const [r, g, b] = pen.getImageData(at[0] * scale + x, at[1] * scale + y, 1, 1).data;
  return `#${[r, g, b].map((value) => value.toString(16).padStart(2, '0')).join('')}`;
}

canvas.addEventListener('wheel', (event) => { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); }, { passive: false });

export function zoomBy(/** @type {number} */ factor) {
  change({ zoom: Math.min(16, Math.max(0.05, view().scale / devicePixelRatio * factor)) });
}

new ResizeObserver(() => {
  const box = /** @type {HTMLElement} */ (canvas.parentElement).getBoundingClientRect();
  [canvas.width, canvas.height] = [Math.round(box.width * devicePixelRatio), Math.round(box.height * devicePixelRatio)];
  change({ pan: state.pan }); // drawn anew, with the zoom that fits
}).observe(/** @type {HTMLElement} */ (canvas.parentElement));

on('frame', seek);
let finished = 0;
on('runs', () => { // one that finished may have made the atlas
  const before = finished;
  finished = state.runs.filter((each) => each.state === 'done').length;
  if (finished !== before && state.carry && !isCarried()) rest();
});
on('clip marks keys layer tool version zoom pan compare carry cutout playing', () => {
  for (const [which, run] of compared().entries()) {
    if (!run) results[which].removeAttribute('src');
    else if (!results[which].src.endsWith(runPath(run, '/result'))) results[which].src = runPath(run, '/result');
  }
  const clip = state.clip;
  say('zoom', clip ? `zoom ${Math.round(100 * view().scale / devicePixelRatio)} %` : '');
  canvas.dataset.tool = state.tool;
  draw();
  rest();
});
on('frame clip', () => {
  const clip = state.clip;
  say('where', clip ? `frame ${state.frame} of ${clip.frames}   ${(state.frame / clip.fps).toFixed(3)} s` : '');
});
on('marks keys frame', () => {
  const kinds = state.marks.filter((mark) => mark.frame === state.frame).map((mark) => mark.kind);
  say('stage-text', state.clip ? `Frame ${state.frame} of ${state.clip.name}; ${layersHere().length} paint layers; marks: ${kinds.join(', ') || 'none'}.` : 'No clip is open.');
});
