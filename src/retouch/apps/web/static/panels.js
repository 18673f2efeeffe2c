// What stands left of the stage: tools, brush, layers, marks; and the saving of all of it.

import { ask, clipPath } from './api.js';
import { addLayer, forget, isBlank, keepLists, newCanvas, pencil, redo, revision, undo } from './history.js';
import { layPicture, place } from './pictures.js';
import { addMark } from './stage.js';
import { change, layersHere, marksByKind, on, readMark, spelled, state } from './store.js';
import { el, go, refill } from './timeline.js';

const at = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));

/** Tools with their keys and their icons, drawn in a square of 20. */
export const TOOLS = {
  move: ['V', 'Move', 'M10 2v16M2 10h16M10 2l-2 2m2-2 2 2M10 18l-2-2m2 2 2-2M2 10l2-2m-2 2 2 2M18 10l-2-2m2 2-2 2'],
  hand: ['H', 'Hand', 'M6 11V6a1.3 1.3 0 0 1 2.6 0v4V4a1.3 1.3 0 0 1 2.6 0v6V5a1.3 1.3 0 0 1 2.6 0v7c0 4-2 6-4.500 6-2.600 0-3.700-1.500-5.300-5z'],
  brush: ['B', 'Brush', 'M17 3 9 11M8 11c-3 0-2 4-5 5 3 2 7 1 7-3z'],
  eraser: ['E', 'Eraser', 'm4 13 8-9 5 5-7 8H7zM8 9l5 5'],
  pick: ['I', 'Pick a colour', 'm4 16 1-3 7-7 2 2-7 7zM11 5l2-2 4 4-2 2'],
  box: ['M', 'Box', 'M4 5h12v10H4z'],
  stroke: ['S', 'Stroke on the object', 'M3 14c4-10 6 4 14-7'],
  outside: ['X', 'Stroke outside it', 'M3 14c4-10 6 4 14-7M13 13l4 4m0-4-4 4'],
  polygon: ['G', 'Outline', 'm10 3 7 5-3 8H6L3 8z'],
};

function icon(/** @type {string} */ path) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  made.setAttribute('viewBox', '0 0 20 20');
  made.setAttribute('aria-hidden', 'true');
  const line = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  line.setAttribute('d', path);
  made.append(line);
  return made;
}

for (const [id, turn, path] of /** @type {[string, () => void, string][]} */ ([['undo', undo, 'M8 5 4 9l4 4M4 9h8a4 4 0 0 1 0 8h-2'], ['redo', redo, 'm12 5 4 4-4 4M16 9H8a4 4 0 0 0 0 8h2']])) {
  at(id).append(icon(path));
  at(id).onclick = turn;
}

on('tool', () => refill(at('tools'), Object.entries(TOOLS).map(([tool, [key, name, path]]) =>
  el('button', { type: 'button', className: 'tool', title: `${name} (${key})`, onclick: () => change({ tool }),
    tabIndex: tool === state.tool ? 0 : -1, aria: { role: 'radio', 'aria-checked': tool === state.tool, 'aria-label': `${name}, key ${key}` } }, icon(path)))));
at('tools').addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  const names = Object.keys(TOOLS);
  change({ tool: names[(names.indexOf(state.tool) + by + names.length) % names.length] });
  queueMicrotask(() => at('tools').querySelector('[aria-checked=true]').focus());
});

const slider = (/** @type {string} */ name, /** @type {'size'|'hardness'|'opacity'} */ field, /** @type {number} */ low, /** @type {number} */ high, step = 0.01) =>
  el('label', { className: 'slide' }, name, el('input', { type: 'range', min: low, max: high, step, value: state.brush[field],
    oninput: (/** @type {any} */ event) => change({ brush: { ...state.brush, [field]: +event.target.value } }) }), el('output', { textContent: state.brush[field] }));
on('brush tool', () => {
  if (at('brush').contains(document.activeElement) && at('brush').children.length) {
    at('brush').querySelectorAll('.slide').forEach((/** @type {any} */ row) => { row.querySelector('output').textContent = row.querySelector('input').value; });
    return;
  }
  at('brush').replaceChildren(
    el('label', { className: 'slide' }, 'Colour', el('input', { type: 'color', value: state.brush.colour, oninput: (/** @type {any} */ event) => change({ brush: { ...state.brush, colour: event.target.value } }) }), el('output', { textContent: state.brush.colour })),
    slider('Size', 'size', 1, 200, 1), slider('Hardness', 'hardness', 0, 1), slider('Opacity', 'opacity', 0.05, 1));
});

// --- layers

function alter(/** @type {number} */ index, /** @type {Object<string, any>} */ what) {
  keepLists();
  const layers = layersHere().map((layer, i) => (i === index ? { ...layer, ...what } : layer));
  change({ keys: new Map(state.keys).set(state.frame, layers), version: state.version + 1 });
}

