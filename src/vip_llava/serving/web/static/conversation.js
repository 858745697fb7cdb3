// The conversation: questions, answers side by side, the image as the model saw it, votes, sharing.
// Texts of visitors and models are inserted as text nodes, never as markup.

import { rgb } from "./geometry.js";
import { button, make } from "./dom.js";
import { share } from "./share.js";

const VOTES = [["up", "Good answer"], ["down", "Bad answer"], ["flag", "Report this answer"]];
const WAITING = { waiting: "Looking ...", stopped: "Stopped." };

export class Conversation {
  /** host: {trigger(name, data)}. */
  constructor(element, host) {
    this.host = host;
    this.rendered = [];
    this.log = make("div", { class: "vl-log", role: "log", "aria-label": "Conversation", "aria-live": "polite" });
    this.notice = make("p", { class: "vl-notice", role: "alert" });
    element.replaceChildren(this.log, this.notice);
  }

  /** Show a transcript; only changed exchanges are rendered again. */
  show(value) {
    const exchanges = value?.exchanges ?? [];
    this.votes = Boolean(value?.votes);
    this.notice.textContent = value?.notice ?? "";
    this.notice.hidden = !value?.notice;
    const states = exchanges.map((exchange, index) => JSON.stringify([exchange, index === exchanges.length - 1, this.votes]));
    const follow = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
    while (this.log.childElementCount > Math.max(exchanges.length, 1) || (!exchanges.length && this.rendered.length)) {
      this.log.lastElementChild.remove();
      this.rendered.length = Math.max(0, this.rendered.length - 1);
      if (!this.log.childElementCount) break;
    }
    if (!exchanges.length) {
      this.rendered = [];
      return this.log.replaceChildren(make("p", { class: "vl-hint" }, "Answers appear here, each with the image as the model saw it."));
    }
    if (!this.rendered.length) this.log.replaceChildren();
    exchanges.forEach((exchange, index) => {
      if (this.rendered[index] === states[index]) return;
      const element = this.exchange(exchange, index === exchanges.length - 1);
      const old = this.log.children[index];
      if (old) old.replaceWith(element);
      else this.log.append(element);
    });
    const more = exchanges.length > this.rendered.length;
    this.rendered = states;
    if (follow || more) this.log.scrollTop = this.log.scrollHeight;
    // On a phone the conversation is below the canvas, so a new exchange may be out of view.
    if (more && window.innerWidth <= 640) this.log.lastElementChild.scrollIntoView({ block: "nearest" });
    return undefined;
  }

  exchange(exchange, last) {
    const answers = exchange.answers.map((answer, index) => this.answer(exchange, answer, index));
    return make(
      "article", { class: "vl-exchange" },
      make("p", { class: "vl-question" }, ...renderQuestion(exchange)),
      make("div", { class: "vl-answers" }, ...answers),
      this.actions(exchange, last),
    );
  }

  answer(exchange, answer, index) {
    const { state } = answer;
    const text = answer.text || WAITING[state] || "";
    const image = answer.drawn && make(
      "button", { type: "button", class: "vl-seen", title: "Look at it closely", click: () => enlarge(answer.drawn) },
      make("img", { src: answer.drawn, alt: "The image as the model saw it, with its marks", loading: "lazy" }),
    );
    return make(
      "section", { class: "vl-answer", "data-state": state, "aria-label": `Answer of ${answer.model}` },
      make("h3", {}, answer.model),
      make("p", { class: "vl-text", "data-quiet": !answer.text }, text),
      state === "stopped" && answer.text ? make("p", { class: "vl-about" }, "Stopped here.") : null,
      answer.error ? make("p", { class: "vl-error", role: "alert" }, answer.error) : null,
      image || null,
      ...answer.notes.map((note) => make("p", { class: "vl-about" }, `Note: ${note}`)),
      answer.about ? make("details", { class: "vl-details" }, make("summary", {}, answer.about), make("pre", {}, answer.prompt)) : null,
      this.feedback(exchange, answer, index),
    );
  }

  feedback(exchange, answer, index) {
    if (!answer.text) return null;
    const copy = button("copy", "Copy the answer", () => navigator.clipboard?.writeText(answer.text));
    const votes = !this.votes || answer.state === "answering" ? [] : VOTES.map(([vote, label]) => button(
      vote, label, () => this.host.trigger("vote", { exchange: exchange.number, answer: index, vote }),
      { "aria-pressed": String(answer.vote === vote), "data-vote": vote },
    ));
    return make("div", { class: "vl-feedback" }, copy, ...votes);
  }

  actions(exchange, last) {
    const busy = exchange.answers.some((each) => each.state === "waiting" || each.state === "answering");
    if (busy) return null;
    return make(
      "div", { class: "vl-actions" },
      last ? make("button", { type: "button", class: "vl-link", "data-act": "again", click: () => this.host.trigger("again", {}) }, "Ask again") : null,
      make("button", { type: "button", class: "vl-link", "data-act": "share", click: () => share(exchange) }, "Share as JSON, curl, Python"),
    );
  }
}

/** The question with each <region:ID> as a chip in the colour of its mark. */
function renderQuestion(exchange) {
  const known = new Map(exchange.regions.map((each) => [each.id, each]));
  return exchange.question.split(/(<region:[\w.-]+>)/).map((part) => {
    const region = known.get(/^<region:([\w.-]+)>$/.exec(part)?.[1]);
    if (!region) return part;
    return make(
      "span", { class: "vl-mention", style: `--ink: ${rgb(region.color)}`, title: region.shape },
      make("span", { class: "vl-dot" }), `${region.id} ${region.shape}`,
    );
  });
}

/** Show an image in the whole window until it is clicked or Escape is pressed. */
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
