// The canvas: an image to draw regions on. `mount(element, options)` puts it into an element.
// What it gives is Region JSON in pixels of the image; what the model sees is drawn by the server.

import { handlesOf, pointsOf, rgb } from "./geometry.js";
import { Gestures } from "./gestures.js";
import { Model } from "./model.js";
import { Chips, TOOLS, Toolbar } from "./toolbar.js";
import { View } from "./view.js";
import { make } from "./dom.js";
import { paint } from "./paint.js";

/**
 * options: `onchange({image, regions})` after each change, `insert(text)` for the question,
 * `send(path, body, type)` -> JSON of the server, `examples` [{name, url, thumbnail}].
 */
export function mount(element, options) {
  return new Canvas(element, options);
}

class Canvas {
  constructor(element, options) {
    this.options = options;
    this.insert = options.insert;
    this.view = new View();
    this.model = new Model(() => this.changed());
    this.image = null; // {id, url, width, height}
    this.bitmap = null;
    this.name = "box";
    this.build(element);
    this.gestures = new Gestures(this);
    new ResizeObserver(([entry]) => this.resized(entry.contentRect)).observe(this.stage);
    this.watchRatio();
    this.resized({ width: this.stage.clientWidth, height: this.stage.clientHeight });
    this.toolbar.update(this.view.scale);
  }