function drop(/** @type {number} */ index) {
  keepLists();
  const layers = layersHere().filter((_, i) => i !== index);
  const keys = new Map(state.keys);
  if (layers.length) keys.set(state.frame, layers);
  else keys.delete(state.frame);
  change({ keys, layer: Math.max(0, state.layer - 1), version: state.version + 1 });
}

/** Lay the copied layer over this frame; a picture can still be moved. */
function paste() {
  const { canvas, name, picture } = /** @type {import('./store.js').Layer} */ (state.copied);
  const copy = newCanvas(canvas.width, canvas.height);
  pencil(copy).drawImage(canvas, 0, 0);
  addLayer(copy, name, picture && { ...picture });
}
on('copied', () => { at('paste').hidden = !state.copied; at('paste').title = `Lay ${state.copied?.name} over this frame`; });
at('paste').onclick = paste;

on('keys frame layer version', () => refill(at('layers'), layersHere().map((layer, index) => {
  const row = el('li', { className: index === state.layer ? 'current' : '' },
    el('input', { type: 'checkbox', checked: layer.visible, aria: { 'aria-label': `Show ${layer.name}` }, onchange: (/** @type {any} */ event) => alter(index, { visible: event.target.checked }) }),
    el('button', { type: 'button', className: 'link', textContent: layer.name, title: layer.name, onclick: () => change({ layer: index }), aria: { 'aria-pressed': index === state.layer } }),
    el('input', { type: 'number', min: 0, max: 100, value: Math.round(100 * layer.opacity), className: 'short', aria: { 'aria-label': `Opacity of ${layer.name}, per cent` }, onchange: (/** @type {any} */ event) => alter(index, { opacity: event.target.value / 100 }) }),
    el('button', { type: 'button', className: 'icon', textContent: 'copy', title: 'Copy, to paste it on another frame', onclick: () => change({ copied: layer }), aria: { 'aria-label': `Copy ${layer.name}` } }),
    el('button', { type: 'button', className: 'icon', textContent: '×', title: 'Remove', onclick: () => drop(index), aria: { 'aria-label': `Remove ${layer.name}` } }));
  if (layer.picture && index === state.layer) row.append(numbers(layer));
  return row;
}).reverse()));
at('add-layer').onclick = () => addLayer();
at('add-picture').onclick = () => at('picture').click();
at('picture').onchange = (/** @type {any} */ event) => { if (event.target.files[0]) layPicture(event.target.files[0]); event.target.value = ''; };

/** Fields for where a picture lies, as the stage moves, scales and turns it. */
function numbers(/** @type {import('./store.js').Layer} */ layer) {
  const { x, y, scale, turn } = /** @type {import('./store.js').Picture} */ (layer.picture);
  const field = (/** @type {string} */ name, /** @type {string} */ what, /** @type {number} */ value, /** @type {(value: number) => any} */ given) =>
    el('label', { title: what }, name, el('input', { type: 'number', value: Math.round(value * 10) / 10, className: 'short', aria: { 'aria-label': `${what} of ${layer.name}` },
      onchange: (/** @type {any} */ event) => { if (Number.isFinite(event.target.valueAsNumber)) place(layer, given(event.target.valueAsNumber)); } }));
  return el('div', { className: 'place' },
    field('x', 'Middle, pixels from the left', x, (value) => ({ x: value })), field('y', 'Middle, pixels from the top', y, (value) => ({ y: value })),
    field('%', 'Size in per cent', 100 * scale, (value) => ({ scale: Math.max(1, value) / 100 })), field('°', 'Turn in degrees', turn, (value) => ({ turn: value })));
}

// --- marks

on('marks', () => refill(at('marks'), state.marks.map((mark, index) => el('li', {},
  el('b', { className: `kind ${mark.kind}`, textContent: mark.kind }),
  el('button', { type: 'button', className: 'link', textContent: spelled(mark).slice(0, 26), title: spelled(mark), onclick: () => go(mark.frame) }),
  el('button', { type: 'button', className: 'icon', textContent: '×', aria: { 'aria-label': `Remove the ${mark.kind} on frame ${mark.frame}` },
    onclick: () => { keepLists(); change({ marks: state.marks.filter((_, i) => i !== index), version: state.version + 1 }); } })))));
at('mark-by-numbers').onsubmit = (/** @type {Event} */ event) => {
  event.preventDefault();
  const mark = readMark(at('mark-kind').value, at('mark-text').value);
  at('mark-text').setAttribute('aria-invalid', String(!mark));
  if (!mark || !state.ready) return;
  addMark(mark);
  at('mark-text').value = '';
};

// --- saving: every change is with the server within two seconds

/** What the server has of the clip that is open, by address: a layer's revision, or what a frame's paint is made of.
 * @type {Map<string, string>} */ let saved = new Map();
/** @type {any} */ let timer = 0;
/** @type {Promise<void>} */ let saving = Promise.resolve();
on('version params method', () => saveSoon(700));

