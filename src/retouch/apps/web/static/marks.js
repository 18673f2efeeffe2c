// How marks and cut-outs look on the stage.

/** Draw a mark so that it is seen on light and dark, thin at any zoom. */
export function outline(/** @type {CanvasRenderingContext2D} */ pen, /** @type {any} */ mark, /** @type {number} */ scale) {
  const colour = { box: '#4cc2ff', stroke: '#5ee08a', outside: '#ff6b6b', polygon: '#c792ff' }[/** @type {string} */ (mark.kind)];
  pen.beginPath();
  const [first, last] = [mark.points[0], mark.points[mark.points.length - 1]];
  if (mark.kind === 'box') pen.rect(first[0], first[1], last[0] - first[0], last[1] - first[1]);
  else for (const [px, py] of mark.points) pen.lineTo(px, py);
  if (mark.kind === 'polygon') pen.closePath();
  pen.setLineDash(mark.kind === 'outside' ? [6 / scale, 4 / scale] : []);
  for (const [width, paint] of [[4, 'rgb(0 0 0 / 0.6)'], [2, colour]]) { pen.lineWidth = /** @type {number} */ (width) / scale * devicePixelRatio; pen.strokeStyle = /** @type {string} */ (paint); pen.stroke(); }
  pen.setLineDash([]);
}

/** A cut-out as a shade of blue. */
export async function tinted(/** @type {ImageBitmap} */ alpha) {
  const made = new OffscreenCanvas(alpha.width, alpha.height);
  const brush = /** @type {OffscreenCanvasRenderingContext2D} */ (made.getContext('2d'));
  brush.drawImage(alpha, 0, 0);
  brush.globalCompositeOperation = 'source-in';
  brush.fillStyle = '#4cc2ff';
  brush.fillRect(0, 0, alpha.width, alpha.height);
  return made.transferToImageBitmap();
}
