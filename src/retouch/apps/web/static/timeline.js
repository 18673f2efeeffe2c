// The timeline: a slider over thumbnails, with key frames, marks, and where the paint will hold.

import { clipPath } from './api.js';
import { play } from './stage.js';
import { change, on, state } from './store.js';

const place = /** @type {HTMLElement} */ (document.getElementById('timeline'));
place.innerHTML = '';
const el = (/** @type {string} */ tag, /** @type {Object<string, any>} */ given = {}, /** @type {any[]} */ ...inside) => {
  const made = Object.assign(document.createElement(tag), given);
  for (const [name, value] of Object.entries(given.aria ?? {})) made.setAttribute(name, String(value));
  made.append(...inside);
  return made;
};
export { el };

/** Put other things in a place; what had the keyboard there gets it back, by its name or else by its number. */
export function refill(/** @type {HTMLElement} */ place, /** @type {any[]} */ ...inside) {
  const fields = () => /** @type {HTMLElement[]} */ ([...place.querySelectorAll('button, input, select, textarea, a, summary')]);
  const name = (/** @type {Element | null | undefined} */ each) => each?.id || `${each?.closest('[data-run]')?.getAttribute('data-run')} ${each?.getAttribute('aria-label') || each?.textContent}`;
  const before = fields().findIndex((each) => each === document.activeElement);
  const wanted = before < 0 ? '' : name(fields()[before]);
  place.replaceChildren(...inside.flat());
  if (before >= 0) (fields().find((each) => name(each) === wanted) ?? fields()[Math.min(before, fields().length - 1)])?.focus({ preventScroll: true });
}

const step = (/** @type {number} */ by) => go(state.frame + by);
const controls = el('div', { className: 'controls' },
  el('button', { type: 'button', className: 'icon', textContent: '«', title: 'Home', onclick: () => go(0), aria: { 'aria-label': 'First frame' } }),
  el('button', { type: 'button', className: 'icon', textContent: '‹', title: 'Left', onclick: () => step(-1), aria: { 'aria-label': 'One frame back' } }),
  el('button', { type: 'button', id: 'play', textContent: 'Play', title: 'Space', onclick: play }),
  el('button', { type: 'button', className: 'icon', textContent: '›', title: 'Right', onclick: () => step(1), aria: { 'aria-label': 'One frame on' } }),
  el('button', { type: 'button', className: 'icon', textContent: '»', title: 'End', onclick: () => go(Infinity), aria: { 'aria-label': 'Last frame' } }),
  el('label', {}, 'speed ', el('select', { onchange: (/** @type {any} */ event) => change({ speed: +event.target.value }) },
    ...[0.25, 0.5, 1, 2].map((speed) => el('option', { value: speed, textContent: `${speed}×`, selected: speed === 1 })))),
  el('label', {}, el('input', { type: 'checkbox', checked: true, onchange: (/** @type {any} */ event) => change({ loop: event.target.checked }) }), ' loop'),
  el('label', {}, 'go to ', el('input', { type: 'number', min: 0, id: 'goto', className: 'short', onchange: (/** @type {any} */ event) => go(+event.target.value) })));
const strip = /** @type {HTMLCanvasElement} */ (el('canvas', { className: 'thumbs' }));
const head = el('div', { className: 'head' });
const slider = el('div', { className: 'strip', tabIndex: 0, aria: { role: 'slider', 'aria-label': 'Frame', 'aria-valuemin': 0 } }, strip, head);
const row = el('div', { className: 'keys', aria: { role: 'group', 'aria-label': 'Key frames' } });
const bars = el('div', { className: 'bars' });
place.append(controls, slider, row, bars);

/** Put the playhead on a frame. */
export function go(/** @type {number} */ frame) {
  if (state.clip) change({ frame: Math.min(state.clip.frames - 1, Math.max(0, Math.round(frame))) });
}

/** Put it on the next key frame in a direction. */
export function goKey(/** @type {number} */ by) {
  const keys = [...state.keys.keys()].sort((a, b) => (a - b) * by);
  const found = keys.find((frame) => (frame - state.frame) * by > 0);
  if (found !== undefined) go(found);
}

const at = (/** @type {number} */ frame) => `${100 * (frame + 0.5) / (state.clip?.frames ?? 1)}%`;
const scrub = (/** @type {MouseEvent} */ event) => {
  const box = slider.getBoundingClientRect();
  go(Math.floor((event.clientX - box.left) / box.width * (state.clip?.frames ?? 1)));
};
/** Go to the frame over which something is dropped on the timeline. */
export function dropOn(/** @type {DragEvent} */ event) { if (slider.contains(/** @type {Node} */ (event.target))) scrub(event); }
slider.addEventListener('pointerdown', (event) => { slider.setPointerCapture(event.pointerId); scrub(event); });
slider.addEventListener('pointermove', (event) => { if (event.buttons) scrub(event); });

on('frame clip', () => {
  const last = (state.clip?.frames ?? 1) - 1;
  slider.setAttribute('aria-valuemax', String(last));
  slider.setAttribute('aria-valuenow', String(state.frame));
  slider.setAttribute('aria-valuetext', `frame ${state.frame} of ${last + 1}`);
  head.style.left = at(state.frame);
  /** @type {any} */ (document.getElementById('goto')).value = state.frame;
});
on('playing', () => { /** @type {any} */ (document.getElementById('play')).textContent = state.playing ? 'Pause' : 'Play'; });
on('keys clip frame', () => refill(row, [...state.keys.keys()].sort((a, b) => a - b).map((frame) => {
  const key = el('button', { type: 'button', title: `key frame ${frame}`, textContent: `◆${frame}`, onclick: () => go(frame) });
  key.style.left = at(frame);
  key.classList.toggle('here', frame === state.frame);
  return key;
})));
on('coverage clip', () => bars.replaceChildren(...['sliding', 'leaning', 'hidden', 'unseen'].filter((kind) => state.coverage?.[kind]?.length).map((kind) => {
  const bar = el('div', { className: `bar ${kind}`, title: `${kind} in ${state.coverage[kind].length} frames` }, el('span', { textContent: kind }));
  for (const frame of state.coverage[kind]) {
    const tick = el('i');
    tick.style.left = `${100 * frame / /** @type {any} */ (state.clip).frames}%`;
    tick.style.width = `${100 / /** @type {any} */ (state.clip).frames}%`;
    bar.append(tick);
  }
  return bar;
})));

/** Draw the thumbnails; called again when the small copy is there. */
export async function thumbnails() {
  const clip = state.clip;
  const box = slider.getBoundingClientRect();
  [strip.width, strip.height] = [Math.round(box.width), Math.round(box.height)];
  const pen = /** @type {CanvasRenderingContext2D} */ (strip.getContext('2d'));
  if (!clip) return pen.clearRect(0, 0, strip.width, strip.height);
  const width = Math.max(24, strip.height * clip.width / clip.height);
  for (let x = 0; x < strip.width && clip === state.clip; x += width) {
    const image = new Image();
    image.src = clipPath(clip.id, `/frames/${Math.min(clip.frames - 1, Math.floor((x + width / 2) / strip.width * clip.frames))}.jpg?side=96`);
    try { await image.decode(); } catch { continue; }
    pen.drawImage(image, x, 0, width, strip.height);
  }
}
document.getElementById('proxy')?.addEventListener('loadeddata', thumbnails);
