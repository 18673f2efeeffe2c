// The form of a method, drawn from its options alone; and the request that page and form make together.

import { ask } from './api.js';
import { save } from './panels.js';
import { change, marksByKind, on, state } from './store.js';
import { el } from './timeline.js';

const form = /** @type {HTMLFormElement} */ (document.getElementById('form'));
const MARKED = ['box', 'stroke', 'outside', 'polygon'];
/** @type {any} */ let shared = { compute: [], output: [] };

export async function loadMethods() {
  const { methods, ...rest } = await ask('/api/methods');
  shared = rest;
  change({ methods });
}

export const methodNow = () => state.methods.find((method) => method.name === state.method);

/** What the page itself gives for an option: key frames and marks. */
function fromPage(/** @type {string} */ name) {
  if (name === 'keyframe') return Object.entries(state.clip?.painted ?? {}).map(([frame, path]) => `${frame}=${path}`);
  return MARKED.includes(name) ? marksByKind()[name] ?? [] : [];
}

/** What is chosen of some options that every request has. */
const own = (/** @type {any[]} */ options) => Object.fromEntries(options.filter((option) => ![undefined, ''].includes(state.params[`@${option.name}`])).map((option) => [option.name, state.params[`@${option.name}`]]));
export const computeNow = () => own(shared.compute);

/** The request that the page would run now. */
export function request(nullEdit = false) {
  const method = methodNow();
  /** @type {Object<string, any>} */ const params = { ...(method.presets[state.preset] ?? {}) };
  for (const option of method.options) {
    const given = state.params[option.name];
    if (given !== undefined && given !== '') params[option.name] = given;
    const more = option.kind === 'list' ? fromPage(option.name) : [];
    if (more.length) params[option.name] = [...(params[option.name] ?? []), ...more];
  }
  if (nullEdit) params.prompt = params.source_prompt;
  const { '@seed': seed = 0, '@range': range = '', '@out': out = '' } = state.params;
  return { video: state.clip?.path, method: method.name, params, seed, range, compute: computeNow(), output: own(shared.output), out: out || null };
}

/** What was refused, at its field. */
const faultsOf = (/** @type {any} */ error) => ({ [error.field || '']: error.hint ? `${error.message}. ${error.hint}` : error.message });

/** Ask what the request needs, and show what is wrong with it at its field. */
export async function plan() {
  if (!state.clip || !state.methods.length) return;
  try {
    change({ plan: await ask('/api/plan', { method: 'POST', body: request() }), faults: {} });
  } catch (error) {
    change({ plan: null, faults: isUntouched() ? {} : faultsOf(error) });
  }
}
/** Whether nothing has been done on the clip: what is missing is no fault yet. */
const isUntouched = () => !state.keys.size && !state.marks.length && !Object.keys(state.params).length;
/** @type {any} */ let soon = 0;
on('params method preset clip version', () => { clearTimeout(soon); soon = setTimeout(plan, 500); });

/** Queue the request. */
export async function run(nullEdit = false) {
  if (!state.clip) return;
  try {
    await save();
    const body = request(nullEdit);
    await ask('/api/runs', { method: 'POST', body, headers: { 'Idempotency-Key': crypto.randomUUID() } });
    change({ faults: {} });
    document.dispatchEvent(new Event('runs'));
  } catch (error) {
    change({ faults: faultsOf(error) });
  }
}

function field(/** @type {any} */ option, name = option.name) {
  const id = `f-${name.replace('@', 'every-')}`;
  const said = `${id}-said`;
  const set = (/** @type {any} */ value) => change({ params: { ...state.params, [name]: value } });
  const value = state.params[name] ?? '';
  const common = { id, name, aria: { 'aria-describedby': said } };
  /** @type {any} */ let input;
  if (option.kind === 'flag') {
    const now = value === '' ? option.default : value;
    input = el('input', { ...common, type: 'checkbox', checked: now, onchange: (/** @type {any} */ event) => set(event.target.checked) });
  } else if (option.kind === 'choice') {
    input = el('select', { ...common, onchange: (/** @type {any} */ event) => set(event.target.value) }, el('option', { value: '', textContent: `default: ${option.default ?? 'none'}` }), ...option.choices.map((/** @type {string} */ choice) => el('option', { value: choice, textContent: choice, selected: String(value) === choice })));
  } else if (option.kind === 'list') {
    const read = (/** @type {string} */ text) => text.split('\n').map((line) => line.trim()).filter(Boolean).map((line) => (['int', 'float'].includes(option.item) ? Number(line) : line));
    input = el('textarea', { ...common, rows: 1, value: [].concat(value || []).join('\n'), placeholder: fromPage(option.name).length ? `${fromPage(option.name).length} from the page; more, one a line` : 'one a line', onchange: (/** @type {any} */ event) => set(read(event.target.value).length ? read(event.target.value) : '') });
  } else {
    const number = ['int', 'float'].includes(option.kind);
    const read = (/** @type {string} */ text) => (number && text !== '' && !Number.isNaN(Number(text)) ? Number(text) : text);
    input = el('input', { ...common, type: 'text', inputMode: number ? 'decimal' : 'text', value, placeholder: option.default ?? (option.required ? 'needed' : ''), onchange: (/** @type {any} */ event) => set(read(event.target.value.trim())) });
  }
  const row = el('div', { className: `field ${option.kind}` }, el('label', { htmlFor: id, textContent: option.name.replaceAll('_', ' ') }), input,
    el('p', { id: said, className: 'help' }, option.description, option.bounds ? el('i', { textContent: ` ${option.bounds}` }) : '', el('strong', { className: 'fault' })));
  Object.assign(row.dataset, { option: option.name, bounds: option.bounds, help: option.description });
  return row;
}

