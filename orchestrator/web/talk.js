/**
 * The conversation on the page: both sides' words, what it waits for, the microphone, and the field for texts.
 *
 * Lines that still grow stand outside of the log, so that a screen reader announces whole lines only.
 *
 * @module talk
 */

import { AudioMeter } from "./audio-meter.js";
import { storeChoice, storedChoice } from "./choices.js";
import { $, make, setText } from "./elements.js";
import { holdButton } from "./hold-button.js";
import { explained, t } from "./strings.js";

const STORED = "avatar.push-to-talk";
/** The microphone stays open a little after the button: people release it within the last syllable. */
const TAIL_MS = 200;
/** Pauses between words are no silence. */
const PAUSE_MS = 900;
const LINES = 200;
const PROVIDER = "conversation_provider";

/** @typedef {import("./conversation.js").Message} Message */

export class Talk {
  /** Lines by the message's id. @type {Map<string, HTMLElement>} */
  #lines = new Map();
  #listeners = new AbortController();
  #muted = false;
  #held = false;
  #tail = 0;
  #heardAt = -Infinity;
  #missing = false;
  /** The newest line is in view, and stays so. */
  #atEnd = true;

  /**
   * @param {object} parts
   * @param {import("./avatar.js").Avatar} parts.avatar joined, with a conversation
   * @param {AudioContext} parts.context
   * @param {(message: string, code: string) => void} parts.showError
   */
  constructor({ avatar, context, showError }) {
    this.avatar = avatar;
    this.showError = showError;
    this.meter = new AudioMeter(context);
    this.pushToTalk = storedChoice(STORED) === "on";
    $("push-to-talk").checked = this.pushToTalk;
    $("messages").replaceChildren();
    $("growing").replaceChildren();
    $("talk-embedded").hidden = avatar.session?.conversation?.llm !== "embedded";
    $("talk-empty").hidden = false;
    $("conversation").hidden = false;
    this.#listen();
    this.#apply();
    for (const message of avatar.conversation?.messages ?? []) this.#show(message);
    this.#microphoneChanged();
    this.#showState();
  }

