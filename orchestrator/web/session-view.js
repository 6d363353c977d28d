/**
 * One session on the page, from its start to its end: room, audio link, microphone, and the figures of the panel.
 *
 * @module session-view
 */

import { ApiError, AudioLink } from "./avatar-client.js";
import { $, setText } from "./elements.js";
import { amount, skewText } from "./panel.js";
import { SoundMeter } from "./sound-meter.js";
import { Talk } from "./talk.js";
import { Viewer } from "./viewer.js";

const POLL_MS = 1000;
const LEVEL_MS = 60;
const STALLS_TOLERATED = 2;
const OVER = new Set(["stopped", "failed"]);
const GONE = new Set(["session_not_found", "session_ended"]);
/** Words of the chip, by the avatar's own state. @type {Record<string, string>} */
const STATES = { idle: "Idle", speaking: "Speaking", degraded: "Degraded", reconnecting: "Reconnecting", elsewhere: "Sent by RTMP" };

/** Events: `ended` (detail: a sentence), `picture`. */
export class SessionView extends EventTarget {
  /**
   * @param {object} parts
   * @param {import("./avatar-client.js").AvatarClient} parts.client
   * @param {import("./panel.js").Panel} parts.panel
   * @param {AudioContext} parts.context
   * @param {(text: string) => void} parts.tell
   * @param {(message: string, code: string) => void} parts.fail
   */
  constructor({ client, panel, context, tell, fail }) {
    super();
    this.client = client;
    this.panel = panel;
    this.tell = tell;
    this.fail = fail;
    this.context = context;
    this.startedAt = performance.now();
    this.viewer = new Viewer({ video: $("video"), audio: $("audio"), voice: $("voice-sound") });
    this.meter = new SoundMeter(context);
    this.state = "idle";
    this.connection = "connected";
    this.linkLost = false;
    this.polling = false;
    this.publisher = "livekit";
    /** Readings in a row in which no frame came: LiveKit notices a dead line only after many seconds. */
    this.stalls = 0;
    /** @type {import("./avatar-client.js").Session | null} */
    this.session = null;
    /** @type {AudioLink | null} */
    this.link = null;
    /** @type {Talk | null} */
    this.talk = null;
    this.over = false;
    /** @type {Record<string, number | null>} measured here, in ms */
    this.measured = { firstPicture: null, toSound: null, toSilence: null };
    this.timers = /** @type {number[]} */ ([]);
    this.#listen();
  }

