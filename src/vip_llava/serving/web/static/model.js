// What is on the canvas: the regions, which one is selected, how the next one looks, and undo.
// Knows no screen and no events; whoever changes it is told through `onchange`.

import { PALETTE, defaults, sound } from "./geometry.js";

const MAX_UNDO = 200;

export class Model {
  constructor(onchange) {
    this.onchange = onchange;
    this.clear([1, 1]);
  }

  /** Another image: nothing is drawn on it, and nothing can be undone. */
  clear(size) {
    this.size = size;
    this.now = { regions: [], selected: null, next: 1 };
    this.past = [];
    this.future = [];
    this.style = {}; // what the person chose for the next region: color, width, alpha
  }

  get regions() { return this.now.regions; }

  get selected() {
    return this.now.regions.find((each) => each.id === this.now.selected) ?? null;
  }

  /** A step that can be undone. */
  commit(now) {
    this.past = [...this.past, this.now].slice(-MAX_UNDO);
    this.future = [];
    this.now = { ...this.now, ...now };
    this.onchange();
  }

  undo() {
    if (!this.past.length) return;
    this.future = [this.now, ...this.future];
    this.now = this.past.at(-1);
    this.past = this.past.slice(0, -1);
    this.onchange();
  }

  redo() {
    if (!this.future.length) return;
    this.past = [...this.past, this.now];
    [this.now, ...this.future] = this.future;
    this.onchange();
  }

  select(id) {
    this.now = { ...this.now, selected: id };
    this.onchange();
  }

  /** The first colour that no region has; they repeat when all are taken. */
  freeColor() {
    const names = Object.keys(PALETTE);
    const taken = this.regions.map((each) => each.color);
    return names.find((name) => !taken.includes(name)) ?? names[this.regions.length % names.length];
  }

  /** How a new region of a shape looks: what was chosen, else what the server would choose. */
  look(shape) {
    const usual = defaults(this.size);
    const look = { color: this.style.color ?? this.freeColor() };
    look.alpha = this.style.alpha ?? (shape === "mask" ? 128 : 255);
    const width = this.style.width ?? (shape === "contour" ? usual.contour : usual.width);
    if (shape === "point") look.radius = this.style.width ? 3 * this.style.width : usual.radius;
    else if (shape !== "mask") look.width = width;
    return look;
  }

  /** Add a region under the next id and select it. Ids are never given twice on one image. */
  add(region) {
    if (!region || !sound(region)) return null;
    const id = String(this.now.next);
    const { regions, next } = this.now;
    this.commit({ regions: [...regions, { id, ...region }], selected: id, next: next + 1 });
    return id;
  }

  /** Put a changed region in the place of the one with its id. */
  replace(region) {
    if (!sound(region)) return;
    this.commit({ regions: this.regions.map((each) => (each.id === region.id ? region : each)) });
  }

  remove(id) {
    this.commit({ regions: this.regions.filter((each) => each.id !== id), selected: null });
  }

  removeAll() {
    if (this.regions.length) this.commit({ regions: [], selected: null });
  }

  /** A look for the selected region, and for those that are drawn from now on. */
  restyle(name, value) {
    this.style = { ...this.style, [name]: value };
    const region = this.selected;
    if (!region) return this.onchange();
    if (name === "width" && region.shape === "mask") return this.onchange();
    if (name === "width" && region.point) return this.replace({ ...region, radius: 3 * value });
    return this.replace({ ...region, [name]: value });
  }
}
