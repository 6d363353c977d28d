/**
 * The whole client in one import: starts a session, shows its avatar in a `<video>`, makes it speak, and tells what becomes of
 * it. No framework, no build step, no other machine than the orchestrator and LiveKit.
 *
 *     import { Avatar } from "https://avatars.example/avatar.js";
 *     const avatar = new Avatar({ video: document.querySelector("video"), token: apiKey });
 *     await avatar.start({ room: "demo", avatar_id: "demo" });   // inside a click, so that the browser lets it sound
 *     await avatar.speak("Hello there.");
 *
 * A page of strangers gets no API key: let your server call `POST /session/start`, hand its answer to the page, and `join` it.
 *
 * @module avatar
 */

import { ApiError, AudioLink, AvatarClient } from "./avatar-client.js";
import { Viewer } from "./viewer.js";

export { ApiError, AudioLink, AvatarClient, Viewer };

/**
 * @typedef {"new" | "starting" | "ready" | "speaking" | "recovering" | "draining" | "stopped" | "failed"} AvatarState
 *     `recovering`: the session lost its agent and moves to another one; what was said to it is kept
 *
 * @typedef {object} Joining What it takes to join a session: the answer of `POST /session/start`, or a part of it.
 * @property {string} session_id
 * @property {string} livekit_url
 * @property {string} viewer_token
 * @property {string} avatar_identity
 * @property {string} [audio_url] left out by those who only watch: a session has one sender, and a newer one takes its place
 *
 * @typedef {{
 *   "state": {state: AvatarState, reason?: string},
 *   "picture": number,
 *   "blocked": boolean,
 *   "connection": "connected" | "reconnecting",
 *   "link": "connecting" | "open" | "reconnecting" | "closed",
 *   "publisher.changed": {publisher: "livekit" | "whip" | "rtmp" | "none", reason: string},
 *   "playback.started": {segment: number},
 *   "playback.finished": {segment: number, position_s: number, interrupted: boolean},
 *   "cleared": {dropped_s: number},
 *   "warning": {code: string, message: string, suspicion?: string},
 *   "error": {code: string, message: string},
 * }} AvatarEvents Events and their `detail`. `picture`: the first frame is shown, at this `performance.now()`. `blocked`: whether the
 *     browser holds the sound back; call `allowSound` in a click. `connection` is the room's, `link` that of our own sound and of events. Those of the wire are as `docs/protocol.md` has them.
 */

const OF_THE_LINK = /** @type {const} */ (["publisher.changed", "playback.started", "playback.finished", "cleared", "warning", "error"]);
const OF_THE_VIEWER = /** @type {const} */ (["picture", "blocked", "connection"]);
/** Errors after which the session goes on, though not by this connection. */
const SENDER_ONLY = new Set(["replaced", "idle_timeout", "backlog_exceeded", "rate_exceeded", "message_too_large", "invalid_message"]);
const OVER = new Set(["stopped", "failed"]);
/** Errors of a session that is no more. */
const GONE = new Set(["session_not_found", "session_ended"]);

/** One avatar on a page. Methods that call the orchestrator throw `ApiError`. */
export class Avatar extends EventTarget {
  /**
   * @param {object} options
   * @param {HTMLVideoElement} options.video shows the avatar; give it `playsinline`
   * @param {HTMLAudioElement} [options.audio] sounds; by default one of its own, outside of the document
   * @param {string} [options.baseUrl] origin of the orchestrator; by default where this file came from
   * @param {string | ((refused: boolean) => Promise<string>)} [options.token] API key, or what finds one, as `AvatarClient` has it;
   *     without it `join` works, and `start`, `speak` and `stop` do not
   */
  constructor({ video, audio = new Audio(), baseUrl = new URL(import.meta.url).origin, token }) {
    super();
    this.client = token === undefined ? null : new AvatarClient({ baseUrl, token });
    this.viewer = new Viewer({ video, audio });
    /** PCM in; null until joined, and for those who only watch. @type {AudioLink | null} */
    this.link = null;
    /** @type {Joining | null} */
    this.session = null;
    /** @type {AvatarState} */
    this.state = "new";
    /** @type {AvatarState} as the session has it: whether it speaks, the avatar itself tells */
    this.base = "new";
    this.speaking = false;
    this.lastError = "";
    this.#relay(this.viewer, OF_THE_VIEWER);
    this.viewer.addEventListener("avatar", (event) => {
      this.speaking = /** @type {CustomEvent} */ (event).detail === "speaking";
      this.#enter(this.base);
    });
    this.viewer.addEventListener("ended", (event) => {
      this.#fail({ code: "room_left", message: /** @type {CustomEvent} */ (event).detail });
    });
  }

  /**
   * Typed `addEventListener`.
   * @template {keyof AvatarEvents} Name
   * @param {Name} name
   * @param {(detail: AvatarEvents[Name]) => void} listener
   * @returns {this}
   */
  on(name, listener) {
    this.addEventListener(name, (event) => listener(/** @type {CustomEvent} */ (event).detail));
    return this;
  }

