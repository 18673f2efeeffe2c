// The page: opens clips, hands out keys, starts the rooms.

import { ask } from './api.js';
import { flicker } from './compare.js';
import { loadMethods, request, run } from './form.js';
import { addLayer, redo, undo } from './history.js';
import { TOOLS, leave, restore, save } from './panels.js';
import { layPicture } from './pictures.js';
import { compare, loadRuns } from './runs.js';
import { loadProxy, play, zoomBy } from './stage.js';
import { change, on, state } from './store.js';
import { dropOn, el, go, goKey, thumbnails } from './timeline.js';
import { openWords } from './words.js';

const at = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));
const tell = (/** @type {any} */ error) => change({ faults: { '': `${error.message}. ${error.hint ?? ''}` } });

async function loadClips(/** @type {string} */ show = '') {
  const clips = await ask('/api/clips');
  change({ clips });
  const wanted = clips.find((/** @type {any} */ clip) => clip.id === (show || state.clip?.id || location.hash.slice(1))) ?? clips[0];
  if (wanted && wanted.id !== state.clip?.id) await showClip(wanted);
  return clips.length;
}

/** @type {Promise<any>} */ let shown = Promise.resolve();

/** Leave the clip that is open for another, once what was done on it is saved. */
function showClip(/** @type {any} */ clip) {
  return (shown = shown.then(leave).then(() => {
    history.replaceState(null, '', `#${clip.id}`);
    change({ clip, frame: 0, zoom: 0, pan: [0, 0], playing: false, compare: null });
    Promise.all([restore(), loadProxy()]).catch(tell);
  }, (error) => { tell(error); change({ clips: state.clips }); })); // the clip stays, and so does its name in the list
}

/** Send a clip; a picture is laid over the frame instead. */
async function take(/** @type {File} */ file) {
  try {
    if (file.type.startsWith('image/') && state.clip) return await layPicture(file);
    at('where').textContent = `sending ${file.name}`;
    const clip = await ask('/api/clips', { method: 'POST', body: file.slice(0, file.size, 'application/octet-stream'), headers: { 'X-Filename': encodeURIComponent(file.name).replace(/%20/g, ' ') } });
    await loadClips(clip.id);
  } catch (error) { tell(error); at('where').textContent = ''; }
}

at('open').onclick = at('open-here').onclick = () => at('file').click();
at('file').onchange = (/** @type {any} */ event) => { if (event.target.files[0]) take(event.target.files[0]); event.target.value = ''; };
document.addEventListener('dragover', (event) => event.preventDefault());
document.addEventListener('drop', (event) => { event.preventDefault(); dropOn(event); for (const file of event.dataTransfer?.files ?? []) take(file); });
document.addEventListener('paste', (event) => { for (const file of event.clipboardData?.files ?? []) take(file); });
at('clip').onchange = (/** @type {any} */ event) => showClip(state.clips.find((clip) => clip.id === event.target.value));
at('save-request').onclick = async () => {
  await save().catch(tell);
  const link = el('a', { href: URL.createObjectURL(new Blob([JSON.stringify(request(), null, 2)], { type: 'application/json' })), download: 'request.json' });
  link.click();
};
at('copy-command').onclick = async () => {
  try {
    await save();
    const { command } = await ask('/api/command', { method: 'POST', body: request() });
    await navigator.clipboard.writeText(command);
    at('live').textContent = 'the command is copied';
    at('copy-command').textContent = 'Copied';
    setTimeout(() => { at('copy-command').textContent = 'Copy as command'; }, 1500);
  } catch (error) { tell(error); }
};
at('carry').onchange = (/** @type {any} */ event) => change({ carry: event.target.checked });
at('cutout').onchange = (/** @type {any} */ event) => change({ cutout: event.target.checked });

const theme = (/** @type {string} */ name) => { document.documentElement.dataset.theme = name; at('theme').textContent = name === 'light' ? 'Dark' : 'Light'; localStorage.setItem('theme', name); };
at('theme').onclick = () => theme(document.documentElement.dataset.theme === 'light' ? 'dark' : 'light');
theme(localStorage.getItem('theme') ?? (matchMedia('(prefers-color-scheme: light)').matches ? 'light' : 'dark'));

// --- keys

