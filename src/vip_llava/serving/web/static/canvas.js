// The canvas for drawing regions on an image. `mount(element, options)` creates it in an element.
// Its value is Region JSON in image pixels; the server draws what the model sees.

import { resizeHandles, regionPoints, rgb } from "./geometry.js";
import { Gestures } from "./gestures.js";
import { Model } from "./model.js";
import { Chips, TOOLS, Toolbar } from "./toolbar.js";
import { View } from "./view.js";
import { make } from "./dom.js";
import { paint } from "./paint.js";

/**
 * options: `onchange({image, regions})` after each change, `insert(text)` into the question,
 * `send(path, body, type)` -> the server's JSON, `examples` [{name, open, thumbnail}].
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
    this.toolName = "box";
    this.build(element);
    this.gestures = new Gestures(this);
    new ResizeObserver(([entry]) => this.resize(entry.contentRect)).observe(this.stage);
    this.watchPixelRatio();
    this.resize({ width: this.stage.clientWidth, height: this.stage.clientHeight });
    this.toolbar.update(this.view.scale);
  }

  build(element) {
    this.canvas = make("canvas", {
      tabindex: 0, class: "vl-surface", role: "application",
      "aria-label": "Image to draw on. Arrow keys move the pointer, Space presses and releases it.",
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
    this.footer = make("div", { class: "vl-footer" }, this.chips.element, view);
    element.replaceChildren(make(
      "section", { class: "vl-canvas", "aria-label": "Image and marks" },
      this.toolbar.element, this.stage, this.footer, this.status, this.file,
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

  // For the gestures and bars.

  ready() { return this.bitmap !== null; }
  tool() { return this.toolName; }
  setStatus(text, wrong = false) {
    this.status.textContent = text;
    this.status.toggleAttribute("data-wrong", wrong);
  }

  setTool(name) {
    this.gestures.cancel();
    this.toolName = name;
    this.setStatus(TOOLS.find((each) => each[0] === name)[1]);
    this.canvas.dataset.tool = name;
    this.toolbar.update(this.view.scale);
    this.redraw();
  }

  zoomTo(scale) { this.view.zoom(scale); this.redraw(); }
  zoomBy(factor) { this.zoomTo(this.view.scale * factor); }
  fit() { this.view.fit(); this.redraw(); }

  /** Handle a keyboard shortcut; false if the key is none. */
  shortcut(event) {
    const { model } = this;
    const key = event.key.toLowerCase();
    const action = event.ctrlKey || event.metaKey
      ? { z: () => (event.shiftKey ? model.redo() : model.undo()), y: () => model.redo() }[key]
      : {
        delete: () => model.remove(model.current.selected), backspace: () => model.remove(model.current.selected),
        "+": () => this.zoomBy(1.25), "=": () => this.zoomBy(1.25), "-": () => this.zoomBy(1 / 1.25), 0: () => this.fit(),
        "]": () => this.selectNext(1), "[": () => this.selectNext(-1),
      }[key] ?? this.toolKey(event, key);
    if (!action) return false;
    event.preventDefault();
    action();
    return true;
  }

  toolKey(event, key) {
    const tool = !event.altKey && TOOLS.find((each) => each[2] === key);
    return tool ? () => this.setTool(tool[0]) : null;
  }

  /** Select the next or previous mark. */
  selectNext(step) {
    const { regions, current } = this.model;
    if (!regions.length) return;
    const at = regions.findIndex((each) => each.id === current.selected);
    this.setTool("select");
    this.model.select(regions.at((at + step + (at < 0 && step < 0 ? 1 : 0)) % regions.length).id);
  }

  // Images.

  /** Upload a file; the server validates it, applies its EXIF orientation and returns an id. */
  async open(file) {
    if (!file) return;
    this.setStatus("Opening the photo ...");
    try {
      this.show(await this.options.send("images", file, file.type || "application/octet-stream"));
    } catch (error) {
      this.setStatus(error.message, true);
    }
  }

  /** Show an image on the server, {id, url, width, height}, or an example, {open}. */
  async show(image) {
    try {
      const found = image.id ? image : await this.options.send(image.open, "", "text/plain");
      const bitmap = new Image();
      bitmap.src = found.url;
      await bitmap.decode();
      [this.image, this.bitmap] = [found, bitmap];
    } catch (error) {
      this.setStatus(error.message, true);
      return;
    }
    this.stage.dataset.empty = "false";
    this.view.image = [this.image.width, this.image.height];
    this.view.fit();
    this.model.clear(this.view.image);
    this.setTool(this.toolName);
    this.setStatus(`${this.image.width} × ${this.image.height} pixels. Draw on what you want to ask about.`);
    this.changed();
  }

  async outline(points) {
    try {
      return (await this.options.send("outline", JSON.stringify({ points }), "application/json")).polygons;
    } catch (error) {
      this.setStatus(error.message, true);
      return null;
    }
  }

  async suggest(at) {
    if (!at.point && !at.box) return;
    this.setStatus("Looking for the area ...");
    const image = this.image;
    try {
      const body = JSON.stringify({ image: image.id, ...at });
      const { polygons } = await this.options.send("suggest", body, "application/json");
      if (image !== this.image) return;
      this.model.add({ ...this.model.styleFor("mask"), shape: "mask", frame: "pixel", polygons });
      this.setStatus("This is the suggested area. Undo it if it is wrong, or draw a box around the object.");
    } catch (error) {
      this.setStatus(error.message, true);
    }
  }

  // Rendering.

  changed() {
    this.toolbar.update(this.view.scale);
    this.chips.update();
    this.redraw();
    this.options.onchange({ image: this.image?.id ?? null, regions: this.model.regions });
  }

  watchPixelRatio() {
    matchMedia(`(resolution: ${devicePixelRatio}dppx)`).addEventListener("change", () => {
      this.resize(this.stageSize);
      this.watchPixelRatio();
    }, { once: true });
  }

  /** Size the surface in whole device pixels, so that it is not resampled. */
  resize(stageSize) {
    const ratio = devicePixelRatio;
    const pixels = [stageSize.width, stageSize.height].map((each) => Math.floor(each * ratio + 0.01));
    if (!pixels[0] || !pixels[1]) return;
    this.stageSize = stageSize;
    for (const each of [this.canvas, this.layer]) [each.width, each.height] = pixels;
    const size = pixels.map((each) => each / ratio);
    [this.canvas.style.width, this.canvas.style.height] = size.map((each) => `${each}px`);
    this.view.ratio = ratio;
    this.view.resize(size);
    this.draw();
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
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
    context.clip(); // as the server's drawing
    const { draft } = this.gestures ?? {};
    const marks = this.model.regions.map((each) => (each.id === draft?.id ? draft : each));
    if (draft && !draft.id) marks.push(draft);
    for (const each of marks) paint(context, each, image, this.layer.getContext("2d"));
    context.restore();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.drawOverlay(context, draft ?? this.model.selected);
  }

  /** Draw what is not part of the image: handles, corners, the keyboard's pointer. */
  drawOverlay(context, region) {
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
    if (region && this.toolName === "select") {
      context.setLineDash([4, 4]);
      context.strokeStyle = "#ffffff";
      context.lineWidth = 1;
      const points = regionPoints(region).map((each) => this.view.toStage(each));
      const [x, y] = [Math.min(...points.map((s) => s[0])), Math.min(...points.map((s) => s[1]))];
      const far = [Math.max(...points.map((s) => s[0])), Math.max(...points.map((s) => s[1]))];
      context.strokeRect(x - 4, y - 4, far[0] - x + 8, far[1] - y + 8);
      context.setLineDash([]);
      for (const each of resizeHandles(region)) knob(this.view.toStage(each.at), "#2563eb");
    }
    if (corners.length) {
      const points = [...corners, ...(hover ? [hover] : [])].map((each) => this.view.toStage(each));
      context.beginPath();
      points.forEach((each, index) => context[index ? "lineTo" : "moveTo"](...each));
      context.strokeStyle = rgb(this.model.styleFor(this.toolName).color);
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
