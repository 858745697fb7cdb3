// The conversation: questions, answers side by side, the image as the model saw it, votes, sharing.
// All that people or models wrote is put in as text; nothing of it is ever read as markup.

import { rgb } from "./geometry.js";
import { button, make } from "./dom.js";
import { share } from "./share.js";

const VOTES = [["up", "Good answer"], ["down", "Bad answer"], ["flag", "Report this answer"]];
const WAITING = { waiting: "Looking ...", stopped: "Stopped." };

export class Conversation {
  /** host: {trigger(name, data), focus()}. */
  constructor(element, host) {
    this.host = host;
    this.shown = [];
    this.log = make("div", { class: "vl-log", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
    this.notice = make("p", { class: "vl-notice", role: "alert" });
    element.replaceChildren(this.log, this.notice);
  }

  /** Show a conversation; only turns that have changed are made anew. */
  show(value) {
    const turns = value?.turns ?? [];
    this.votes = Boolean(value?.votes);
    this.notice.textContent = value?.notice ?? "";
    this.notice.hidden = !value?.notice;
    const states = turns.map((turn, index) => JSON.stringify([turn, index === turns.length - 1, this.votes]));
    const follow = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
    while (this.log.childElementCount > Math.max(turns.length, 1) || (!turns.length && this.shown.length)) {
      this.log.lastElementChild.remove();
      this.shown.length = Math.max(0, this.shown.length - 1);
      if (!this.log.childElementCount) break;
    }
    if (!turns.length) {
      this.shown = [];
      return this.log.replaceChildren(make("p", { class: "vl-hint" }, "Answers appear here, each with the image as the model saw it."));
    }
    if (!this.shown.length) this.log.replaceChildren();
    turns.forEach((turn, index) => {
      if (this.shown[index] === states[index]) return;
      const made = this.turn(turn, index === turns.length - 1);
      const old = this.log.children[index];
      if (old) old.replaceWith(made);
      else this.log.append(made);
    });
    const more = turns.length > this.shown.length;
    this.shown = states;
    if (follow || more) this.log.scrollTop = this.log.scrollHeight;
    // On a phone the conversation is under the canvas, so that a new turn may be out of sight.
    if (more && window.innerWidth <= 640) this.log.lastElementChild.scrollIntoView({ block: "nearest" });
    return undefined;
  }

  turn(turn, last) {
    const columns = turn.columns.map((column, index) => this.column(turn, column, index));
    return make(
      "article", { class: "vl-turn" },
      make("p", { class: "vl-question" }, ...worded(turn)),
      make("div", { class: "vl-columns" }, ...columns),
      this.actions(turn, last),
    );
  }

  column(turn, column, index) {
    const { state } = column;
    const text = column.text || WAITING[state] || "";
    const image = column.drawn && make(
      "button", { type: "button", class: "vl-seen", title: "Look at it closely", click: () => enlarge(column.drawn) },
      make("img", { src: column.drawn, alt: "The image as the model saw it, with its marks", loading: "lazy" }),
    );
    return make(
      "section", { class: "vl-answer", "data-state": state, "aria-label": `Answer of ${column.model}` },
      make("h3", {}, column.model),
      make("p", { class: "vl-text", "data-quiet": !column.text }, text),
      state === "stopped" && column.text ? make("p", { class: "vl-about" }, "Stopped here.") : null,
      column.error ? make("p", { class: "vl-error", role: "alert" }, column.error) : null,
      image || null,
      ...column.notes.map((note) => make("p", { class: "vl-about" }, `Note: ${note}`)),
      column.about ? make("details", { class: "vl-details" }, make("summary", {}, column.about), make("pre", {}, column.prompt)) : null,
      this.marks(turn, column, index),
    );
  }

  marks(turn, column, index) {
    if (!column.text) return null;
    const copy = button("copy", "Copy the answer", () => navigator.clipboard?.writeText(column.text));
    const votes = !this.votes || column.state === "answering" ? [] : VOTES.map(([vote, label]) => button(
      vote, label, () => this.host.trigger("vote", { turn: turn.number, column: index, vote }),
      { "aria-pressed": String(column.vote === vote), "data-vote": vote },
    ));
    return make("div", { class: "vl-marks" }, copy, ...votes);
  }

  actions(turn, last) {
    const busy = turn.columns.some((each) => each.state === "waiting" || each.state === "answering");
    if (busy) return null;
    return make(
      "div", { class: "vl-actions" },
      last ? make("button", { type: "button", class: "vl-link", "data-act": "again", click: () => this.host.trigger("again", {}) }, "Ask again") : null,
      make("button", { type: "button", class: "vl-link", "data-act": "share", click: () => share(turn) }, "Share as JSON, curl, Python"),
    );
  }
}

/** The question with its <region:ID> as chips in the colours of the marks. */
function worded(turn) {
  const known = new Map(turn.regions.map((each) => [each.id, each]));
  return turn.question.split(/(<region:[\w.-]+>)/).map((part) => {
    const region = known.get(/^<region:([\w.-]+)>$/.exec(part)?.[1]);
    if (!region) return part;
    return make(
      "span", { class: "vl-mention", style: `--ink: ${rgb(region.color)}`, title: region.shape },
      make("span", { class: "vl-dot" }), `${region.id} ${region.shape}`,
    );
  });
}

/** An image as large as the window, until it is clicked or Escape is pressed. */
function enlarge(url) {
  const dialog = make("dialog", { class: "vl-large", "aria-label": "The image as the model saw it" });
  dialog.append(
    make("img", { src: url, alt: "The image as the model saw it", click: () => dialog.close() }),
    make("button", { type: "button", class: "vl-link", click: () => dialog.close() }, "Close"),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
