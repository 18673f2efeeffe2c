// The queue and what came of it: progress as it comes, stop and go on, compare, keep.

import { ask, runPath } from './api.js';
import { flicker } from './compare.js';
import { change, on, state } from './store.js';
import { el, refill } from './timeline.js';

const list = /** @type {HTMLElement} */ (document.getElementById('runs'));
const live = /** @type {HTMLElement} */ (document.getElementById('live'));
/** @type {Map<string, EventSource>} */ const streams = new Map();
let spoken = 0;

const over = (/** @type {string} */ how) => !['queued', 'running'].includes(how);
let asked = 0;
/** Bring the list of runs, and follow those that are at work; two, since a browser has few lines to a server. */
export async function loadRuns() {
  const mine = ++asked;
  const runs = await ask('/api/runs');
  if (mine !== asked) return;
  change({ runs });
  const waiting = runs.filter((/** @type {any} */ each) => !over(each.state)).reverse();
  waiting.sort((/** @type {any} */ a, /** @type {any} */ b) => Number(b.state === 'running') - Number(a.state === 'running'));
  for (const { run } of waiting) if (streams.size < 2 && !streams.has(run)) follow(run);
}
setInterval(() => { if (state.runs.some((each) => !over(each.state) && !streams.has(each.run))) loadRuns().catch(() => 0); }, 4000);
document.addEventListener('runs', loadRuns);

function follow(/** @type {string} */ run) {
  const stream = new EventSource(runPath(run, '/events'));
  streams.set(run, stream);
  stream.onmessage = ({ data }) => {
    const told = JSON.parse(data);
    if (told.event !== 'advanced' && told.event !== 'started') return;
    const share = told.total ? (told.done ?? 0) / told.total : 0;
    change({ progress: { ...state.progress, [run]: { stage: told.stage, share } } });
    if (Date.now() - spoken > 5000) { spoken = Date.now(); live.textContent = `${told.stage}: ${Math.round(100 * share)} per cent`; }
  };
  stream.addEventListener('state', ({ data }) => {
    const how = JSON.parse(data);
    if (!over(how)) return loadRuns();
    stream.close();
    streams.delete(run);
    live.textContent = `${run}: ${how}`;
    loadRuns();
  });
}

async function act(/** @type {string} */ run, /** @type {string} */ verb, method = 'POST') {
  try {
    await ask(runPath(run, verb), { method });
  } catch (error) {
    change({ faults: { '': `${error.message}. ${error.hint}` } });
  }
  await loadRuns();
}

/** Lay a result over its source, or put it away. */
export function compare(/** @type {string | null} */ run) {
  change({ compare: run && state.compare?.run !== run ? { run, below: '', mode: 'divider', at: 0.5, gain: 4 } : null });
}

const button = (/** @type {string} */ text, /** @type {() => any} */ onclick, label = '') => el('button', { type: 'button', textContent: text, onclick, aria: label ? { 'aria-label': label } : {} });
const link = (/** @type {string} */ text, /** @type {string} */ href, /** @type {Object<string, any>} */ more = {}) => el('a', { href, textContent: text, ...more });

on('runs progress compare', () => refill(list, state.runs.slice(0, 40).map(({ run, state: how, method, sentence, hint, notices }) => {
  const [word, why = ''] = how.split(/: (.*)/s);
  const item = el('li', { className: word }, el('div', { className: 'title' }, el('b', { textContent: method }), el('span', { className: 'state', textContent: word }), el('small', { textContent: run.slice(9, 15).replace(/(..)(..)(..)/, '$1:$2:$3') })));
  item.dataset.run = run;
  const { stage = '', share = 0 } = state.progress[run] ?? {};
  if (word === 'running') item.append(el('progress', { max: 1, value: share, aria: { 'aria-label': `${method}, ${stage}` } }), el('small', { textContent: `${stage} ${Math.round(100 * share)} %` }));
  if (why) item.append(el('p', { className: 'fault', textContent: `${why}. ${hint}` }));
  if (sentence) item.append(el('p', { className: 'sentence', textContent: sentence }));
  if (notices.length) item.append(el('details', {}, el('summary', { textContent: `${notices.length} notice${notices.length > 1 ? 's' : ''}` }), ...notices.map((/** @type {string} */ text) => el('p', { textContent: text }))));
  const acts = el('div', { className: 'acts' });
  if (!over(word)) acts.append(button('Stop', () => act(run, '/stop')));
  if (['stopped', 'failed'].includes(word)) acts.append(button('Go on', () => act(run, '/resume')));
  if (word === 'done') acts.append(button(state.compare?.run === run ? 'Source' : 'Compare', () => compare(run)), link('Download', runPath(run, '/result'), { download: `${run}.mp4` }), link('Report', runPath(run, '/report'), { target: '_blank' }), button('Again', () => act(run, '/replay')));
  if (over(word)) acts.append(button('×', () => act(run, '', 'DELETE'), `Remove ${run}`));
  item.append(acts);
  return item;
})));

on('compare', () => {
  const bar = /** @type {HTMLElement} */ (document.getElementById('comparing'));
  bar.hidden = !state.compare;
  if (!state.compare) return;
  const { mode, at, gain, run } = state.compare;
  const set = (/** @type {Object<string, any>} */ what) => change({ compare: { ...state.compare, ...what } });
  const others = state.runs.filter((each) => each.state === 'done' && each.run !== run && each.video === state.clip?.path);
  refill(bar,
    el('label', {}, 'over ', el('select', { id: 'over', onchange: (/** @type {any} */ event) => set({ below: event.target.value }) }, ...[{ run: '', method: 'source' }, ...others].map((each) => el('option', { value: each.run, textContent: `${each.method} ${each.run.slice(9, 15)}`, selected: each.run === state.compare?.below })))),
    ['divider', 'side', 'difference', 'flicker'].map((each) => el('button', { type: 'button', textContent: each, onclick: () => set({ mode: each }), aria: { 'aria-pressed': each === mode } })),
    mode === 'divider' ? el('input', { id: 'split', type: 'range', min: 0, max: 1, step: 0.01, value: at, oninput: (/** @type {any} */ event) => set({ at: +event.target.value }), aria: { 'aria-label': 'Divider' } }) : '',
    mode === 'difference' ? el('label', {}, '×', el('input', { id: 'gain', type: 'number', min: 1, max: 16, value: gain, className: 'short', onchange: (/** @type {any} */ event) => set({ gain: +event.target.value }) })) : '',
    mode === 'flicker' ? button('Other', flicker) : '',
    el('span', { className: 'sentence', textContent: state.runs.find((each) => each.run === run)?.sentence ?? '' }), button('Close', () => compare(null)));
});
