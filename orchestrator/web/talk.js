/**
 * Hold to talk: while the button, or the space bar on it, is held down the microphone goes to the avatar. Enter, and a click
 * by an assistive technology, switch it on and off.
 *
 * @module talk
 */

import { $, setText } from "./elements.js";
import { Microphone } from "./microphone.js";

const TAP_MS = 250;
const FULL = "The connection is too slow for your voice: some of it was dropped.";

export class Talk {
  /**
   * @param {object} parts
   * @param {AudioContext} parts.context
   * @param {import("./audio-link.js").AudioLink} parts.link
   * @param {() => boolean} parts.speaking whether the avatar speaks: talking then interrupts it
   * @param {(text: string) => void} parts.tell
   * @param {(message: string, code: string) => void} parts.fail
   */
  constructor({ context, link, speaking, tell, fail }) {
    this.link = link;
    this.speaking = speaking;
    this.tell = tell;
    this.fail = fail;
    this.microphone = new Microphone(context);
    this.wanted = false;
    this.recording = false;
    this.pressedAt = 0;
    /** Settled when the last recording was handed to the link as a whole. */
    this.handedOver = Promise.resolve();
    this.listeners = new AbortController();
    this.microphone.addEventListener("pcm", (event) => this.#send(/** @type {CustomEvent<Int16Array>} */ (event).detail));
    this.#listen();
  }

  close() {
    this.listeners.abort();
    this.release();
    this.microphone.close();
  }

  async press() {
    if (this.wanted) return;
    this.wanted = true;
    this.pressedAt = performance.now();
    this.#show("Wait …");
    try {
      await Promise.all([this.microphone.open(), this.handedOver]);
    } catch (error) {
      this.wanted = false;
      this.#show("Hold to talk");
      this.fail(/** @type {Error} */ (error).message, "microphone");
      return;
    }
    if (!this.wanted) {
      this.tell("The microphone is ready. Hold the button while you speak.");
      return;
    }
    this.link.open();
    if (this.speaking()) this.link.clear();
    this.link.start();
    this.recording = true;
    this.microphone.begin();
    this.#show("Listening …");
  }

  release() {
    if (!this.wanted) return;
    this.wanted = false;
    if (this.recording) this.handedOver = this.microphone.end().then(() => this.link.end());
    if (this.recording && performance.now() - this.pressedAt < TAP_MS) this.tell("Hold the button while you speak.");
    this.recording = false;
    this.#show("Hold to talk");
  }

  /** @param {Int16Array} pcm */
  #send(pcm) {
    if (this.link.push(pcm)) return;
    this.release();
    this.fail(FULL, "backlog_exceeded");
  }

  /** @param {string} text */
  #show(text) {
    $("talk").setAttribute("aria-pressed", String(this.wanted));
    setText($("talk-text"), text);
  }

  #listen() {
    const button = $("talk");
    const { signal } = this.listeners;
    /** @param {string} type @param {(event: any) => void} handler */
    const on = (type, handler) => button.addEventListener(type, handler, { signal });
    on("pointerdown", (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      void this.press();
    });
    for (const type of ["pointerup", "pointercancel", "blur"]) on(type, () => this.release());
    on("contextmenu", (event) => event.preventDefault());
    on("keydown", (event) => {
      if (event.key !== " " && event.key !== "Enter") return;
      event.preventDefault();
      if (event.repeat) return;
      if (event.key === " ") void this.press();
      else this.#toggle();
    });
    on("keyup", (event) => {
      if (event.key !== " ") return;
      event.preventDefault();
      this.release();
    });
    on("click", (event) => event.detail === 0 && this.#toggle());
  }

  #toggle() {
    if (this.wanted) this.release();
    else void this.press();
  }
}
