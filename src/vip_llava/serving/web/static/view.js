// Zoom and pan: where the image lies on the stage, and the only conversion between both.
// Stage coordinates are CSS pixels, whatever the device pixel ratio.

import { clamp } from "./geometry.js";

export const MIN_SCALE = 0.05;
export const MAX_SCALE = 16;
const MARGIN = 12;

export class View {
  constructor() {
    this.stage = [1, 1];
    this.image = [1, 1];
    this.ratio = 1; // device pixels per CSS pixel
    this.scale = 1; // CSS pixels per image pixel
    this.offset = [0, 0]; // of the image's corner on the stage
    this.fitting = true; // keep the whole image visible when the stage is resized
  }

  /** From stage to image coordinates. */
  toImage([x, y]) {
    return [(x - this.offset[0]) / this.scale, (y - this.offset[1]) / this.scale];
  }

  /** From image to stage coordinates. */
  toStage([x, y]) {
    return [x * this.scale + this.offset[0], y * this.scale + this.offset[1]];
  }

  /** Resize the stage; its centre keeps showing the same image point. */
  resize(stage) {
    const middle = this.toImage([this.stage[0] / 2, this.stage[1] / 2]);
    this.stage = stage;
    if (this.fitting) return this.fit();
    const [x, y] = this.toStage(middle);
    return this.pan(stage[0] / 2 - x, stage[1] / 2 - y);
  }

  /** Show the whole image centred, enlarged at most four times. */
  fit() {
    const room = this.stage.map((each, axis) => Math.max(each - 2 * MARGIN, 1) / this.image[axis]);
    this.scale = clamp(Math.min(...room), MIN_SCALE, 4);
    this.offset = this.stage.map((each, axis) => this.snap((each - this.image[axis] * this.scale) / 2));
    this.fitting = true;
  }

  /** Zoom to a scale around the stage position `at`, by default the centre. */
  zoom(scale, at = this.stage.map((each) => each / 2)) {
    const place = this.toImage(at);
    this.scale = clamp(scale, MIN_SCALE, MAX_SCALE);
    this.fitting = false;
    const [x, y] = this.toStage(place);
    this.pan(at[0] - x, at[1] - y);
  }

  /** Move the image on the stage; a part of it stays visible. */
  pan(dx, dy) {
    this.fitting = false;
    this.offset = [dx, dy].map((by, axis) => {
      const long = this.image[axis] * this.scale;
      const seen = Math.min(48, long / 2);
      return this.snap(clamp(this.offset[axis] + by, seen - long, this.stage[axis] - seen));
    });
  }

  /** A stage coordinate snapped to device pixels, so that 100 % is not blurred. */
  snap(value) {
    return Math.round(value * this.ratio) / this.ratio;
  }
}

/** The position of a pointer event on a surface of `size` CSS pixels. */
export function eventPosition(event, surface, size) {
  const box = surface.getBoundingClientRect();
  // With a CSS transform on an ancestor, the box on the screen differs from the surface's size.
  return [
    ((event.clientX - box.left) * size[0]) / box.width,
    ((event.clientY - box.top) * size[1]) / box.height,
  ];
}
