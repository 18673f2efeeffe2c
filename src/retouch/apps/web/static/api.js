// The only place that talks to the server. What it refuses becomes an error with a hint and a field.

const token = /** @type {HTMLMetaElement} */ (document.querySelector('meta[name=retouch-token]')).content;

export class Refused extends Error {
  constructor(/** @type {any} */ told, status = 0) {
    super(told.error ?? 'the server did not answer');
    this.hint = told.hint ?? '';
    this.status = status;
    this.field = told.field ?? '';
  }
}

/** Ask the server; a JSON answer is returned as a value, any other as it is. */
export async function ask(/** @type {string} */ path, /** @type {any} */ { method = 'GET', body, headers, signal } = {}) {
  const plain = body !== undefined && !(body instanceof Blob);
  let answer;
  try {
    answer = await fetch(path, {
      method,
      signal,
      body: plain ? JSON.stringify(body) : body,
      headers: { 'X-Retouch': token, ...(plain ? { 'Content-Type': 'application/json' } : {}), ...headers },
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused({ error: 'the server does not answer', hint: 'Is retouch web still running?' });
  }
  const json = answer.headers.get('content-type')?.startsWith('application/json');
  if (!answer.ok) throw new Refused(json ? await answer.json() : { error: `the server answered ${answer.status}` }, answer.status);
  return json ? answer.json() : answer;
}

export const clipPath = (/** @type {string} */ id, rest = '') => `/api/clips/${id}${rest}`;
export const runPath = (/** @type {string} */ run, rest = '') => `/api/runs/${run}${rest}`;

/** A picture from the server, decoded. */
export async function picture(/** @type {string} */ path, /** @type {any} */ options = {}) {
  const answer = await ask(path, options);
  return createImageBitmap(await answer.blob(), { colorSpaceConversion: 'none', premultiplyAlpha: 'default' });
}