  /** @param {import("./avatar-client.js").Session} session */
  async open(session) {
    this.session = session;
    this.panel.warnings(session.avatar?.warnings ?? []);
    this.#room(session.width / session.height || 1);
    await this.viewer.join(session);
    if (this.over) return;
    this.link = new AudioLink(session.audio_url, { lives: () => this.#lives() });
    this.#listenToLink(this.link);
    this.link.open();
    this.talk = new Talk({
      context: this.context,
      link: this.link,
      speaking: () => this.state === "speaking",
      tell: this.tell,
      fail: this.fail,
    });
    this.timers.push(setInterval(() => this.#level(), LEVEL_MS), setInterval(() => void this.#poll(), POLL_MS));
    void this.#poll();
  }

  /** Leaves the room and lets everything go; the session itself is stopped by its owner. Idempotent. */
  async close() {
    this.over = true;
    this.timers.forEach((timer) => clearInterval(timer));
    this.talk?.close();
    this.link?.close();
    this.meter.detach();
    await this.viewer.leave();
  }

  /** @param {string} text @param {string} voice */
  async speak(text, voice) {
    const at = performance.now();
    if (!this.meter.loud) this.#measure("toSound", at, this.meter.nextSound());
    const { segment } = await this.client.speak(this.#id, text, voice);
    this.panel.event(`Segment ${segment} queued`);
  }

  async interrupt() {
    if (this.meter.loud) this.#measure("toSilence", performance.now(), this.meter.nextSilence());
    const { dropped_s } = await this.client.interrupt(this.#id);
    return dropped_s;
  }

  get #id() {
    if (!this.session) throw new ApiError("No session runs.", { code: "session_not_found" });
    return this.session.session_id;
  }

  /** @param {string} name @param {number} from @param {Promise<number>} moment */
  #measure(name, from, moment) {
    void moment.then((at) => {
      this.measured[name] = Math.max(0, at - from);
    });
  }

  #listen() {
    /** @param {string} type @param {(detail: any) => void} handler */
    const on = (type, handler) => this.viewer.addEventListener(type, (event) => handler(/** @type {CustomEvent} */ (event).detail));
    on("voice", (track) => this.meter.attach(track));
    on("blocked", (blocked) => ($("unblock").hidden = !blocked));
    on("connection", (connection) => {
      this.connection = connection;
      this.#chip();
    });
    on("avatar", (state) => {
      this.state = state ?? "idle";
      this.#chip();
    });
    on("picture", (at) => {
      this.measured.firstPicture = at - this.startedAt;
      this.#room($("video").videoWidth / $("video").videoHeight);
      this.dispatchEvent(new Event("picture"));
    });
    on("ended", (sentence) => this.#end(sentence));
  }

  /** Whether the session is still there, null when nothing tells. */
  async #lives() {
    try {
      return !OVER.has((await this.client.session(this.#id, { once: true })).state);
    } catch (error) {
      if (GONE.has(/** @type {ApiError} */ (error).code)) return false;
      return this.viewer.present || null;
    }
  }

  /** @param {string} state of the audio link */
  #linkIs(state) {
    if (this.over) return;
    if (state === "reconnecting") this.panel.event("Connection to the orchestrator lost: trying again");
    else if (state === "open" && this.linkLost) this.panel.event("Connection to the orchestrator is back");
    this.linkLost = state === "reconnecting";
    this.#chip();
  }

  /** @param {AudioLink} link */
  #listenToLink(link) {
    /** @param {string} type @param {(detail: any) => void} handler */
    const on = (type, handler) => link.addEventListener(type, (event) => handler(/** @type {CustomEvent} */ (event).detail));
    on("playback.started", ({ segment }) => this.panel.event(`Segment ${segment} began`));
    on("playback.finished", ({ segment, position_s, interrupted }) =>
      this.panel.event(`Segment ${segment} ${interrupted ? "interrupted" : "finished"} after ${position_s.toFixed(2)} s`),
    );
    on("cleared", ({ dropped_s }) => this.panel.event(`Cleared${dropped_s === undefined ? "" : `, ${dropped_s.toFixed(2)} s dropped`}`));
    on("publisher.changed", ({ publisher, reason }) => {
      this.publisher = publisher;
      this.panel.event(`${publisher === "none" ? "Sent by nothing now" : `Sent by ${publisher}`}: ${reason}`);
      this.#chip();
    });
    on("session.state", ({ state, reason }) => this.panel.event(reason ? `Session ${state}: ${reason}` : `Session ${state}`));
    on("warning", ({ code, message }) => this.panel.event(`${message} (${code})`));
    on("error", ({ code, message }) => {
      if (GONE.has(code)) this.#end("The session has ended.");
      else this.fail(message, code);
    });
    on("state", (state) => this.#linkIs(state));
  }

  /** @param {number} ratio of the picture: width over height */
  #room(ratio) {
    document.documentElement.style.setProperty("--ratio", String(ratio));
  }

  #chip() {
    const lost = this.connection === "reconnecting" || this.linkLost || this.state === "reconnecting" || this.stalls >= STALLS_TOLERATED;
    const state = lost ? (this.publisher === "rtmp" ? "elsewhere" : "reconnecting") : this.state;
    $("chip").dataset.state = state;
    setText($("chip-text"), STATES[state] ?? state);
  }

  #level() {
    $("level").style.transform = `scaleX(${this.meter.level.toFixed(2)})`;
  }

  async #poll() {
    if (document.hidden || this.over || this.polling) return; // one at a time, also when answers take longer than a second
    this.polling = true;
    try {
      const figures = await this.viewer.figures();
      this.stalls = figures.stalled ? this.stalls + 1 : 0;
      this.#chip();
      this.#timing(figures);
      if ($("panel").open || this.state === "reconnecting") await this.#status(figures); // whether it comes back, the orchestrator knows
    } finally {
      this.polling = false;
    }
  }

  /** @param {import("./statistics.js").Figures} figures */
  #timing(figures) {
    this.panel.skew(figures.skewMs);
    const { firstPicture, toSound, toSilence } = this.measured;
    this.panel.timing({
      "First picture after": firstPicture === null ? null : amount(firstPicture / 1000, "s", 2),
      "Speak to sound": amount(toSound, "ms"),
      "Interrupt to silence": amount(toSilence, "ms"),
      "Sound vs picture": skewText(figures.skewMs),
      "Sound buffered": amount(figures.audioBufferMs, "ms"),
      "Picture buffered": amount(figures.videoBufferMs, "ms"),
      "Round trip": amount(figures.rttMs, "ms"),
      "Frame rate": amount(figures.fps, "fps"),
      "Sound lost": amount(figures.lossPercent, "%", 1),
    });
  }

  /** @param {import("./statistics.js").Figures} figures */
  async #status(figures) {
    const status = await this.#ask(() => this.client.session(this.#id, { once: true }));
    if (!status) return;
    if (OVER.has(status.state)) this.#end(status.error?.detail ?? status.error?.message ?? "The session has ended.");
    const size = figures.width ? `${figures.width} × ${figures.height}` : null;
    this.panel.diagnose(status.diagnosis);
    if (status.funnel?.length) this.panel.funnel(status.funnel);
    this.panel.session({
      State: status.state,
      Avatar: this.state,
      Publisher: status.publisher,
      Quality: qualityText(status.transport),
      Engine: status.engine,
      Picture: size,
      "Bit rate": amount(figures.kbps, "kbit/s"),
      Codec: figures.codec,
      "Still to say": amount(status.playback?.buffered_s, "s", 1),
      Viewers: status.viewers,
      Room: this.session?.room,
      "Session id": this.session?.session_id,
    });
  }

  /**
   * A report that fails is told in the panel; the session goes on without it, unless it is gone.
   * @template T
   * @param {() => Promise<T>} call
   * @returns {Promise<T | null>}
   */
  async #ask(call) {
    try {
      return await call();
    } catch (error) {
      if (this.over || !(error instanceof ApiError)) return null;
      if (GONE.has(error.code)) this.#end("The session has ended.");
      else this.panel.diagnose({ code: error.code, message: error.message });
      return null;
    }
  }

  /** @param {string} sentence */
  #end(sentence) {
    if (this.over) return;
    this.over = true;
    this.dispatchEvent(new CustomEvent("ended", { detail: sentence }));
  }
}

/** @param {import("./avatar-client.js").Transport | undefined} transport @returns {string | null} the step of the adaptation, in words */
function qualityText(transport) {
  if (!transport) return null;
  if (!transport.adaptation) return "full";
  const size = transport.width ? `, ${transport.width} × ${transport.height}` : "";
  const rate = transport.fps ? `, ${transport.fps} fps` : "";
  return `step ${transport.adaptation} down${size}${rate}`;
}