  close() {
    this.#listeners.abort();
    clearTimeout(this.#tail);
    this.meter.detach();
    $("conversation").hidden = true;
  }

  /** Asks for the microphone. Without it the conversation goes on in writing, so an error is shown and nothing else happens. */
  async openMicrophone() {
    this.#muted = false;
    this.#apply();
    try {
      await this.avatar.microphone.open();
    } catch (error) {
      const { code, message } = /** @type {import("./avatar-client.js").ApiError} */ (error);
      if (code !== "cancelled") this.showError(explained(code, message), code);
    }
  }

  /** The button is released without its own event, such as when the tab is hidden. */
  release() {
    if (!this.#held) return;
    this.#held = false;
    clearTimeout(this.#tail);
    this.#tail = setTimeout(() => this.#apply(), TAIL_MS);
    this.#microphoneChanged();
  }

  /** Called some times a second. */
  showLevel() {
    const now = performance.now();
    if (this.meter.loud) this.#heardAt = now;
    $("mic-level").style.transform = `scaleX(${this.meter.level.toFixed(2)})`;
    const hears = now - this.#heardAt < PAUSE_MS;
    if (hears !== !$("hearing").hidden) $("hearing").hidden = !hears;
  }

  #press() {
    if (this.#held) return;
    clearTimeout(this.#tail);
    this.#held = true;
    this.#apply();
    this.#microphoneChanged();
  }

  #apply() {
    this.avatar.microphone.muted = this.pushToTalk ? !this.#held : this.#muted;
  }

  #listen() {
    const { signal } = this.#listeners;
    /** @template {keyof import("./avatar.js").AvatarEvents} Name @param {Name} name @param {(detail: import("./avatar.js").AvatarEvents[Name]) => void} listener */
    const on = (name, listener) => this.avatar.on(name, (detail) => signal.aborted || listener(detail));
    on("message", (message) => this.#show(message));
    on("conversation.state", (state) => {
      if (state === "speaking") this.#missing = false;
      this.#showState();
    });
    on("microphone", () => this.#microphoneChanged());
    on("warning", ({ code }) => {
      if (code !== PROVIDER) return; // the panel has the details
      this.#missing = true;
      this.#showState();
    });
    const box = $("messages-box");
    box.addEventListener("scroll", () => (this.#atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40), { signal });
    const sizes = new ResizeObserver(() => this.#keepEnd());
    sizes.observe(box);
    signal.addEventListener("abort", () => sizes.disconnect());
    $("mic").addEventListener("click", () => this.#toggle(), { signal });
    $("push-to-talk").addEventListener("change", () => this.#choose($("push-to-talk").checked), { signal });
    const actions = { press: () => this.#press(), release: () => this.release(), isPressed: () => this.#held };
    holdButton($("push"), actions, signal);
    document.addEventListener("keydown", (event) => this.#key(event, () => event.repeat || this.#press()), { signal });
    document.addEventListener("keyup", (event) => this.#key(event, () => this.release()), { signal });
  }

  /** The space bar, where it has no other meaning. @param {KeyboardEvent} event @param {() => void} act */
  #key(event, act) {
    if (event.key !== " " || event.target !== document.body || !this.pushToTalk || !this.avatar.microphone.track) return;
    event.preventDefault();
    act();
  }

  #toggle() {
    if (this.avatar.microphone.state === "off") {
      void this.openMicrophone();
      return;
    }
    this.#muted = !this.#muted;
    this.#apply();
  }

  /** @param {boolean} pushToTalk */
  #choose(pushToTalk) {
    this.pushToTalk = pushToTalk;
    storeChoice(STORED, pushToTalk ? "on" : "off");
    this.#muted = false;
    this.#apply();
    this.#microphoneChanged();
  }

  #microphoneChanged() {
    const { state, track } = this.avatar.microphone;
    if (track) this.#measure(track);
    else this.meter.detach();
    const holds = this.pushToTalk && track !== null;
    const focused = document.activeElement === $("mic") || document.activeElement === $("push");
    $("push").hidden = !holds;
    $("mic").hidden = holds;
    if (focused) $(holds ? "push" : "mic").focus();
    setText($("push-text"), t(this.#held ? "talk.held" : "talk.push"));
    $("push").setAttribute("aria-pressed", String(this.#held));
    setText($("mic-text"), t(state === "off" ? "talk.open" : state === "muted" ? "talk.unmute" : "talk.mute"));
    $("mic").dataset.state = state;
    this.#showState();
  }

  /** @param {MediaStreamTrack} track */
  #measure(track) {
    if (this.meter.track !== track) this.meter.attach(track);
  }

  #showState() {
    const state = this.avatar.conversation?.state ?? "starting";
    const shown = this.#missing && state !== "away" ? "missing" : state;
    $("conversation").dataset.state = shown;
    setText($("talk-state"), this.#stateText(shown));
  }

  /** @param {import("./conversation.js").ConversationState | "missing"} state */
  #stateText(state) {
    if (state === "starting") return t("talk.starting");
    if (state === "away") return t("talk.away");
    if (state === "missing") return t("talk.missing");
    if (state === "thinking") return t("talk.thinking");
    if (state === "speaking") return t("talk.speaking");
    const microphone = this.avatar.microphone.state;
    if (microphone === "off") return t("talk.written");
    if (microphone === "muted") return t(this.pushToTalk ? "talk.waits" : "talk.muted");
    return t("talk.listening");
  }

  /** @param {Message} message */
  #show(message) {
    const line = this.#lines.get(message.id) ?? this.#makeLine(message);
    setText(/** @type {Element} */ (line.querySelector(".words")), message.text);
    /** @type {HTMLElement} */ (line.querySelector(".mark")).hidden = !message.interrupted;
    if (message.final && line.parentElement !== $("messages")) $("messages").insertBefore(line, this.#lineAfter(message));
    $("talk-empty").hidden = true;
    this.#keepEnd();
  }

  #keepEnd() {
    if (this.#atEnd) $("messages-box").scrollTop = $("messages-box").scrollHeight;
  }

  /** @param {Message} message */
  #makeLine({ id, role }) {
    const line = make("p", "", `line ${role}`);
    const mark = make("em", t("talk.interrupted"), "mark");
    line.append(make("b", t(role === "user" ? "talk.you" : "talk.avatar"), "who"), " ", make("span", "", "words"), " ", mark);
    this.#lines.set(id, line);
    $("growing").append(line);
    if (this.#lines.size > LINES) {
      const [[oldest, first]] = this.#lines;
      first.remove();
      this.#lines.delete(oldest);
    }
    return line;
  }

  /** The line before which this message's line stands in the log. @param {Message} message */
  #lineAfter({ id }) {
    const { messages } = /** @type {import("./conversation.js").Conversation} */ (this.avatar.conversation);
    const later = messages.slice(messages.findIndex((message) => message.id === id) + 1);
    const lines = later.map((message) => this.#lines.get(message.id));
    return lines.find((line) => line?.parentElement === $("messages")) ?? null;
  }
}
