// What the page knows, in one place. Rooms read `state`, ask for changes by `change`, and draw when told.

/** @typedef {{id: string, name: string, path: string, frames: number, fps: number, rate: string, width: number,
 *   height: number, facts?: {sound: boolean}, painted: Object<string, string>}} Clip */
/** @typedef {{image: ImageBitmap, x: number, y: number, scale: number, turn: number}} Picture */
/** @typedef {{id: number, name: string, canvas: HTMLCanvasElement, opacity: number, visible: boolean, picture?: Picture}} Layer */
/** @typedef {{kind: string, frame: number, points: number[][], name: string}} Mark */

export const state = {
  /** @type {Clip[]} */ clips: [],
  /** @type {Clip | null} */ clip: null,
  ready: false, // the work on it is back: from here on it may be changed and saved
  frame: 0,
  playing: false,
  speed: 1,
  loop: true,
  tool: 'brush',
  brush: { size: 24, hardness: 0.8, opacity: 1, colour: '#ff5a36' },
  /** @type {Map<number, Layer[]>} */ keys: new Map(),
  layer: 0,
  /** @type {Layer | null} */ copied: null,
  /** @type {Mark[]} */ marks: [],
  /** @type {any[]} */ methods: [],
  method: 'paint',
  preset: '',
  /** @type {Object<string, any>} */ params: {},
  /** @type {Object<string, string>} */ faults: {},
  /** @type {any} */ plan: null,
  /** @type {any[]} */ runs: [],
  /** @type {Object<string, {stage: string, share: number}>} */ progress: {},
  /** @type {{run: string, below: string, mode: string, at: number, gain: number} | null} */ compare: null,
  /** @type {any} */ coverage: null,
  /** @type {any[]} */ edits: [], // frames that are being edited by words
  /** @type {{name: string, reads: string}[]} */ editors: [],
  carry: false,
  cutout: true,
  zoom: 0,
  pan: [0, 0],
  version: 0,
};

/** @type {Map<string, Set<() => void>>} */
const rooms = new Map();
/** @type {Set<() => void>} */
let waiting = new Set();

/** Call `draw` soon after any of these names changes, once however many do. */
export function on(/** @type {string} */ names, /** @type {() => void} */ draw) {
  for (const name of names.split(' ')) {
    if (!rooms.has(name)) rooms.set(name, new Set());
    rooms.get(name)?.add(draw);
  }
}

/** Change what is known, and have the rooms that show it drawn. */
export function change(/** @type {Object<string, any>} */ what) {
  Object.assign(state, what);
  if (!waiting.size) queueMicrotask(flush);
  for (const name of Object.keys(what)) rooms.get(name)?.forEach((draw) => waiting.add(draw));
}

function flush() {
  const due = waiting;
  waiting = new Set();
  due.forEach((draw) => draw());
}

/** The layers of the frame under the playhead; none where it is not painted. */
export const layersHere = () => state.keys.get(state.frame) ?? [];

/** A mark as the command line spells it. */
export function spelled(/** @type {Mark} */ mark) {
  const points = mark.points.map((point) => point.map((n) => +n.toFixed(1)).join(',')).join(' ');
  return `${mark.name ? `${mark.name}@` : ''}${mark.frame}:${points}`;
}

/** A mark from what the command line spells; nothing where it is none. */
export function readMark(/** @type {string} */ kind, /** @type {string} */ text) {
  const found = text.trim().match(/^(?:([^@:]+)@)?(\d+):((?:\s*-?[\d.]+,-?[\d.]+)+)$/);
  if (!found) return null;
  const points = found[3].trim().split(/\s+/).map((pair) => pair.split(',').map(Number));
  const least = { box: 2, polygon: 3 }[kind] ?? 1;
  if (points.length < least || points.flat().some(Number.isNaN)) return null;
  return { kind, frame: +found[2], points, name: found[1] ?? '' };
}

/** The marks by kind, as a request has them. */
export function marksByKind() {
  /** @type {Object<string, string[]>} */ const kinds = {};
  for (const mark of state.marks) (kinds[mark.kind] ??= []).push(spelled(mark));
  return kinds;
}
