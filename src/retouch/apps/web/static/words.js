// Editing the frame under the playhead by words: what is asked, how far it is, and the layer that it becomes.

import { ask, clipPath, picture } from './api.js';
import { computeNow } from './form.js';
import { addLayer, newCanvas, pencil } from './history.js';
import { save } from './panels.js';
import { change, layersHere, marksByKind, on, state } from './store.js';
import { el, go, refill } from './timeline.js';

const at = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const READS = { scene: 'what the whole frame shall show: a blue car on bricks', order: 'what to do: make the car blue' };
const PLACES = { anywhere: 'anywhere', box: 'in the box', cutout: 'in the cut-out' };
const FOLDER = 'a folder …';

const option = (/** @type {string} */ value, text = value) => el('option', { value, textContent: text });
const row = (/** @type {string} */ name, /** @type {HTMLElement} */ input) => el('label', {}, name, input);
const number = (/** @type {string} */ name, /** @type {string} */ placeholder) => el('input', { type: 'text', inputMode: 'decimal', name, placeholder });
const prompt = el('textarea', { name: 'prompt', rows: 2, aria: { 'aria-label': 'Words' } });
const model = el('select', { name: 'model' }, option('tiny:sd'));
const folder = el('input', { type: 'text', name: 'folder', placeholder: '/models/editor', hidden: true, aria: { 'aria-label': 'Folder of the model' } });
const fault = el('p', { id: 'words-fault', className: 'fault', aria: { role: 'alert' } });
const start = el('button', { type: 'submit', textContent: 'Edit this frame' });
const form = /** @type {HTMLFormElement} */ (at('words'));
form.append(prompt, row('Model', model), folder,
  row('Where', el('select', { name: 'where' }, ...Object.entries(PLACES).map(([value, text]) => option(value, text)))),
  el('details', {}, el('summary', { textContent: 'Seed, strength, steps' }), el('div', { className: 'more' },
    row('Seed', number('seed', '0')), row('Strength', number('strength', 'the model’s own')),
    row('Guidance', number('guidance', 'the model’s own')), row('Steps', number('steps', 'the model’s own')),
    el('label', { className: 'check' }, el('input', { type: 'checkbox', name: 'anyway' }), 'take words that it was not taught'))),
  fault, start);
model.setAttribute('aria-label', 'Model that edits');

/** Show where the words go, and put the keyboard there. */
export function openWords() { at('by-words').open = true; prompt.focus(); }

at('by-words').ontoggle = async () => {
  if (!at('by-words').open || state.editors.length) return;
  try { change({ editors: await ask('/api/editors') }); } catch (error) { told(error); }
};
on('editors', () => {
  const chosen = model.value;
  model.replaceChildren(...(state.editors.length ? state.editors : [{ name: 'tiny:sd' }]).map(({ name }) => option(name)), option(FOLDER));
  model.value = chosen;
  showModel();
});
function showModel() {
  folder.hidden = model.value !== FOLDER;
  const { reads = folder.hidden ? 'scene' : 'order' } = state.editors.find((each) => each.name === model.value) ?? {};
  prompt.placeholder = READS[/** @type {'scene' | 'order'} */ (reads)];
}
model.onchange = showModel;
on('frame clip', () => { start.textContent = `Edit frame ${state.frame}`; start.disabled = !state.clip; });

/** Say what is wrong, at its field. */
function told(/** @type {any} */ error = null) {
  fault.textContent = error ? `${error.message}. ${error.hint ?? ''}` : '';
  for (const input of form.querySelectorAll('[name]')) input.setAttribute('aria-invalid', String(Boolean(error) && error.field === input.getAttribute('name')));
}

const meant = (/** @type {string} */ text) => (Number.isNaN(Number(text)) ? text : Number(text));
/** What is asked of the frame under the playhead. */
function asked() {
  const given = new FormData(form);
  const numbers = ['seed', 'strength', 'guidance', 'steps'].filter((name) => given.get(name));
  return { frame: state.frame, prompt: prompt.value.trim(), model: folder.hidden ? model.value : folder.value.trim(), where: given.get('where'), anyway: given.has('anyway'),
    ...Object.fromEntries(numbers.map((name) => [name, meant(String(given.get(name)))])), ...marksByKind(), compute: computeNow() };
}

