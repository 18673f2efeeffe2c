// A picture from another program on a layer of its own: moved, scaled and turned until something is painted on it.

import { addLayer, keepLists, newCanvas, pencil, touched } from './history.js';
import { change, layersHere, state } from './store.js';

/** @typedef {import('./store.js').Layer} Layer */

/** Lay a picture over the frame, in the middle; one of the clip's size as it is, others at most half as large. */
export async function layPicture(/** @type {Blob} */ file) {
  const image = await createImageBitmap(file);
  const clip = state.clip;
  if (!clip || !state.ready || layersHere().length >= 8) return;
  const whole = image.width === clip.width && image.height === clip.height;
  const scale = whole ? 1 : Math.min(1, 0.5 * clip.width / image.width, 0.5 * clip.height / image.height);
  addLayer(newCanvas(clip.width, clip.height), 'picture');
  set(layersHere()[state.layer], { image, x: clip.width / 2, y: clip.height / 2, scale, turn: 0 });
  change({ tool: 'move', version: state.version + 1 });
}

/** Draw a layer's picture where it lies now. */
export function drawPicture(/** @type {Layer} */ { canvas, picture }) {
  if (!picture) return;
  const pen = pencil(canvas);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.save();
  pen.translate(picture.x, picture.y);
  pen.rotate(picture.turn * Math.PI / 180);
  pen.scale(picture.scale, picture.scale);
  pen.drawImage(picture.image, -picture.image.width / 2, -picture.image.height / 2);
  pen.restore();
  touched(canvas);
}

function set(/** @type {Layer} */ layer, /** @type {Object<string, any>} */ what) {
  layer.picture = /** @type {any} */ ({ ...layer.picture, ...what });
  drawPicture(layer);
}

/** Put a picture elsewhere, by numbers. */
export function place(/** @type {Layer} */ layer, /** @type {Object<string, number>} */ what) {
  keepLists();
  set(layer, what);
  change({ version: state.version + 1 });
}

/** Keep a picture as it lies: from here on its layer is paint. */
export function layDown(/** @type {Layer} */ layer) {
  if (!layer.picture) return;
  keepLists();
  delete layer.picture;
  change({ keys: new Map(state.keys) });
}

/** The picture that the move tool would move, and its middle, corner and knob in pixels of the clip. */
export function grips(/** @type {number} */ zoom) {
  const layer = state.tool === 'move' ? layersHere()[state.layer] : undefined;
  if (!layer?.picture || !layer.visible) return null;
  const { image, x, y, scale, turn } = layer.picture;
  const [sin, cos] = [Math.sin(turn * Math.PI / 180), Math.cos(turn * Math.PI / 180)];
  const at = (/** @type {number} */ u, /** @type {number} */ v) => [x + u * cos - v * sin, y + u * sin + v * cos];
  const [u, v] = [image.width * scale / 2, image.height * scale / 2];
  return { layer, middle: [x, y], corners: [at(-u, -v), at(u, -v), at(u, v), at(-u, v)], corner: at(u, v), knob: at(0, -v - 24 / zoom), top: at(0, -v) };
}

/** Begin to drag a picture by what lies under the pointer; the result takes each place that it goes to. */
export function grab(/** @type {number[]} */ from, /** @type {number} */ zoom) {
  const found = grips(zoom);
  if (!found) return null;
  const { layer, middle, corner, knob } = found;
  const near = (/** @type {number[]} */ place) => Math.hypot(from[0] - place[0], from[1] - place[1]) < 12 / zoom;
  const [isCorner, isKnob] = [near(corner), near(knob)];
  const start = { .../** @type {any} */ (layer.picture) };
  keepLists();
  return (/** @type {number[]} */ to, /** @type {boolean} */ steps) => {
    const [u, v] = [to[0] - middle[0], to[1] - middle[1]];
    if (isCorner) set(layer, { scale: Math.max(0.01, Math.hypot(u, v) / Math.hypot(start.image.width, start.image.height) * 2) });
    else if (isKnob) set(layer, { turn: Math.round((Math.atan2(u, -v) * 180 / Math.PI) / (steps ? 15 : 1)) * (steps ? 15 : 1) });
    else set(layer, { x: start.x + to[0] - from[0], y: start.y + to[1] - from[1] });
  };
}

/** Draw the edges of the picture that can be moved, a square that scales it and a knob that turns it. */
export function outlinePicture(/** @type {CanvasRenderingContext2D} */ pen, /** @type {number} */ zoom) {
  const found = grips(zoom);
  if (!found) return;
  const { corners, corner, knob, top } = found;
  const size = 5 * devicePixelRatio / zoom;
  pen.beginPath();
  for (const [x, y] of corners) pen.lineTo(x, y);
  pen.closePath();
  pen.moveTo(top[0], top[1]); pen.lineTo(knob[0], knob[1]);
  for (const [width, colour] of [[3, 'rgb(0 0 0 / 0.6)'], [1.5, '#fff']]) { pen.lineWidth = /** @type {number} */ (width) * devicePixelRatio / zoom; pen.strokeStyle = /** @type {string} */ (colour); pen.stroke(); }
  pen.fillStyle = '#fff';
  pen.beginPath(); pen.rect(corner[0] - size, corner[1] - size, 2 * size, 2 * size); pen.arc(knob[0], knob[1], size, 0, 7); pen.fill();
}
