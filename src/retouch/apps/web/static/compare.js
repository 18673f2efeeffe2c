// How a result is laid over its source, or over another result.

import { change, state } from './store.js';

let flick = false;
/** Show the other of two in a flicker. */
export function flicker() { flick = !flick; if (state.compare) change({ compare: { ...state.compare, mode: 'flicker' } }); }

/** Draw the second of two pictures over the first as the comparison is set, in pixels of the clip. */
export function compareOver(/** @type {CanvasRenderingContext2D} */ pen, /** @type {CanvasImageSource} */ first, /** @type {CanvasImageSource} */ second, /** @type {number} */ zoom) {
  const { mode, at, gain } = /** @type {any} */ (state.compare);
  const { width, height } = /** @type {import('./store.js').Clip} */ (state.clip);
  if (mode === 'side') {
    pen.clearRect(0, 0, width, height);
    pen.drawImage(first, 0, height / 4, width / 2, height / 2);
    pen.drawImage(second, width / 2, height / 4, width / 2, height / 2);
  } else if (mode === 'difference') {
    pen.globalCompositeOperation = 'difference';
    pen.drawImage(second, 0, 0, width, height);
    pen.globalCompositeOperation = 'color-dodge';
    pen.fillStyle = `rgb(${Array(3).fill(Math.round(255 * (1 - 1 / gain))).join(' ')})`;
    pen.fillRect(0, 0, width, height);
    pen.globalCompositeOperation = 'source-over';
  } else if (mode === 'flicker') {
    if (flick) pen.drawImage(second, 0, 0, width, height);
  } else {
    pen.save(); pen.beginPath(); pen.rect(width * at, 0, width, height); pen.clip();
    pen.drawImage(second, 0, 0, width, height); pen.restore();
    pen.fillStyle = '#fff'; pen.fillRect(width * at - 1 / zoom, 0, 2 / zoom, height);
  }
}