async function begin(/** @type {any} */ wanted) {
  const clip = state.clip;
  if (!clip) return;
  told();
  try {
    await ask(clipPath(clip.id, '/edits'), { method: 'POST', body: wanted });
    await look();
  } catch (error) { told(error); }
}
form.onsubmit = (/** @type {Event} */ event) => {
  event.preventDefault();
  if (layersHere().length >= 8) told({ message: 'this frame has eight layers', hint: 'Remove one first.' });
  else begin(asked());
};
form.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || (event.target !== prompt && !event.ctrlKey && !event.metaKey)) return;
  event.preventDefault();
  event.stopPropagation(); // the same keys run the method elsewhere
  form.requestSubmit();
});

// --- what becomes of it

/** @type {any} */ let soon = 0;
/** Frames whose answers are being taken, so that none is taken twice.
 * @type {Set<string>} */ const taking = new Set();
const isOver = (/** @type {any} */ edit) => !['waiting', 'running'].includes(edit.state);

/** See how the edits of the clip stand, take the answers, and look again while any is at work. */
async function look() {
  const clip = state.clip;
  clearTimeout(soon);
  if (!clip || !state.ready) return;
  const again = (/** @type {number} */ wait) => { clearTimeout(soon); soon = setTimeout(() => look(), wait); };
  try {
    const edits = await ask(clipPath(clip.id, '/edits'));
    if (clip.id !== state.clip?.id) return;
    change({ edits });
    for (const edit of edits) if (edit.state === 'done') await take(clip, edit.asked);
    if (edits.some((/** @type {any} */ edit) => !isOver(edit))) again(500);
  } catch (error) { told(error); again(4000); }
}
on('ready', () => look());
on('keys', () => { if (state.edits.some((edit) => edit.state === 'done')) look(); }); // there may be room for it now

/** Lay an answer over its frame as a layer, which is saved before the server forgets it. */
async function take(/** @type {import('./store.js').Clip} */ clip, /** @type {any} */ { frame, prompt: words }) {
  const path = clipPath(clip.id, `/edits/${frame}`);
  if (taking.has(path)) return;
  taking.add(path);
  try {
    const image = await picture(`${path}.png`);
    if (clip.id !== state.clip?.id || !state.ready) return;
    const canvas = newCanvas(clip.width, clip.height);
    pencil(canvas).drawImage(image, 0, 0);
    if (!addLayer(canvas, words.slice(0, 60), undefined, frame)) return;
    at('live').textContent = `frame ${frame} is edited; it has a new layer`;
    await save();
    await forget(path);
  } finally { taking.delete(path); }
}

async function forget(/** @type {string} */ path) {
  await ask(path, { method: 'DELETE' });
  change({ edits: state.edits.filter((edit) => path !== clipPath(state.clip?.id ?? '', `/edits/${edit.asked.frame}`)) });
}

on('edits', () => refill(at('edits'), state.edits.map((edit) => {
  const { asked: wanted, state: how, stage = '', share = 0, error = '', hint = '' } = edit;
  const path = clipPath(/** @type {any} */ (state.clip).id, `/edits/${wanted.frame}`);
  const button = (/** @type {string} */ text, /** @type {() => any} */ onclick) => el('button', { type: 'button', textContent: text, onclick, aria: { 'aria-label': `${text} the edit of frame ${wanted.frame}` } });
  const item = el('li', { className: how }, el('button', { type: 'button', className: 'link', textContent: `frame ${wanted.frame}`, title: wanted.prompt, onclick: () => go(wanted.frame) }));
  if (how === 'waiting') item.append('waits for its turn');
  if (how === 'running') item.append(`${stage} ${Math.round(100 * share)} %`, el('progress', { max: 1, value: share, aria: { 'aria-label': `Edit of frame ${wanted.frame}` } }));
  if (how === 'done') item.append((state.keys.get(wanted.frame)?.length ?? 0) < 8 ? 'comes' : 'The frame has eight layers: remove one to take it.');
  if (how === 'stopped') item.append('was stopped');
  if (error) item.append(el('p', { className: 'fault', textContent: `${error}. ${hint}` }));
  if (['failed', 'stopped'].includes(how)) item.append(button('Try again', () => begin(wanted)));
  item.append(button(isOver(edit) ? 'Remove' : 'Stop', () => forget(path).catch(told)));
  return item;
})));
