// Where the image lies on the stage: zoom and pan, and the way between the screen and the image.
// The one place that converts coordinates. Lengths on the stage are CSS pixels, whatever the screen's own are.

import { clamp } from "./geometry.js";

export const MIN_SCALE = 0.05;
export const MAX_SCALE = 16;
const MARGIN = 12;

export class View {
  constructor() {
    this.stage = [1, 1];
    this.image = [1, 1];
    this.ratio = 1; // the screen's own pixels for one CSS pixel
    this.scale = 1; // CSS pixels for one pixel of the image
    this.offset = [0, 0]; // where the image's corner lies on the stage
    this.fitting = true; // the whole image is shown, also after the stage has changed
  }

  /** Stage to image. */
  toImage([x, y]) {
    return [(x - this.offset[0]) / this.scale, (y - this.offset[1]) / this.scale];
  }

  /** Image to stage. */
  toStage([x, y]) {
    return [x * this.scale + this.offset[0], y * this.scale + this.offset[1]];
  }

  /** A stage of another size: what was in its middle stays there. */
  resize(stage) {
    const middle = this.toImage([this.stage[0] / 2, this.stage[1] / 2]);
    this.stage = stage;
    if (this.fitting) return this.fit();
    const [x, y] = this.toStage(middle);
    return this.pan(stage[0] / 2 - x, stage[1] / 2 - y);
  }

  /** The whole image in the middle, enlarged at most four times. */
  fit() {
    const room = this.stage.map((each, axis) => Math.max(each - 2 * MARGIN, 1) / this.image[axis]);
    this.scale = clamp(Math.min(...room), MIN_SCALE, 4);
    this.offset = this.stage.map((each, axis) => this.sharp((each - this.image[axis] * this.scale) / 2));
    this.fitting = true;
  }

  /** Zoom to a scale; the place of the image under `at` (stage; its middle by default) stays there. */
  zoom(scale, at = this.stage.map((each) => each / 2)) {
    const place = this.toImage(at);
    this.scale = clamp(scale, MIN_SCALE, MAX_SCALE);
    this.fitting = false;
    const [x, y] = this.toStage(place);
    this.pan(at[0] - x, at[1] - y);
  }

  /** Move the image on the stage; a part of it stays in sight. */
  pan(dx, dy) {
    this.fitting = false;
    this.offset = [dx, dy].map((by, axis) => {
      const long = this.image[axis] * this.scale;
      const seen = Math.min(48, long / 2);
      return this.sharp(clamp(this.offset[axis] + by, seen - long, this.stage[axis] - seen));
    });
  }

  /** A place on the stage that begins with a pixel of the screen, so that 100 % is not blurred. */
  sharp(value) {
    return Math.round(value * this.ratio) / this.ratio;
  }
}

/** The place of a pointer event on a surface that is `size` CSS pixels large. */
export function place(event, surface, size) {
  const box = surface.getBoundingClientRect();
  // An ancestor may be scaled by a style; then the box on the screen is not the surface's own size.
  return [
    ((event.clientX - box.left) * size[0]) / box.width,
    ((event.clientY - box.top) * size[1]) / box.height,
  ];
}