function drawForm() {
  const method = methodNow();
  if (!method) return;
  const kept = /** @type {any} */ (document.activeElement)?.id;
  const every = [{ name: 'seed', kind: 'int', description: 'Where all randomness comes from.', bounds: 'at least 0', default: 0 },
    { name: 'range', kind: 'text', description: 'The frames to work on, as FIRST-LAST; empty is all.', bounds: '', default: '' },
    { name: 'out', kind: 'path', description: 'Where the result goes besides the run folder.', bounds: '', default: null }, ...shared.compute, ...shared.output];
  const given = (/** @type {any} */ option) => [...MARKED, 'keyframe'].includes(option.name);
  const first = (/** @type {any} */ option) => option.required || ['prompt', 'source_prompt', 'model', 'preset', 'mode', 'feather'].includes(option.name);
  const options = method.error ? [] : method.options;
  const more = el('details', { id: 'more', open: opened.has('more') }, el('summary', { textContent: `More options (${options.filter((/** @type {any} */ option) => !first(option) && !given(option)).length})` }), ...options.filter((/** @type {any} */ option) => !first(option) && !given(option)).map((/** @type {any} */ option) => field(option)));
  const own = options.filter(given);
  const fromHere = own.reduce((/** @type {number} */ sum, /** @type {any} */ option) => sum + fromPage(option.name).length, 0);
  const painted = own.length ? el('details', { id: 'painted', open: opened.has('painted') }, el('summary', { textContent: `Key frames and marks (${fromHere} from the page)` }), ...own.map((/** @type {any} */ option) => field(option))) : '';
  const rest = el('details', { id: 'every', open: opened.has('every') }, el('summary', { textContent: 'Seed, device, output' }), ...every.map((option) => field(option, `@${option.name}`)));
  for (const part of /** @type {any[]} */ ([painted, more, rest].filter(Boolean))) part.addEventListener('toggle', () => { if (part.open) opened.add(part.id); else opened.delete(part.id); });
  form.replaceChildren(
    el('div', { className: 'field' }, el('label', { htmlFor: 'method', textContent: 'Method' }), el('select', { id: 'method', onchange: (/** @type {any} */ event) => change({ method: event.target.value, preset: '', params: {} }) }, ...state.methods.map((each) => el('option', { value: each.name, textContent: each.title ?? each.name, selected: each.name === state.method })))),
    el('p', { className: 'summary', textContent: method.error ?? method.summary }),
    method.paper ? el('p', { className: 'note' }, el('a', { href: method.paper.url, target: '_blank', rel: 'noreferrer', textContent: `${method.paper.authors}, ${method.paper.year}` }), ` · code: ${method.paper.code_licence}`) : '',
    el('div', { className: 'field' }, el('label', { htmlFor: 'preset', textContent: 'Preset' }), el('select', { id: 'preset', onchange: (/** @type {any} */ event) => change({ preset: event.target.value }) }, el('option', { value: '', textContent: 'none' }), ...Object.keys(method.presets ?? {}).map((preset) => el('option', { value: preset, textContent: preset, selected: preset === state.preset })))),
    ...options.filter(first).map((/** @type {any} */ option) => field(option)), painted, more, rest,
    el('p', { id: 'fault', className: 'fault', aria: { role: 'alert' } }), el('p', { id: 'plan' }),
    el('button', { type: 'submit', id: 'run', className: 'main', textContent: 'Run', title: 'Ctrl+Enter' }),
    options.some((/** @type {any} */ option) => option.name === 'source_prompt') ? el('button', { type: 'button', id: 'null-edit', textContent: 'Run null edit', title: 'The source prompt as the prompt: what changes then is the method\'s own loss', onclick: () => run(true) }) : '');
  if (kept) document.getElementById(kept)?.focus();
  drawFaults();
}
/** @type {Set<string>} */ const opened = new Set();

function drawFaults() {
  form.querySelectorAll('.field').forEach((/** @type {any} */ row) => {
    const fault = state.faults[row.dataset.option] ?? '';
    row.classList.toggle('wrong', Boolean(fault));
    row.querySelector('input, select, textarea')?.setAttribute('aria-invalid', String(Boolean(fault)));
    if (row.querySelector('.fault')) row.querySelector('.fault').textContent = fault;
    if (fault && row.closest('details')) row.closest('details').open = true;
  });
  const other = Object.entries(state.faults).find(([name]) => !form.querySelector(`[data-option="${CSS.escape(name)}"]`));
  const note = document.getElementById('fault');
  if (note) note.textContent = other?.[1] ?? '';
  const planned = document.getElementById('plan');
  if (planned) planned.textContent = state.plan ? [`Needs ${state.plan.sentence}.`, state.plan.seconds ? `The last one took ${Math.ceil(state.plan.seconds)} s.` : '', ...state.plan.notices, ...state.plan.notes].join(' ') : isUntouched() && state.clip ? 'Paint on a frame, or fill in what the method asks for.' : '';
}

form.addEventListener('submit', (event) => { event.preventDefault(); run(); });
on('methods method preset clip marks', drawForm);
on('faults plan', drawFaults);