  /**
   * Starts a session and joins its room. Call it in a click, or the browser will hold the sound back.
   * @param {import("./avatar-client.js").StartRequest} request
   * @param {{signal?: AbortSignal}} [options] `signal` ends a start that is under way, such as when the page is left
   * @returns {Promise<import("./avatar-client.js").Session>}
   */
  async start(request, { signal } = {}) {
    const client = this.#authorised();
    this.#only("new");
    this.allowSound();
    this.#enter("starting");
    const session = await client.start(request, { signal }).catch((error) => {
      this.#enter("failed");
      throw error;
    });
    try {
      await this.join(session);
    } catch (error) {
      await client.stop(session.session_id).catch(() => {}); // nobody here will: it ends by itself at the latest
      throw error;
    }
    return session;
  }

  /**
   * Joins a session that was started elsewhere; with its `audio_url` also as its sender. Call it in a click.
   * @param {Joining} session
   */
  async join(session) {
    if (this.state === "new") {
      this.allowSound();
      this.#enter("starting");
    }
    this.#only("starting");
    this.session = session;
    try {
      await this.viewer.join(session);
    } catch (error) {
      this.#enter("failed");
      const { message } = /** @type {Error} */ (error);
      throw new ApiError(`The room cannot be joined: ${message}`, { code: "room_unreachable" });
    }
    this.#only("starting"); // it may have been left meanwhile
    if (session.audio_url) this.#listen(session.audio_url);
    this.#enter("ready");
  }

  /** Lets the browser play sound. Call it in a click. */
  allowSound() {
    this.viewer.allowSound();
  }

  /** Speaks a text after what is being said. @param {string} text @param {string} [voice] one of `client.voices()` @returns {Promise<{segment: number}>} */
  speak(text, voice) {
    return this.#authorised().speak(this.#joined().session_id, text, voice);
  }

  /** Silence at once; what was to be said is dropped. Seconds of it are told where there is a key, else by the event `cleared`. */
  async interrupt() {
    const { session_id } = this.#joined();
    if (this.client) return (await this.client.interrupt(session_id)).dropped_s;
    if (!this.link) throw new ApiError("One who only watches cannot interrupt: give audio_url, or a token.", { code: "unauthorized" });
    this.link.clear();
    return null;
  }

  /** Leaves, and ends the session for everybody where there is a key. Idempotent. */
  async stop() {
    const { client, session } = this;
    const running = session && !OVER.has(this.base);
    await this.leave();
    if (client && running) await client.stop(session.session_id);
  }

  /** Leaves the room; the session goes on. Idempotent. */
  async leave() {
    if (!OVER.has(this.base)) this.#enter("stopped");
    this.link?.close();
    await this.viewer.leave();
  }

  /** @param {string} url */
  #listen(url) {
    const link = new AudioLink(url, { lives: () => this.#lives() });
    this.link = link;
    this.#relay(link, OF_THE_LINK);
    /** @param {string} type @param {(detail: any) => void} handler */
    const on = (type, handler) => link.addEventListener(type, (event) => handler(/** @type {CustomEvent} */ (event).detail));
    on("session.state", ({ state, reason }) => this.#enter(state, reason));
    on("error", ({ code }) => (this.lastError = code));
    on("state", (state) => {
      this.dispatchEvent(new CustomEvent("link", { detail: state }));
      if (state === "closed") void this.#closed();
    });
    link.open();
  }

  /** Whether the session is still there: as the orchestrator says, else while the avatar is in the room; null when neither tells. */
  async #lives() {
    if (OVER.has(this.base)) return false;
    if (this.client && this.session) {
      try {
        const { state } = await this.client.session(this.session.session_id, { once: true });
        return !OVER.has(state);
      } catch (error) {
        if (GONE.has(/** @type {ApiError} */ (error).code)) return false;
      }
    }
    return this.viewer.present || null;
  }

  /** The link closed for good: either the session is over, or only our place as its sender. */
  async #closed() {
    if (OVER.has(this.base) || SENDER_ONLY.has(this.lastError)) return;
    const status = this.client && this.session ? await this.client.session(this.session.session_id, { once: true }).catch(() => null) : null;
    if (OVER.has(this.base)) return;
    const failed = status?.state === "failed" || (this.lastError && !GONE.has(this.lastError));
    this.#enter(failed ? "failed" : "stopped", this.lastError || undefined);
    await this.leave();
  }

  /** @param {{code: string, message: string}} problem */
  #fail(problem) {
    if (this.base === "starting" || OVER.has(this.base)) return; // who starts is told by what `join` throws
    this.dispatchEvent(new CustomEvent("error", { detail: problem }));
    this.#enter("failed", problem.code);
    this.link?.close();
  }

  /** @param {AvatarState} base @param {string} [reason] */
  #enter(base, reason) {
    this.base = base;
    const state = base === "ready" && this.speaking ? "speaking" : base;
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, reason } }));
  }

  /** @param {EventTarget} from @param {readonly string[]} types */
  #relay(from, types) {
    for (const type of types) {
      from.addEventListener(type, (event) => this.dispatchEvent(new CustomEvent(type, { detail: /** @type {CustomEvent} */ (event).detail })));
    }
  }

  #authorised() {
    if (!this.client) throw new ApiError("This needs an API key: give `token`, or let your server do it.", { code: "unauthorized" });
    return this.client;
  }

  #joined() {
    if (!this.session) throw new ApiError("Start or join a session first.", { code: "session_not_found" });
    return this.session;
  }

  /** @param {AvatarState} state */
  #only(state) {
    if (this.state !== state) throw new ApiError(`This avatar is ${this.state}: make a new one for each session.`, { code: "session_conflict" });
  }
}
