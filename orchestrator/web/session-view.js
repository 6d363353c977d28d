/**
 * Shows one session of an `Avatar` on the page: state chip, level, captions, the conversation or the microphone button, and the panel's
 * values.
 *
 * The session's status is asked for after events. Only counters that change without events are sampled: WebRTC's statistics once a
 * second, and the pipeline's stages while the avatar speaks and the panel is open.
 *
 * @module session-view
 */

import { AudioMeter } from "./audio-meter.js";
import { ApiError } from "./avatar-client.js";
import { CaptionsView } from "./captions-view.js";
import { $, setText } from "./elements.js";
import { amount, skewText } from "./panel.js";
import { Say } from "./say.js";
import { t, tOr } from "./strings.js";
import { Talk } from "./talk.js";

const STATS_MS = 1000;
const LEVEL_MS = 60;
const STATUS_MIN_MS = 1000; // between two requests for the status, however many events come
const STATUS_SPEAKING_MS = 2000;
const STALLS_TOLERATED = 2;
/** Events after which the session's status has changed. */
const STATUS_EVENTS = /** @type {const} */ ([
  "state",
  "avatar.state",
  "playback.started",
  "playback.finished",
  "cleared",
  "publisher.changed",
  "warning",
  "connection",
  "link",
]);
const NOTED_STATES = new Set(["recovering", "draining", "failed"]);

export class SessionView {
  /**
   * @param {object} options
   * @param {import("./avatar.js").Avatar} options.avatar not yet started
   * @param {import("./panel.js").Panel} options.panel
   * @param {AudioContext} options.context
   * @param {boolean} options.talks the session has a conversation
   * @param {(text: string) => void} options.showStatus
   * @param {(message: string, code: string) => void} options.showError
   */
  constructor({ avatar, panel, context, talks, showStatus, showError }) {
    this.avatar = avatar;
    this.panel = panel;
    this.context = context;
    this.showStatus = showStatus;
    this.showError = showError;
    this.startedAt = performance.now();
    this.meter = new AudioMeter(context);
    this.captions = new CaptionsView(!talks);
    this.avatarState = "idle";
    this.connection = "connected";
    this.linkLost = false;
    this.publisher = "livekit";
    /** Readings in a row without a new frame: LiveKit notices a dead connection only after many seconds. */
    this.stalls = 0;
    /** Segments that are played now. @type {Set<number>} */
    this.playing = new Set();
    /** @type {import("./avatar-client.js").Session | null} */
    this.session = null;
    /** The newest answer of the orchestrator. @type {import("./avatar-client.js").SessionStatus | null} */
    this.status = null;
    this.statusAt = -Infinity;
    this.statusTimer = 0;
    /** An event came while the status was under way. */
    this.statusStale = false;
    /** @type {import("./statistics.js").MediaStats | null} */
    this.stats = null;
    /** @type {Say | null} */
    this.say = null;
    /** @type {Talk | null} */
    this.talk = null;
    this.opened = false;
    this.closed = false;
    /** Measured here, in ms. @type {Record<string, number | null>} */
    this.measured = { firstFrame: null, toAudio: null, toSilence: null };
    /** @type {number[]} */
    this.timers = [];
    this.listeners = new AbortController();
    this.#listen();
  }

  /** Stops what runs here; the avatar is the caller's to stop. Idempotent. */
  close() {
    this.closed = true;
    this.listeners.abort();
    clearTimeout(this.statusTimer);
    this.timers.forEach((timer) => clearInterval(timer));
    this.say?.close();
    this.talk?.close();
    this.meter.detach();
    this.captions.close();
  }

  /** @param {string} text @param {string} voice */
  async speak(text, voice) {
    const at = performance.now();
    if (!this.meter.loud) this.#measure("toAudio", at, this.meter.nextOnset());
    const { segment } = await this.avatar.speak(text, voice);
    this.panel.event(t("event.queued", { segment }));
  }

  async interrupt() {
    if (this.meter.loud) this.#measure("toSilence", performance.now(), this.meter.nextSilence());
    return this.avatar.interrupt();
  }

