// Regions as JSON in image pixels, and their geometry: bounds, hit tests, moving, resizing.
// It does not know the screen, zoom or drawing. Coordinates: x in 0..width, y in 0..height.

export const SHAPES = ["box", "ellipse", "triangle", "point", "scribble", "arrow", "contour", "mask"];

/** The nine colours whose names models were trained on, in the order of assignment. */
export const PALETTE = {
  red: "#ff0000", lime: "#00ff00", blue: "#0000ff", yellow: "#ffff00", fuchsia: "#ff00ff",
  aqua: "#00ffff", orange: "#ffa500", purple: "#800080", gold: "#ffd700",
};

export const rgb = (color) => PALETTE[color] ?? color;
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const round2 = (value) => Math.round(value * 100) / 100;

/** A point clamped to the image and floored to hundredths, so that its integer part is the pixel.
 *  Browsers store coordinates as 32-bit floats; the offset absorbs their rounding. */
export function clampToImage([x, y], [width, height]) {
  const cut = (value, most) => Math.floor(clamp(value, 0, most) * 100 + 0.05) / 100;
  return [cut(x, width), cut(y, height)];
}

/** The server's default line width and radius for an image of this size. */
export function defaults([width, height]) {
  const longest = Math.max(width, height);
  return {
    width: Math.max(1, Math.floor((3 * longest) / 336)),
    contour: Math.max(1, Math.floor(longest / 336)),
    radius: Math.max(1, Math.floor((8 * longest) / 336)),
  };
}

/** The length of an arrow's head; by default the server's. */
export function arrowHead(region, size) {
  if (region.head !== undefined) return region.head;
  const length = Math.hypot(region.tip[0] - region.tail[0], region.tip[1] - region.tail[1]);
  return Math.max(Math.min(length / 2, (24 * Math.max(...size)) / 336), 2 * (region.width ?? 1));
}

const toPairs = (flat) => Array.from({ length: flat.length / 2 }, (_, i) => [flat[2 * i], flat[2 * i + 1]]);

/** The corners, points or ends of a region, [[x, y], ...]. */
export function regionPoints(region) {
  if (region.box) {
    const [x1, y1, x2, y2] = region.box;
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
  }
  if (region.points) return region.points;
  if (region.tail) return [region.tail, region.tip];
  if (region.polygons) return region.polygons.flatMap(toPairs);
  const [x, y] = region.point;
  const r = region.radius;
  return [[x - r, y - r], [x + r, y + r]];
}

/** The bounding box [x1, y1, x2, y2] of a region. */
export function regionBounds(region) {
  const points = regionPoints(region);
  const across = points.map((each) => each[0]);
  const down = points.map((each) => each[1]);
  return [Math.min(...across), Math.min(...down), Math.max(...across), Math.max(...down)];
}

/** A copy of a region with `move` applied to every point; radius and width do not change. */
export function mapPoints(region, move) {
  const to = (point) => move(point).map(round2);
  const copy = { ...region };
  if (region.box) {
    const [a, b] = [to(region.box.slice(0, 2)), to(region.box.slice(2))];
    copy.box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  }
  if (region.points) copy.points = region.points.map(to);
  if (region.tail) [copy.tail, copy.tip] = [to(region.tail), to(region.tip)];
  if (region.point) copy.point = to(region.point);
  if (region.polygons) copy.polygons = region.polygons.map((flat) => toPairs(flat).flatMap(to));
  return copy;
}

/** A copy of a region moved by (dx, dy), kept within the image. */
export function translate(region, dx, dy, [width, height]) {
  const [x1, y1, x2, y2] = region.point ? [...region.point, ...region.point] : regionBounds(region);
  const x = clamp(dx, -x1, Math.max(width - x2, -x1));
  const y = clamp(dy, -y1, Math.max(height - y2, -y1));
  return mapPoints(region, (point) => [point[0] + x, point[1] + y]);
}

/** The resize handles of a region: {at: [x, y], drag(region, [x, y]) -> region}. */
export function resizeHandles(region) {
  if (region.tail) {
    return ["tail", "tip"].map((name) => ({
      name, at: region[name], drag: (region, to) => ({ ...region, [name]: to }),
    }));
  }
  if (region.shape === "triangle") {
    return region.points.map((at, index) => ({
      name: `corner ${index + 1}`, at,
      drag: (region, to) => ({ ...region, points: region.points.map((each, i) => (i === index ? to : each)) }),
    }));
  }
  if (region.point) {
    const [x, y] = region.point;
    const radius = (to) => Math.max(1, round2(Math.hypot(to[0] - x, to[1] - y)));
    return [{ name: "radius", at: [x + region.radius, y], drag: (region, to) => ({ ...region, radius: radius(to) }) }];
  }
  return boundsHandles(region);
}

function boundsHandles(region) {
  const bounds = regionBounds(region);
  const middle = [(bounds[0] + bounds[2]) / 2, (bounds[1] + bounds[3]) / 2];
  const places = [[0, 1], [-1, 1], [2, 1], [2, -1], [2, 3], [-1, 3], [0, 3], [0, -1]];
  return places.map(([across, down]) => ({
    name: `edge ${across} ${down}`,
    at: [across < 0 ? middle[0] : bounds[across], down < 0 ? middle[1] : bounds[down]],
    drag: (region, to) => {
      const wanted = [...bounds];
      if (across >= 0) wanted[across] = to[0];
      if (down >= 0) wanted[down] = to[1];
      return stretch(region, bounds, wanted);
    },
  }));
}