  build(element) {
    this.canvas = make("canvas", {
      tabindex: 0, class: "vl-surface", role: "application",
      "aria-label": "Image to draw on. Arrow keys move the pointer, Space presses and lets go.",
    });
    this.layer = document.createElement("canvas");
    this.status = make("p", { class: "vl-status", role: "status", "aria-live": "polite" });
    this.file = make("input", {
      type: "file", accept: "image/*", class: "vl-file", "aria-label": "Choose a photo",
      change: () => { this.open(this.file.files[0]); this.file.value = ""; },
    });
    this.toolbar = new Toolbar(this);
    this.stage = make("div", { class: "vl-stage", "data-empty": "true" }, this.canvas, this.welcome());
    this.chips = new Chips(this);
    const another = make("button", { type: "button", class: "vl-another", click: () => this.file.click() }, "Another photo");
    const view = make("div", { class: "vl-view" }, this.toolbar.zoom, another);
    this.under = make("div", { class: "vl-under" }, this.chips.element, view);
    element.replaceChildren(make(
      "section", { class: "vl-canvas", "aria-label": "Image and marks" },
      this.toolbar.element, this.stage, this.under, this.status, this.file,
    ));
    this.stage.addEventListener("dragover", (event) => event.preventDefault());
    this.stage.addEventListener("drop", (event) => {
      event.preventDefault();
      this.open(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const [file] = [...(event.clipboardData?.files ?? [])].filter((each) => each.type.startsWith("image/"));
      if (file) this.open(file);
    });
  }

  welcome() {
    const examples = (this.options.examples ?? []).map((each) => make(
      "button", { type: "button", class: "vl-example", "aria-label": `Example photo: ${each.name}`, click: () => this.show(each) },
      make("img", { src: each.thumbnail, alt: "" }),
    ));
    return make(
      "div", { class: "vl-welcome" },
      make("button", { type: "button", class: "vl-choose", click: () => this.file.click() }, "Choose a photo"),
      make("p", {}, "or drop one here, or paste it. Then draw on what you want to ask about."),
      examples.length ? make("div", { class: "vl-examples" }, ...examples) : null,
    );
  }

  // What the gestures and bars ask for.

  ready() { return this.bitmap !== null; }
  tool() { return this.name; }
  say(text, wrong = false) {
    this.status.textContent = text;
    this.status.toggleAttribute("data-wrong", wrong);
  }

  setTool(name) {
    this.gestures.cancel();
    this.name = name;
    this.say(TOOLS.find((each) => each[0] === name)[1]);
    this.canvas.dataset.tool = name;
    this.toolbar.update(this.view.scale);
    this.redraw();
  }

  zoomTo(scale) { this.view.zoom(scale); this.redraw(); }
  zoomBy(factor) { this.zoomTo(this.view.scale * factor); }
  fit() { this.view.fit(); this.redraw(); }

  /** A key with a meaning of its own; true where it had one. */
  shortcut(event) {
    const { model } = this;
    const key = event.key.toLowerCase();
    const act = event.ctrlKey || event.metaKey
      ? { z: () => (event.shiftKey ? model.redo() : model.undo()), y: () => model.redo() }[key]
      : {
        delete: () => model.remove(model.now.selected), backspace: () => model.remove(model.now.selected),
        "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(1 / 1.25), 0: () => this.fit(),
        "]": () => this.next(1), "[": () => this.next(-1),
      }[key] ?? this.toolKey(event, key);
    if (!act) return false;
    event.preventDefault();
    act();
    return true;
  }

  toolKey(event, key) {
    const tool = !event.altKey && TOOLS.find((each) => each[2] === key);
    return tool ? () => this.setTool(tool[0]) : null;
  }

  /** Select the next mark (or the one before), so that all can be reached with keys. */
  next(step) {
    const { regions, now } = this.model;
    if (!regions.length) return;
    const at = regions.findIndex((each) => each.id === now.selected);
    this.setTool("select");
    this.model.select(regions.at((at + step + (at < 0 && step < 0 ? 1 : 0)) % regions.length).id);
  }

  // The image.

  /** A file from the person: the server checks it, turns it upright and gives it an id. */
  async open(file) {
    if (!file) return;
    this.say("Opening the photo ...");
    try {
      this.show(await this.options.send("images", file, file.type || "application/octet-stream"));
    } catch (error) {
      this.say(error.message, true);
    }
  }

  /** Show an image that the server has: {id, url, width, height}, or an example {open}. */
  async show(image) {
    try {
      const found = image.id ? image : await this.options.send(image.open, "", "text/plain");
      const bitmap = new Image();
      bitmap.src = found.url;
      await bitmap.decode();
      [this.image, this.bitmap] = [found, bitmap];
    } catch (error) {
      this.say(error.message, true);
      return;
    }
    this.stage.dataset.empty = "false";
    this.view.image = [this.image.width, this.image.height];
    this.view.fit();
    this.model.clear(this.view.image);
    this.setTool(this.name);
    this.say(`${this.image.width} × ${this.image.height} pixels. Draw on what you want to ask about.`);
    this.changed();
  }

  async outline(points) {
    try {
      return (await this.options.send("outline", JSON.stringify({ points }), "application/json")).polygons;
    } catch (error) {
      this.say(error.message, true);
      return null;
    }
  }

  async suggest(at) {
    if (!at.point && !at.box) return;
    this.say("Looking for the area ...");
    const image = this.image;
    try {
      const body = JSON.stringify({ image: image.id, ...at });
      const { polygons } = await this.options.send("suggest", body, "application/json");
      if (image !== this.image) return;
      this.model.add({ ...this.model.look("mask"), shape: "mask", frame: "pixel", polygons });
      this.say("This is the suggested area. Undo it if it is wrong, or draw a box around the thing.");
    } catch (error) {
      this.say(error.message, true);
    }
  }

  // Showing.

  changed() {
    this.toolbar.update(this.view.scale);
    this.chips.update();
    this.redraw();
    this.options.onchange({ image: this.image?.id ?? null, regions: this.model.regions });
  }

  watchRatio() {
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener("change", () => {
      this.resized(this.room);
      this.watchRatio();
    }, { once: true });
  }

  /** The surface in whole pixels of the screen, so that what is drawn is shown pixel by pixel. */
  resized(room) {
    const ratio = devicePixelRatio;
    const pixels = [room.width, room.height].map((each) => Math.floor(each * ratio + 0.01));
    if (!pixels[0] || !pixels[1]) return;
    this.room = room;
    for (const each of [this.canvas, this.layer]) [each.width, each.height] = pixels;
    const size = pixels.map((each) => each / ratio);
    [this.canvas.style.width, this.canvas.style.height] = size.map((each) => `${each}px`);
    this.view.ratio = ratio;
    this.view.resize(size);
    this.draw();
  }

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.draw();
    });
  }

  draw() {
    const context = this.canvas.getContext("2d");
    const { ratio } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.toolbar.update(this.view.scale);
    if (!this.bitmap) return;
    const { scale, offset, image } = this.view;
    context.setTransform(scale * ratio, 0, 0, scale * ratio, offset[0] * ratio, offset[1] * ratio);
    context.imageSmoothingEnabled = scale * ratio < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.bitmap, 0, 0, ...image);
    context.save();
    context.beginPath();
    context.rect(0, 0, ...image);
    context.clip(); // what lies outside is not drawn by the server either
    const { draft } = this.gestures ?? {};
    const marks = this.model.regions.map((each) => (each.id === draft?.id ? draft : each));
    if (draft && !draft.id) marks.push(draft);
    for (const each of marks) paint(context, each, image, this.layer.getContext("2d"));
    context.restore();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.helpers(context, draft ?? this.model.selected);
  }

  /** What helps the person and is no part of the image: handles, corners, the keyboard's pointer. */
  helpers(context, region) {
    const { corners, hover, cursor } = this.gestures ?? { corners: [] };
    const knob = ([x, y], color) => {
      context.beginPath();
      context.arc(x, y, 5, 0, 2 * Math.PI);
      context.fillStyle = "#ffffff";
      context.strokeStyle = color;
      context.lineWidth = 2;
      context.fill();
      context.stroke();
    };
    if (region && this.name === "select") {
      context.setLineDash([4, 4]);
      context.strokeStyle = "#ffffff";
      context.lineWidth = 1;
      const spots = pointsOf(region).map((each) => this.view.toStage(each));
      const [x, y] = [Math.min(...spots.map((s) => s[0])), Math.min(...spots.map((s) => s[1]))];
      const far = [Math.max(...spots.map((s) => s[0])), Math.max(...spots.map((s) => s[1]))];
      context.strokeRect(x - 4, y - 4, far[0] - x + 8, far[1] - y + 8);
      context.setLineDash([]);
      for (const each of handlesOf(region)) knob(this.view.toStage(each.at), "#2563eb");
    }
    if (corners.length) {
      const spots = [...corners, ...(hover ? [hover] : [])].map((each) => this.view.toStage(each));
      context.beginPath();
      spots.forEach((each, index) => context[index ? "lineTo" : "moveTo"](...each));
      context.strokeStyle = rgb(this.model.look(this.name).color);
      context.lineWidth = 2;
      context.stroke();
      for (const each of corners) knob(this.view.toStage(each), context.strokeStyle);
    }
    if (cursor) {
      const [x, y] = cursor;
      for (const [color, wide] of [["#000000", 3], ["#ffffff", 1]]) {
        context.beginPath();
        context.moveTo(x - 12, y); context.lineTo(x + 12, y);
        context.moveTo(x, y - 12); context.lineTo(x, y + 12);
        [context.strokeStyle, context.lineWidth] = [color, wide];
        context.stroke();
      }
    }
  }
}
