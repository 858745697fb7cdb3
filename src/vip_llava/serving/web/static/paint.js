// The preview: regions on a 2D context whose unit is a pixel of the image.
// Follows the server's drawing (whole pixels, line inside boxes) closely; what the model sees is drawn there.

import { headOf, rgb } from "./geometry.js";

const whole = Math.trunc;

/** Draw one region. `layer` is a second context of the same size, for see-through marks. */
export function paint(context, region, size, layer) {
  const alpha = (region.alpha ?? 255) / 255;
  if (alpha >= 1) return mark(context, region, size);
  // Drawn opaque on a layer of its own, so that a mark that crosses itself is not darker there.
  layer.save();
  layer.setTransform(1, 0, 0, 1, 0, 0);
  layer.clearRect(0, 0, layer.canvas.width, layer.canvas.height);
  layer.restore();
  layer.setTransform(context.getTransform());
  mark(layer, region, size);
  context.save();
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.globalAlpha = alpha;
  context.drawImage(layer.canvas, 0, 0);
  context.restore();
}

function mark(context, region, size) {
  context.fillStyle = context.strokeStyle = rgb(region.color);
  context.lineWidth = Math.max(1, whole(region.width ?? 1));
  context.lineCap = "butt";
  context.lineJoin = "miter";
  context.beginPath();
  MARKS[region.shape](context, region, size);
}

function box(context, region, size) {
  const [x1, y1] = region.box.slice(0, 2).map(whole);
  // Both edges belong to the box, and one up to the border ends at the last pixel.
  const [x2, y2] = [2, 3].map((i) => Math.min(whole(region.box[i]) + 1, size[i - 2]));
  const line = context.lineWidth;
  context.rect(x1, y1, x2 - x1, y2 - y1);
  if (x1 + line < x2 - line && y1 + line < y2 - line) {
    context.rect(x1 + line, y1 + line, x2 - x1 - 2 * line, y2 - y1 - 2 * line);
  }
  context.fill("evenodd");
}

function oval(context, [x1, y1, x2, y2], line) {
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
  oval(context, region.box.map(whole), context.lineWidth);
}

function point(context, region) {
  const [[x, y], r] = [region.point, region.radius];
  oval(context, [x - r, y - r, x + r, y + r].map(whole), 0);
}

const centre = ([x, y]) => [whole(x) + 0.5, whole(y) + 0.5];

function trace(context, points, closed) {
  points.forEach((each, index) => context[index ? "lineTo" : "moveTo"](...centre(each)));
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
  const [head, turn] = [headOf(region, size), Math.PI / 3];
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
  context.lineWidth = 2 * context.lineWidth + 1; // it grows to both sides of the outline
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

const MARKS = { box, ellipse, triangle, point, scribble, arrow, contour, mask };
