// The preview: regions drawn on a 2D context in image pixels.
// It approximates the server's drawing (whole pixels, lines inside boxes), which the model sees.

import { arrowHead, rgb } from "./geometry.js";

const trunc = Math.trunc;

/** Draw one region. `layer` is a second context of the same size, for translucent marks. */
export function paint(context, region, size, layer) {
  const alpha = (region.alpha ?? 255) / 255;
  if (alpha >= 1) return drawMark(context, region, size);
  // Drawn opaque on the layer first, so that overlaps within a mark are not darker.
  layer.save();
  layer.setTransform(1, 0, 0, 1, 0, 0);
  layer.clearRect(0, 0, layer.canvas.width, layer.canvas.height);
  layer.restore();
  layer.setTransform(context.getTransform());
  drawMark(layer, region, size);
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = alpha;
  context.drawImage(layer.canvas, 0, 0);
  context.restore();
}

function drawMark(context, region, size) {
  context.fillStyle = context.strokeStyle = rgb(region.color);
  context.lineWidth = Math.max(1, trunc(region.width ?? 1));
  context.lineCap = "butt";
  context.lineJoin = "miter";
  context.beginPath();
  DRAW[region.shape](context, region, size);
}

function box(context, region, size) {
  const [x1, y1] = region.box.slice(0, 2).map(trunc);
  // Both edges belong to the box, which ends at the last pixel of the image.
  const [x2, y2] = [2, 3].map((i) => Math.min(trunc(region.box[i]) + 1, size[i - 2]));
  const line = context.lineWidth;
  context.rect(x1, y1, x2 - x1, y2 - y1);
  if (x1 + line < x2 - line && y1 + line < y2 - line) {
    context.rect(x1 + line, y1 + line, x2 - x1 - 2 * line, y2 - y1 - 2 * line);
  }
  context.fill("evenodd");
}

function fillOval(context, [x1, y1, x2, y2], line) {
  const [a, b] = [(x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2];
  const middle = [x1 + a, y1 + b];
  context.ellipse(...middle, a, b, 0, 0, 2 * Math.PI);
  if (line && line < Math.min(a, b)) {
    context.moveTo(middle[0] + a - line, middle[1]);
    context.ellipse(...middle, a - line, b - line, 0, 0, 2 * Math.PI);
  }
  context.fill("evenodd");
}

function ellipse(context, region) {
  fillOval(context, region.box.map(trunc), context.lineWidth);
}

function point(context, region) {
  const [[x, y], r] = [region.point, region.radius];
  fillOval(context, [x - r, y - r, x + r, y + r].map(trunc), 0);
}

const pixelCentre = ([x, y]) => [trunc(x) + 0.5, trunc(y) + 0.5];

function trace(context, points, closed) {
  points.forEach((each, index) => context[index ? "lineTo" : "moveTo"](...pixelCentre(each)));
  if (closed) context.closePath();
}

function triangle(context, region) {
  const ring = [...region.points, region.points[0]];
  for (let i = 1; i < ring.length; i += 1) trace(context, [ring[i - 1], ring[i]]);
  context.stroke();
}

function scribble(context, region) {
  context.lineJoin = "round";
  trace(context, region.points);
  context.stroke();
}

function arrow(context, region, size) {
  const [head, turn] = [arrowHead(region, size), Math.PI / 3];
  const [x, y] = region.tip;
  const angle = Math.atan2(region.tail[1] - y, region.tail[0] - x);
  const sides = [-turn, turn].map((by) => [x + head * Math.cos(angle + by), y + head * Math.sin(angle + by)]);
  trace(context, [region.tail, region.tip]);
  context.stroke();
  context.beginPath();
  trace(context, [sides[0], region.tip, sides[1]], region.filled !== false);
  context[region.filled === false ? "stroke" : "fill"]();
}

function rings(context, region) {
  for (const flat of region.polygons) {
    trace(context, Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]), true);
  }
}

function contour(context, region) {
  context.lineWidth = 2 * context.lineWidth + 1; // half of it on each side of the outline
  rings(context, region);
  context.stroke();
}

function mask(context, region) {
  for (const flat of region.polygons) {
    context.beginPath();
    rings(context, { polygons: [flat] });
    context.fill();
  }
}

const DRAW = { box, ellipse, triangle, point, scribble, arrow, contour, mask };
