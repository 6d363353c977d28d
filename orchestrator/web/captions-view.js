/**
 * Captions on the video, and a log of them for screen readers. A screen reader announces whole sentences from the log; words that
 * come one by one would interrupt it.
 *
 * @module captions-view
 */

import { storeChoice, storedChoice } from "./choices.js";
import { $, make } from "./elements.js";

const SHOWN_CHARACTERS = 180; // more than two lines of the widest stage
const SHOWN_AFTER_MS = 3000;
const LOGGED = 20;
const STORED = "avatar.captions";
const SENTENCE_END = /[.!?…。！？]["'”’)\]]*\s/g;

export class CaptionsView {
  /** @param {boolean} announces screen readers get the captions; where a conversation is shown it announces its lines itself */
  constructor(announces) {
    this.announces = announces;
    this.line = "";
    /** Characters of the line that are in the log. */
    this.logged = 0;
    this.hideTimer = 0;
    this.listeners = new AbortController();
    this.on = storedChoice(STORED) !== "off";
    $("captions-log").replaceChildren();
    $("captions-toggle").addEventListener("click", () => this.#setOn(!this.on), { signal: this.listeners.signal });
    this.#showToggle();
    this.#hide();
  }

  close() {
    this.listeners.abort();
    this.#hide();
  }

  /** @param {import("./captions.js").Caption} caption */
  show({ id, text, final }) {
    if (id !== this.line) this.logged = 0;
    this.line = id;
    clearTimeout(this.hideTimer);
    if (this.on && text.trim()) {
      $("captions-text").textContent = tail(text);
      $("captions").hidden = false;
      if (this.announces) this.#log(text, final);
    }
    if (final) this.hideTimer = setTimeout(() => this.#hide(), SHOWN_AFTER_MS);
  }

  /** @param {string} text @param {boolean} final */
  #log(text, final) {
    const end = final ? text.length : [...text.matchAll(SENTENCE_END)].reduce((_, match) => match.index + match[0].length, 0);
    const sentence = text.slice(this.logged, end).trim();
    if (end <= this.logged) return;
    this.logged = end;
    const log = $("captions-log");
    if (sentence) log.append(make("p", sentence));
    while (log.children.length > LOGGED) log.firstElementChild.remove();
  }

  /** @param {boolean} on */
  #setOn(on) {
    this.on = on;
    storeChoice(STORED, on ? "on" : "off");
    this.#showToggle();
    if (!on) this.#hide();
  }

  #showToggle() {
    $("captions-toggle").setAttribute("aria-pressed", String(this.on));
  }

  #hide() {
    clearTimeout(this.hideTimer);
    $("captions").hidden = true;
    $("captions-text").textContent = "";
  }
}

/** The end of a long line, from the beginning of a word. @param {string} text */
function tail(text) {
  if (text.length <= SHOWN_CHARACTERS) return text;
  const rest = text.slice(-SHOWN_CHARACTERS);
  return `… ${rest.slice(rest.indexOf(" ") + 1)}`;
}