/** @type {Object<string, [string, (event: KeyboardEvent) => any]>} */
const KEYS = {
  ' ': ['play', () => play()],
  ArrowLeft: ['a frame back, ten with Shift', (event) => go(state.frame - (event.shiftKey ? 10 : 1))],
  ArrowRight: ['a frame on, ten with Shift', (event) => go(state.frame + (event.shiftKey ? 10 : 1))],
  Home: ['first frame', () => go(0)],
  End: ['last frame', () => go(Infinity)],
  k: ['key frame here', () => addLayer()],
  w: ['edit this frame by words', () => openWords()],
  ',': ['key frame before', () => goKey(-1)],
  '.': ['next key frame', () => goKey(1)],
  '[': ['smaller brush', () => change({ brush: { ...state.brush, size: Math.max(1, Math.round(state.brush.size / 1.25)) } })],
  ']': ['larger brush', () => change({ brush: { ...state.brush, size: Math.min(200, Math.round(state.brush.size * 1.25) + 1) } })],
  '+': ['closer', () => zoomBy(1.25)],
  '-': ['farther', () => zoomBy(0.8)],
  0: ['all of the frame', () => change({ zoom: 0, pan: [0, 0] })],
  '\\': ['compare with the last result', () => compare(state.compare ? null : state.runs.find((each) => each.state === 'done')?.run ?? null)],
  t: ['the other one of two, in a flicker', () => flicker()],
  '?': ['these keys', () => at('keys').showModal()],
};
for (const [tool, [key, name]] of Object.entries(TOOLS)) KEYS[key.toLowerCase()] = [name.toLowerCase(), () => change({ tool })];

let keysOn = localStorage.getItem('keys') !== 'off';
document.addEventListener('keydown', (event) => {
  const field = /** @type {HTMLElement} */ (event.target).closest('input:not([type=checkbox]):not([type=color]), textarea, select, dialog');
  if ((event.ctrlKey || event.metaKey) && event.key === 'Enter') { event.preventDefault(); return run(); }
  if (field || !keysOn) return undefined;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z') { event.preventDefault(); return event.shiftKey ? redo() : undo(); }
  if (event.ctrlKey || event.metaKey || event.altKey) return undefined;
  if (event.key === ' ' && /** @type {HTMLElement} */ (event.target).closest('button, a, summary, input')) return undefined;
  const found = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (found) { event.preventDefault(); found[1](event); }
  return undefined;
});
at('help').onclick = () => at('keys').showModal();
at('keys').append(el('h2', { textContent: 'Keys' }), el('dl', {}, ...[...Object.entries(KEYS).map(([key, [does]]) => [{ ' ': 'Space', ArrowLeft: '←', ArrowRight: '→' }[key] ?? key.toUpperCase(), does]), ['Ctrl+Z', 'undo'], ['Ctrl+Shift+Z', 'redo'], ['Ctrl+Enter', 'run']].flatMap(([key, does]) => [el('dt', {}, el('kbd', { textContent: key })), el('dd', { textContent: does })])),
  el('label', {}, el('input', { type: 'checkbox', checked: keysOn, onchange: (/** @type {any} */ event) => { keysOn = event.target.checked; localStorage.setItem('keys', keysOn ? 'on' : 'off'); } }), ' single keys work'),
  el('form', { method: 'dialog' }, el('button', { textContent: 'Close' })));

on('clips clip', () => {
  const clip = state.clip;
  at('clip').replaceChildren(...state.clips.map((each) => el('option', { value: each.id, textContent: each.name, selected: each.id === clip?.id })));
  at('clip').hidden = !state.clips.length;
  at('facts').textContent = clip ? `${clip.width}×${clip.height}   ${clip.frames} f   ${+clip.fps.toFixed(3)}/s   ${clip.facts?.sound ? 'sound' : 'no sound'}` : '';
  at('empty').hidden = Boolean(clip);
});

addEventListener('pagehide', () => { save().catch(() => 0); });
change({ ...state });
await Promise.all([loadMethods(), loadRuns(), loadClips()]).catch(tell);
while (!state.clips.length) { await new Promise((done) => setTimeout(done, 1500)); await loadClips().catch(() => 0); }
addEventListener('resize', thumbnails);