/** A region scaled from bounds `from` to `to`; mirrored across an edge if needed, never flat. */
function stretch(region, from, to) {
  const along = (value, low, high) => {
    const span = from[high] - from[low] || 1;
    let wanted = to[high] - to[low];
    if (Math.abs(wanted) < 1) wanted = wanted < 0 ? -1 : 1;
    return to[low] === from[low]
      ? from[low] + ((value - from[low]) / span) * wanted
      : to[high] - ((from[high] - value) / span) * wanted;
  };
  return mapPoints(region, ([x, y]) => [along(x, 0, 2), along(y, 1, 3)]);
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

/** The distance of a point to a line segment. */
export function segmentDistance(point, from, to) {
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy;
  const share = length && clamp(((point[0] - from[0]) * dx + (point[1] - from[1]) * dy) / length, 0, 1);
  return distance(point, [from[0] + share * dx, from[1] + share * dy]);
}

function pointInRing(point, ring) {
  let odd = false;
  ring.forEach(([x, y], index) => {
    const [px, py] = ring[(index + ring.length - 1) % ring.length];
    if (y > point[1] !== py > point[1] && point[0] < ((px - x) * (point[1] - y)) / (py - y) + x) odd = !odd;
  });
  return odd;
}

/** Whether a point hits a region, within `tolerance` image pixels. */
export function hitTest(region, point, tolerance) {
  if (region.point) return distance(point, region.point) <= region.radius + tolerance;
  if (region.tail) return segmentDistance(point, region.tail, region.tip) <= tolerance + (region.width ?? 1) / 2;
  if (region.shape === "scribble") {
    return region.points.some((at, i) => i > 0 && segmentDistance(point, region.points[i - 1], at) <= tolerance + (region.width ?? 1) / 2);
  }
  if (region.shape === "ellipse") {
    const [x1, y1, x2, y2] = region.box;
    const [a, b] = [(x2 - x1) / 2 + tolerance, (y2 - y1) / 2 + tolerance];
    return ((point[0] - (x1 + x2) / 2) / a) ** 2 + ((point[1] - (y1 + y2) / 2) / b) ** 2 <= 1;
  }
  const rings = region.polygons ? region.polygons.map(toPairs) : [regionPoints(region)];
  return rings.some((ring) => pointInRing(point, ring)
    || ring.some((at, i) => segmentDistance(point, at, ring[(i + 1) % ring.length]) <= tolerance));
}

/** The regions at a point, smallest first; of equal ones the last drawn. */
export function regionsAt(regions, point, tolerance) {
  const area = (region) => {
    const [x1, y1, x2, y2] = regionBounds(region);
    return (x2 - x1) * (y2 - y1);
  };
  return regions.filter((each) => hitTest(each, point, tolerance)).reverse().sort((a, b) => area(a) - area(b));
}

/** The line simplified to fewer points within `tolerance` (Douglas-Peucker). */
export function simplify(points, tolerance) {
  const kept = new Set([0, points.length - 1]);
  const open = [[0, points.length - 1]];
  while (open.length) {
    const [first, last] = open.pop();
    let [far, at] = [tolerance, -1];
    for (let i = first + 1; i < last; i += 1) {
      const off = segmentDistance(points[i], points[first], points[last]);
      if (off > far) [far, at] = [off, i];
    }
    if (at < 0) continue;
    kept.add(at);
    open.push([first, at], [at, last]);
  }
  return points.filter((_, index) => kept.has(index));
}

/** The region of a drag from `start` to `end`; null if it would have no extent. */
export function regionFromDrag(shape, start, end, look) {
  const [x1, x2] = [Math.min(start[0], end[0]), Math.max(start[0], end[0])];
  const [y1, y2] = [Math.min(start[1], end[1]), Math.max(start[1], end[1])];
  const base = { ...look, shape, frame: "pixel" };
  if (shape === "arrow") return distance(start, end) ? { ...base, tail: start, tip: end } : null;
  if (x1 === x2 || y1 === y2) return null;
  if (shape === "triangle") {
    return { ...base, points: [[round2((x1 + x2) / 2), start[1]], [x2, end[1]], [x1, end[1]]] };
  }
  return { ...base, box: [x1, y1, x2, y2] };
}

/** Whether a ring of points intersects itself; the server refuses such a polygon. */
export function selfIntersects(ring) {
  const side = (a, b, c) => Math.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]));
  const next = (i) => ring[(i + 1) % ring.length];
  for (let i = 0; i < ring.length; i += 1) {
    for (let j = i + 2; j < ring.length; j += 1) {
      if (i === 0 && j === ring.length - 1) continue;
      const [a, b, c, d] = [ring[i], next(i), ring[j], next(j)];
      if (side(a, b, c) * side(a, b, d) <= 0 && side(c, d, a) * side(c, d, b) <= 0) return true;
    }
  }
  return false;
}

/** Whether a region has the extent that its shape requires. */
export function isValid(region) {
  if (region.box) return region.box[0] < region.box[2] && region.box[1] < region.box[3];
  if (region.tail) return distance(region.tail, region.tip) > 0;
  if (region.shape === "triangle") {
    const [a, b, c] = region.points;
    return (b[0] - a[0]) * (c[1] - a[1]) !== (c[0] - a[0]) * (b[1] - a[1]);
  }
  if (region.points) return region.points.some((each) => distance(each, region.points[0]) > 0);
  return true;
}
