// Undo and redo: one history a clip, for paint by tiles, for layers and marks by what they were before.

import { drawPicture } from './pictures.js';
import { state, change, layersHere } from './store.js';

const TILE = 64; // larger ones would keep mostly what a stroke did not reach
const STEPS = 200;
const BYTES = 256 * 2 ** 20;

/** @typedef {{undo: () => Step, size: number, frame: number}} Step */
/** @type {Step[]} */ let done = [];
/** @type {Step[]} */ let undone = [];

export const bytesKept = () => [...done, ...undone].reduce((sum, step) => sum + step.size, 0);
export function forget() { done = []; undone = []; }

/** Keep how to take something back. */
export function keep(/** @type {Step} */ step) {
  undone = [];
  done.push(step);
  let bytes = 0;
  let from = done.length;
  while (from > 0 && done.length - from < STEPS && bytes <= BYTES) bytes += done[--from].size;
  done.splice(0, from);
}

export const undo = () => turn(done, undone);
export const redo = () => turn(undone, done);

function turn(/** @type {Step[]} */ from, /** @type {Step[]} */ to) {
  const step = from.pop();
  if (!step) return;
  to.push(step.undo());
  change({ frame: step.frame, version: state.version + 1 });
}

/** Note marks and layers before something changes them; the bitmaps themselves are not copied. */
export function keepLists(frame = state.frame) { keep(listStep(frame)); }

function listStep(/** @type {number} */ frame) {
  const marks = state.marks;
  const keys = new Map([...state.keys].map(([frame, layers]) => [frame, layers.map((layer) => ({ ...layer }))]));
  const layer = state.layer;
  return {
    frame,
    size: 1000,
    undo() {
      const back = listStep(frame);
      change({ marks, keys, layer });
      for (const layers of keys.values()) layers.forEach(drawPicture);
      return back;
    },
  };
}

/** Collects what a stroke paints over, tile by tile, before it does. */
export class StrokeRecorder {
  constructor(/** @type {HTMLCanvasElement} */ canvas) {
    this.canvas = canvas;
    this.frame = state.frame;
    /** @type {Map<string, {x: number, y: number, data: ImageData | null}>} */ this.tiles = new Map();
  }

  /** Keep the tiles under a rectangle that is about to be painted. */
  touch(/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ w, /** @type {number} */ h) {
    const [right, bottom] = [Math.min(x + w, this.canvas.width), Math.min(y + h, this.canvas.height)];
    for (let v = Math.floor(Math.max(0, y) / TILE); v * TILE < bottom; v++)
      for (let u = Math.floor(Math.max(0, x) / TILE); u * TILE < right; u++)
        if (!this.tiles.has(`${u},${v}`)) this.tiles.set(`${u},${v}`, taken(this.canvas, u * TILE, v * TILE));
  }

  end() { touched(this.canvas); if (this.tiles.size) keep(tileStep(this.canvas, this.frame, [...this.tiles.values()])); }
}

function tileStep(/** @type {HTMLCanvasElement} */ canvas, /** @type {number} */ frame, /** @type {any[]} */ tiles) {
  return {
    frame,
    size: tiles.reduce((sum, tile) => sum + (tile.data ? tile.data.data.length : 100), 0),
    undo() {
      const back = tiles.map((tile) => taken(canvas, tile.x, tile.y));
      const pen = pencil(canvas);
      for (const tile of tiles)
        if (tile.data) pen.putImageData(tile.data, tile.x, tile.y);
        else pen.clearRect(tile.x, tile.y, TILE, TILE);
      touched(canvas);
      return tileStep(canvas, frame, back);
    },
  };
}

function taken(/** @type {HTMLCanvasElement} */ canvas, /** @type {number} */ x, /** @type {number} */ y) {
  const data = pencil(canvas).getImageData(x, y, Math.min(TILE, canvas.width - x), Math.min(TILE, canvas.height - y));
  const blank = new Uint32Array(data.data.buffer).every((pixel) => pixel === 0);
  return { x, y, data: blank ? null : data };
}

/** How to draw on a layer's bitmap, which lies where it can be read back at once. */
export function pencil(/** @type {HTMLCanvasElement} */ canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext('2d', { willReadFrequently: true }));
}

/** @type {WeakMap<HTMLCanvasElement, number>} */ const revisions = new WeakMap();
let changes = 0;
/** Say that a bitmap is another one now. */
export const touched = (/** @type {HTMLCanvasElement} */ canvas) => { revisions.set(canvas, ++changes); };
/** A number that no other bitmap has, and this one only until it is painted on. */
export function revision(/** @type {HTMLCanvasElement} */ canvas) {
  if (!revisions.has(canvas)) touched(canvas);
  return revisions.get(canvas);
}

/** Whether a bitmap shows anything. */
export function isBlank(/** @type {HTMLCanvasElement} */ canvas) {
  const pixels = pencil(canvas).getImageData(0, 0, canvas.width, canvas.height).data;
  return new Uint32Array(pixels.buffer).every((pixel) => pixel === 0);
}

/** The layer that is painted on, made if there is none; its key frame is the frame under the playhead. */
export function layerToPaint() {
  if (!layersHere().length) addLayer();
  return layersHere()[Math.min(state.layer, layersHere().length - 1)];
}

let next = 1;
/** Add a layer over those of a frame, this one unless another is named, at most eight; return whether there was room. */
export function addLayer(/** @type {HTMLCanvasElement | null} */ canvas = null, name = '', /** @type {import('./store.js').Picture | undefined} */ picture = undefined, frame = state.frame) {
  const { clip, ready, keys } = state;
  const below = keys.get(frame) ?? [];
  if (!clip || !ready || below.length >= 8) return false;
  keepLists(frame);
  const made = canvas ?? newCanvas(clip.width, clip.height);
  const layers = [...below, { id: next++, name: name || `layer ${below.length + 1}`, canvas: made, opacity: 1, visible: true, ...(picture && { picture }) }];
  change({ keys: new Map(keys).set(frame, layers), version: state.version + 1, ...(frame === state.frame && { layer: below.length }) });
  return true;
}

export function newCanvas(/** @type {number} */ width, /** @type {number} */ height) {
  return Object.assign(document.createElement('canvas'), { width, height });
}
