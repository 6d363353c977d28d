/**
 * The user's own voice for the avatar: while the button is held down, the microphone is sent to it, and it repeats what was said.
 *
 * @module say
 */

import { $, setText } from "./elements.js";
import { holdButton } from "./hold-button.js";
import { Microphone } from "./microphone.js";
import { explained, t } from "./strings.js";

const TAP_MS = 250;

export class Say {
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
    const actions = { press: () => void this.press(), release: () => this.release(), isPressed: () => this.wanted };
    holdButton($("hold"), actions, this.listeners.signal);
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
    this.#showButton(t("say.wait"));
    try {
      await Promise.all([this.microphone.open(), this.flushed]);
    } catch (error) {
      this.wanted = false;
      this.#showButton(t("say.hold"));
      const { code, message } = /** @type {import("./avatar-client.js").ApiError} */ (error);
      this.showError(explained(code, message), code);
      return;
    }
    if (!this.wanted) {
      this.showStatus(t("say.ready"));
      return;
    }
    this.link.open();
    if (this.isSpeaking()) this.link.clear();
    this.link.start();
    this.recording = true;
    this.microphone.begin();
    this.#showButton(t("say.listening"));
  }

  release() {
    if (!this.wanted) return;
    this.wanted = false;
    if (this.recording) this.flushed = this.microphone.end().then(() => this.link.end());
    if (this.recording && performance.now() - this.pressedAt < TAP_MS) this.showStatus(t("say.tap"));
    this.recording = false;
    this.#showButton(t("say.hold"));
  }

  /** @param {Int16Array} pcm */
  #send(pcm) {
    if (this.link.push(pcm)) return;
    this.release();
    this.showError(t("say.full"), "backlog_exceeded");
  }

  /** @param {string} text */
  #showButton(text) {
    $("hold").setAttribute("aria-pressed", String(this.wanted));
    setText($("hold-text"), text);
  }
}