  /** @param {string} name @param {number} from @param {Promise<number>} moment */
  #measure(name, from, moment) {
    void moment.then((at) => {
      this.measured[name] = Math.max(0, at - from);
    });
  }

  #listen() {
    const { avatar, panel } = this;
    /** @template {keyof import("./avatar.js").AvatarEvents} Name @param {Name} name @param {(detail: import("./avatar.js").AvatarEvents[Name]) => void} listener */
    const on = (name, listener) => avatar.on(name, (detail) => this.closed || listener(detail));
    on("started", (session) => {
      this.session = session;
      panel.warnings(session.avatar?.warnings ?? []);
      this.#setAspect(session.width / session.height || 1);
    });
    on("state", ({ state, reason }) => {
      if (!this.opened && (avatar.link || avatar.conversation) && state !== "starting") this.#open();
      if (reason || NOTED_STATES.has(state)) panel.event(reason ? t("event.session_reason", { state, reason }) : t("event.session", { state }));
    });
    on("firstframe", (at) => {
      this.measured.firstFrame = at - this.startedAt;
      this.#setAspect($("video").videoWidth / $("video").videoHeight);
    });
    on("audiotrack", (track) => this.meter.attach(track));
    on("audioblocked", (blocked) => ($("unblock").hidden = !blocked));
    on("caption", (caption) => this.captions.show(caption));
    on("conversation.state", () => this.#showChip());
    on("avatar.state", (state) => {
      this.avatarState = state ?? "idle";
      this.#showChip();
    });
    on("connection", (connection) => {
      this.connection = connection;
      this.#showChip();
    });
    on("link", (state) => this.#linkChanged(state));
    on("publisher.changed", ({ publisher, reason }) => {
      this.publisher = publisher;
      panel.event(t(publisher === "none" ? "event.publisher_none" : "event.publisher", { publisher, reason }));
      this.#showChip();
    });
    on("playback.started", ({ segment }) => {
      this.playing.add(segment);
      panel.event(t("event.started", { segment }));
    });
    on("playback.finished", ({ segment, position_s, interrupted }) => {
      this.playing.delete(segment);
      panel.event(t(interrupted ? "event.interrupted" : "event.finished", { segment, seconds: position_s.toFixed(2) }));
    });
    on("cleared", ({ dropped_s }) => panel.event(dropped_s === undefined ? t("event.cleared") : t("event.cleared_rest", { seconds: dropped_s.toFixed(2) })));
    on("warning", ({ code, message }) => panel.event(`${message} (${code})`));
    for (const name of STATUS_EVENTS) on(name, () => this.#requestStatus());
    const { signal } = this.listeners;
    $("panel").addEventListener("toggle", () => this.#requestStatus(), { signal });
    document.addEventListener("visibilitychange", () => this.#requestStatus(), { signal });
  }

  /** The avatar has joined. */
  #open() {
    const { avatar, context, showStatus, showError } = this;
    this.opened = true;
    if (avatar.conversation) this.talk = new Talk({ avatar, context, showError });
    else if (avatar.link) this.say = new Say({ context, link: avatar.link, isSpeaking: () => this.#isSpeaking(), showStatus, showError });
    this.timers.push(setInterval(() => this.#showLevel(), LEVEL_MS), setInterval(() => void this.#readStats(), STATS_MS));
    this.#requestStatus();
  }

  /** @param {"connecting" | "open" | "reconnecting" | "closed"} state */
  #linkChanged(state) {
    if (state === "reconnecting") this.panel.event(t("event.link_lost"));
    else if (state === "open" && this.linkLost) this.panel.event(t("event.link_back"));
    this.linkLost = state === "reconnecting";
    this.#showChip();
  }

  /** Also while the engine is too slow, when the avatar's state is `degraded`. */
  #isSpeaking() {
    return this.avatar.state === "speaking" || this.playing.size > 0;
  }

  /** @param {number} ratio of the video: width over height */
  #setAspect(ratio) {
    document.documentElement.style.setProperty("--ratio", String(ratio));
  }

  #showChip() {
    const lost = this.connection === "reconnecting" || this.linkLost || this.avatarState === "reconnecting" || this.stalls >= STALLS_TOLERATED;
    const shown = this.avatarState === "idle" ? (this.avatar.conversation?.state ?? "idle") : this.avatarState;
    const state = lost ? (this.publisher === "rtmp" ? "elsewhere" : "reconnecting") : shown;
    $("chip").dataset.state = state;
    setText($("chip-text"), tOr(`chip.${state}`, state));
  }

  #showLevel() {
    $("level").style.transform = `scaleX(${this.meter.level.toFixed(2)})`;
    this.talk?.showLevel();
  }

  async #readStats() {
    if (document.hidden || this.closed) return;
    const stats = await this.avatar.stats();
    this.stats = stats;
    this.stalls = stats.stalled ? this.stalls + 1 : 0;
    this.#showChip();
    this.#showTiming(stats);
    this.#showSession();
  }

  /** @param {import("./statistics.js").MediaStats} stats */
  #showTiming(stats) {
    this.panel.skew(stats.skewMs);
    const { firstFrame, toAudio, toSilence } = this.measured;
    this.panel.timing({
      [t("timing.first_frame")]: firstFrame === null ? null : amount(firstFrame / 1000, "s", 2),
      [t("timing.to_audio")]: amount(toAudio, "ms"),
      [t("timing.to_silence")]: amount(toSilence, "ms"),
      [t("timing.skew")]: skewText(stats.skewMs),
      [t("timing.audio_buffer")]: amount(stats.audioBufferMs, "ms"),
      [t("timing.video_buffer")]: amount(stats.videoBufferMs, "ms"),
      [t("timing.round_trip")]: amount(stats.rttMs, "ms"),
      [t("timing.fps")]: amount(stats.fps, "fps"),
      [t("timing.loss")]: amount(stats.lossPercent, "%", 1),
    });
  }

  /** Asks for the status soon, once for all events of a second; not in a hidden tab or for a closed panel. */
  #requestStatus(afterMs = 0) {
    this.statusStale = true;
    if (this.closed || this.statusTimer || !this.session || document.hidden || !$("panel").open) return;
    const wait = Math.max(afterMs, this.statusAt + STATUS_MIN_MS - performance.now(), 0);
    this.statusTimer = setTimeout(() => void this.#readStatus(), wait);
  }

  async #readStatus() {
    const { avatar, session } = this;
    this.statusAt = performance.now();
    this.statusStale = false;
    try {
      const status = await avatar.client?.session(session?.session_id ?? "", { once: true });
      if (status && !this.closed) this.#showStatus(status);
    } catch (error) {
      if (!this.closed && error instanceof ApiError) this.panel.diagnose({ code: error.code, message: error.message });
    }
    this.statusTimer = 0;
    if (this.statusStale) this.#requestStatus();
    else if (this.#isSpeaking()) this.#requestStatus(STATUS_SPEAKING_MS);
  }

  /** @param {import("./avatar-client.js").SessionStatus} status */
  #showStatus(status) {
    this.status = status;
    const quiet = this.talk !== null && status.diagnosis.code === "no_audio";
    this.panel.diagnose(quiet ? { code: "no_audio", message: t("talk.quiet") } : status.diagnosis, quiet);
    if (status.funnel?.length) this.panel.funnel(status.funnel);
    this.#showSession();
  }

  #showSession() {
    const { status, stats, session } = this;
    if (!status) return;
    this.panel.session({
      [t("facts.state")]: this.avatar.state,
      [t("facts.avatar")]: this.avatarState,
      [t("facts.publisher")]: status.publisher,
      [t("facts.quality")]: qualityText(status.transport),
      [t("facts.engine")]: status.engine,
      [t("facts.video")]: stats?.width ? `${stats.width} × ${stats.height}` : null,
      [t("facts.bit_rate")]: amount(stats?.kbps, "kbit/s"),
      [t("facts.codec")]: stats?.codec,
      [t("facts.buffered")]: amount(status.playback?.buffered_s, "s", 1),
      [t("facts.viewers")]: status.viewers,
      [t("facts.room")]: session?.room,
      [t("facts.session_id")]: session?.session_id,
    });
  }
}

/** @param {import("./avatar-client.js").Transport | undefined} transport @returns {string | null} the adaptation as text */
function qualityText(transport) {
  if (!transport) return null;
  if (!transport.adaptation) return t("quality.full");
  const size = transport.width ? `, ${transport.width} × ${transport.height}` : "";
  const rate = transport.fps ? `, ${transport.fps} fps` : "";
  return `${t("quality.step", { step: transport.adaptation })}${size}${rate}`;
}
