/**
 * Push to talk: while the button, or the space bar on it, is held down, the microphone is sent to the avatar. Enter, and a click by
 * an assistive technology, toggle it.
 *
 * @module talk
 */

import { $, setText } from "./elements.js";
import { Microphone } from "./microphone.js";
import { t } from "./strings.js";

const TAP_MS = 250;

export class Talk {
  /**
   * @param {object} parts
   * @param {AudioContext} parts.context
   * @param {import("./audio-link.js").AudioLink} parts.link
   * @param {() => boolean} parts.isSpeaking whether the avatar speaks, which talking then interrupts
   * @param {(text: string) => void} parts.showStatus
   * @param {(message: string, code: string) => void} parts.showError
   */
  constructor({ context, link, isSpeaking, showStatus, showError }) {
    this.link = link;
    this.isSpeaking = isSpeaking;
    this.showStatus = showStatus;
    this.showError = showError;
    this.microphone = new Microphone(context);
    this.wanted = false;
    this.recording = false;
    this.pressedAt = 0;
    /** Resolves when the link has all of the last recording. */
    this.flushed = Promise.resolve();
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
    this.#showButton(t("talk.wait"));
    try {
      await Promise.all([this.microphone.open(), this.flushed]);
    } catch (error) {
      this.wanted = false;
      this.#showButton(t("talk.hold"));
      this.showError(/** @type {Error} */ (error).message, "microphone");
      return;
    }
    if (!this.wanted) {
      this.showStatus(t("talk.ready"));
      return;
    }
    this.link.open();
    if (this.isSpeaking()) this.link.clear();
    this.link.start();
    this.recording = true;
    this.microphone.begin();
    this.#showButton(t("talk.listening"));
  }

  release() {
    if (!this.wanted) return;
    this.wanted = false;
    if (this.recording) this.flushed = this.microphone.end().then(() => this.link.end());
    if (this.recording && performance.now() - this.pressedAt < TAP_MS) this.showStatus(t("talk.tap"));
    this.recording = false;
    this.#showButton(t("talk.hold"));
  }

  /** @param {Int16Array} pcm */
  #send(pcm) {
    if (this.link.push(pcm)) return;
    this.release();
    this.showError(t("talk.full"), "backlog_exceeded");
  }

  /** @param {string} text */
  #showButton(text) {
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