function saveSoon(/** @type {number} */ wait) {
  clearTimeout(timer);
  timer = setTimeout(() => save().catch((error) => change({ faults: { '': `not saved: ${error.message}. ${error.hint ?? ''}` } })), wait);
}

/** Send what changed since the last time: bitmaps, the paint of each key frame, and the list of it all. */
export function save() {
  clearTimeout(timer);
  const now = { ...state, saved };
  const send = () => saveClip(now);
  saving = saving.then(send, send);
  saving.catch(() => saveSoon(2000)); // until it is sent
  return saving;
}

/** Save a clip that is about to be left; from here on nothing on it can be changed. If it cannot be saved, it can again. */
export async function leave() {
  const { ready } = state;
  const sent = save();
  change({ ready: false });
  try { await sent; } catch (error) {
    if (error.status === 404) return; // it is not there any more, and takes nothing
    change({ ready });
    throw error;
  }
}

async function saveClip(/** @type {typeof state & {saved: Map<string, string>}} */ { clip, ready, keys, marks, method, params, saved }) {
  if (!clip || !ready) return;
  const send = (/** @type {string} */ path, /** @type {any} */ more) => ask(clipPath(clip.id, path), more);
  const put = async (/** @type {string} */ path, /** @type {HTMLCanvasElement} */ canvas, /** @type {string} */ made) => {
    const body = await new Promise((/** @type {(blob: Blob) => void} */ done) => canvas.toBlob((found) => done(/** @type {Blob} */ (found))));
    const told = await send(path, { method: 'PUT', body });
    saved.set(path, made);
    return told.path;
  };
  const list = Object.fromEntries([...keys].map(([frame, layers]) => [frame, layers.map(({ name, opacity, visible }) => ({ name, opacity, visible }))]));
  const painted = { ...clip.painted };
  for (const [frame, layers] of keys) {
    const [path, made] = [`/paint/${frame}`, looks(layers)];
    for (const [index, { canvas }] of layers.entries()) {
      const [layer, bitmap] = [`${path}?layer=${index}`, String(revision(canvas))];
      if (saved.get(layer) !== bitmap) await put(layer, canvas, bitmap);
    }
    if (saved.get(path) === made) continue;
    const flat = newCanvas(clip.width, clip.height);
    for (const layer of layers) if (layer.visible) { pencil(flat).globalAlpha = layer.opacity; pencil(flat).drawImage(layer.canvas, 0, 0); }
    if (!isBlank(flat)) painted[frame] = await put(path, flat, made);
    else if (painted[frame]) {
      await send(`${path}?layers=keep`, { method: 'DELETE' });
      delete painted[frame];
      saved.delete(path);
    }
  }
  await send('/draft', { method: 'PUT', body: { keys: list, marks, method, params } }); // before what it no longer names is gone
  for (const frame of Object.keys(painted)) if (!keys.has(+frame)) {
    await send(`/paint/${frame}`, { method: 'DELETE' });
    for (const path of [...saved.keys()]) if (path.split('?')[0] === `/paint/${frame}`) saved.delete(path);
    delete painted[frame];
  }
  if (clip !== state.clip) return;
  change({ clip: Object.assign(clip, { painted }) });
  if (Object.keys(painted).length && marks.length) {
    const coverage = await send('/coverage', { method: 'POST', body: marksByKind() }).catch(() => null);
    if (clip === state.clip) change({ coverage });
  }
}

const looks = (/** @type {import('./store.js').Layer[]} */ layers) => layers.map(({ canvas, opacity, visible }) => `${revision(canvas)} ${opacity} ${visible}`).join();

/** Bring back where the work on the clip stood. Until it is back nothing can be changed, and nothing is saved. */
export async function restore() {
  const clip = state.clip;
  const mine = saved = new Map();
  forget();
  change({ keys: new Map(), marks: [], coverage: null, layer: 0, copied: null, ready: false });
  if (!clip) return;
  const draft = await ask(clipPath(clip.id, '/draft'));
  /** @type {Map<number, import('./store.js').Layer[]>} */ const keys = new Map();
  for (const [frame, layers] of Object.entries(draft.keys ?? {})) {
    const made = [];
    for (const [index, layer] of layers.entries()) {
      const [canvas, path] = [newCanvas(clip.width, clip.height), `/paint/${frame}?layer=${index}`];
      try {
        const answer = await ask(clipPath(clip.id, path));
        pencil(canvas).drawImage(await createImageBitmap(await answer.blob()), 0, 0);
        mine.set(path, String(revision(canvas)));
      } catch (error) { if (error.status !== 404) throw error; } // a layer that was never sent is empty
      made.push({ ...layer, id: -made.length - 1, canvas });
    }
    keys.set(+frame, made);
    if (clip.painted[frame]) mine.set(`/paint/${frame}`, looks(made));
  }
  if (mine !== saved) return;
  change({ keys, marks: draft.marks ?? [], params: draft.params ?? {}, method: draft.method ?? state.method, version: state.version + 1, ready: true });
}
