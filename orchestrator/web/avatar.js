/**
 * The whole client in one import: starts a session, plays its avatar in a `<video>`, makes it speak, and reports its state. No
 * framework, no build step, no other host than the orchestrator and LiveKit.
 *
 *     import { Avatar } from "https://avatars.example/avatar.js";
 *     const avatar = new Avatar({ video: document.querySelector("video"), token: apiKey });
 *     await avatar.start({ room: "demo", avatar_id: "demo" });   // in a click, so that the browser plays audio
 *     await avatar.speak("Hello there.");
 *
 * With `conversation` in the start it listens and answers instead: `avatar.microphone.open()`, `avatar.send("Hello.")`.
 *
 * A public page gets no API key. It gets a public token (`POST /public-tokens`) and calls `startPublic`, or your server
 * calls `POST /session/start`, hands its answer to the page, and the page calls `join`.
 *
 * @module avatar
 */

import { ApiError, AudioLink, AvatarClient } from "./avatar-client.js";
import { Conversation } from "./conversation.js";
import { RoomMicrophone, requestMicrophone } from "./room-microphone.js";
import { Viewer } from "./viewer.js";

export { ApiError, AudioLink, AvatarClient, Conversation, RoomMicrophone, Viewer, requestMicrophone };

/**
 * @typedef {"new" | "starting" | "ready" | "speaking" | "recovering" | "draining" | "stopped" | "failed"} AvatarState
 *     `recovering`: the session has lost its agent and moves to another one, with the speech that was not heard
 *
 * @typedef {object} Joining What `join` needs: the answer of `POST /session/start`, or a part of it.
 * @property {string} session_id
 * @property {string} livekit_url
 * @property {string} viewer_token
 * @property {string} avatar_identity
 * @property {string} [audio_url] leave it out for a page that only watches: a session has one sender, and a newer one replaces it
 * @property {{llm?: string, stt?: string}} [conversation] as in the answer; a session with it takes no audio by `audio_url`
 *
 * @typedef {{
 *   "state": {state: AvatarState, reason?: string},
 *   "started": import("./avatar-client.js").Session,
 *   "firstframe": number,
 *   "caption": import("./captions.js").Caption,
 *   "message": import("./conversation.js").Message,
 *   "conversation.state": import("./conversation.js").ConversationState,
 *   "microphone": import("./room-microphone.js").MicrophoneState,
 *   "audioblocked": boolean,
 *   "audiotrack": MediaStreamTrack,
 *   "avatar.state": string | null,
 *   "alpha": boolean,
 *   "connection": "connected" | "reconnecting",
 *   "link": "connecting" | "open" | "reconnecting" | "closed",
 *   "publisher.changed": {publisher: "livekit" | "whip" | "rtmp" | "none", reason: string},
 *   "playback.started": {segment: number},
 *   "playback.finished": {segment: number, position_s: number, interrupted: boolean},
 *   "cleared": {dropped_s: number},
 *   "warning": {code: string, message: string, suspicion?: string},
 *   "error": {code: string, message: string},
 *   "picture": number,
 *   "blocked": boolean,
 * }} AvatarEvents Events and their `detail`. `started`: the orchestrator has started the session, and its room is joined next.
 *     `firstframe`: the first frame is shown, at this `performance.now()`. `audioblocked`: whether the browser blocks playback; call
 *     `startAudio` in a click. `message`: a line of the conversation, new or changed. `audiotrack`: the track that is played from now on. `alpha`: the avatar is transparent, and drawn on the canvas. `avatar.state`: the attribute of the avatar's
 *     participant. `connection` is the room's, `link` that of the WebSocket for audio and events. `publisher.changed` to `error` are
 *     described in `docs/protocol.md`. `picture` and `blocked` are deprecated: `firstframe`, `audioblocked`.
 */

const LINK_EVENTS = /** @type {const} */ (["publisher.changed", "playback.started", "playback.finished", "cleared", "warning", "error"]);
const VIEWER_EVENTS = /** @type {const} */ (["firstframe", "caption", "audioblocked", "audiotrack", "avatar.state", "alpha", "connection", "picture", "blocked"]);
/** Errors that end this connection as the session's sender; the session goes on. */
const SENDER_ONLY = new Set(["replaced", "idle_timeout", "backlog_exceeded", "rate_exceeded", "message_too_large", "invalid_message"]);
const OVER = new Set(["stopped", "failed"]);
/** Errors that mean that the session is over. */
const SESSION_OVER = new Set(["session_not_found", "session_ended"]);

/** One avatar on a page. Methods that call the orchestrator throw `ApiError`. */
export class Avatar extends EventTarget {
  /** Aborts the start that is under way. @type {AbortController | null} */
  #starting = null;
  /** The session itself is over, or `stop` has asked for it. A lost room alone (`failed`, `room_left`) ends no session. */
  #sessionOver = false;
  /** Ends the reading of the session's events. */
  #following = new AbortController();

  /**
   * @param {object} options
   * @param {HTMLVideoElement} options.video shows the avatar; give it `playsinline`
   * @param {HTMLCanvasElement} [options.canvas] shows the avatar in the video's place where it is transparent: lay it over the video, and hide that at the event `alpha`
   * @param {HTMLAudioElement} [options.audio] plays its audio; by default an element outside of the document
   * @param {import("./vendor/livekit-client.esm.js").ConnectedRoom} [options.room] a LiveKit room that the page has connected. The avatar uses
   *     it and never disconnects it; several avatars may share it. By default the avatar joins with a room of its own
   * @param {string} [options.baseUrl] origin of the orchestrator; by default that of this file
   * @param {string | ((refused: boolean) => Promise<string>)} [options.token] API key, or a function that returns one (see
   *     `AvatarClient`); without it `join` works, and `start`, `speak` and `stop` do not
   */
  constructor({ video, canvas, audio = new Audio(), room, baseUrl = new URL(import.meta.url).origin, token }) {
    super();
    this.client = token === undefined ? null : new AvatarClient({ baseUrl, token });
    this.viewer = new Viewer({ video, canvas, audio, room });
    /** Takes PCM; null until joined, and for a page that only watches. @type {AudioLink | null} */
    this.link = null;
    /** Both sides' words; null until joined, and for a session without a conversation. @type {Conversation | null} */
    this.conversation = null;
    /** The user's microphone, which a conversation hears. */
    this.microphone = new RoomMicrophone(this.viewer.room);
    /** @type {Joining | null} */
    this.session = null;
    /** @type {AvatarState} */
    this.state = "new";
    /** The session's state; it becomes `speaking` only by the avatar's own report. @type {AvatarState} */
    this.base = "new";
    this.speaking = false;
    /** Code of the link's last error. */
    this.lastError = "";
    this.#relay(this.viewer, VIEWER_EVENTS);
    this.#relay(this.microphone, ["state"], () => "microphone");
    this.#relay(this.microphone, ["error"]);
    this.viewer.addEventListener("avatar.state", (event) => {
      this.speaking = /** @type {CustomEvent} */ (event).detail === "speaking";
      this.#setState(this.base);
    });
    this.viewer.addEventListener("disconnected", (event) => {
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
   * Starts a session and joins its room. Call it in a click, or the browser blocks the audio. When `stop` or `leave` is called before
   * it is done, it throws `cancelled`, and the session is stopped.
   * @param {import("./avatar-client.js").StartRequest} request
   * @param {{signal?: AbortSignal}} [options] `signal` aborts the start, such as when the page is left
   * @returns {Promise<import("./avatar-client.js").Session>}
   */
  start(request, { signal } = {}) {
    return this.#begin((client, options) => client.start(request, options), signal);
  }

  /**
   * The same for the session of a public token, which is given as `token`.
   * @param {import("./avatar-client.js").PublicStart} [request]
   * @param {{signal?: AbortSignal}} [options]
   * @returns {Promise<import("./avatar-client.js").PublicSession>}
   */
  startPublic(request, { signal } = {}) {
    return this.#begin((client, options) => client.startPublic(request, options), signal);
  }

  /**
   * @template {import("./avatar-client.js").PublicSession} Started
   * @param {(client: AvatarClient, options: {signal: AbortSignal}) => Promise<Started>} begin
   * @param {AbortSignal} [signal]
   * @returns {Promise<Started>}
   */
  async #begin(begin, signal) {
    const client = this.#authorised();
    this.#requireState("new");
    this.startAudio();
    this.#setState("starting");
    const starting = new AbortController();
    this.#starting = starting;
    if (signal?.aborted) starting.abort();
    signal?.addEventListener("abort", () => starting.abort(), { once: true });
    let session;
    try {
      session = await begin(client, { signal: starting.signal });
    } catch (error) {
      if (!OVER.has(this.base)) this.#setState("failed");
      throw error;
    } finally {
      this.#starting = null;
    }
    try {
      if (OVER.has(this.base)) throw new ApiError("The start was cancelled.", { code: "cancelled" });
      this.dispatchEvent(new CustomEvent("started", { detail: session }));
      await this.join(session);
    } catch (error) {
      await client.stop(session.session_id).catch(() => {}); // else it ends by itself, without a viewer
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
      this.startAudio();
      this.#setState("starting");
    }
    this.#requireState("starting");
    this.session = session;
    if (session.conversation) this.#openConversation(session);
    try {
      await this.viewer.join(session);
    } catch (error) {
      if (!OVER.has(this.base)) this.#setState("failed");
      await this.leave();
      const { message } = /** @type {Error} */ (error);
      throw new ApiError(`The room cannot be joined: ${message}`, { code: "room_unreachable" });
    }
    if (OVER.has(this.base)) throw new ApiError("The avatar was left before it was joined.", { code: "cancelled" });
    void this.microphone.publish();
    if (session.audio_url && !session.conversation) this.#openLink(session.audio_url);
    else void this.#follow(session.session_id);
    this.#setState("ready");
  }

  /** Makes the browser play audio. Call it in a click. */
  startAudio() {
    this.viewer.startAudio();
  }

  /** @deprecated `startAudio` */
  allowSound() {
    this.startAudio();
  }

  /** What the browser measures of the received tracks. @returns {Promise<import("./statistics.js").MediaStats>} */
  stats() {
    return this.viewer.stats();
  }

  /** Speaks a text after what is being spoken. @param {string} text @param {string} [voice] one of `client.voices()` @returns {Promise<{segment: number}>} */
  speak(text, voice) {
    return this.#authorised().speak(this.#joined().session_id, text, voice);
  }

  /**
   * Says a text to the conversation, which answers it as if it had been spoken. It waits where the conversation is away.
   * @param {string} text
   */
  async send(text) {
    const { session_id } = this.#joined();
    if (!this.conversation) throw new ApiError("This session has no conversation: give `conversation` at the start.", { code: "session_conflict" });
    if (this.client) {
      const { message_id } = await this.client.chat(session_id, text);
      this.conversation.typed(message_id, text);
    } else {
      const { id } = await this.viewer.room.localParticipant.sendText(text, { topic: "lk.chat" });
      this.conversation.typed(id, text);
    }
  }

  /**
   * Silences the avatar at once and drops the speech that waits.
   * @returns {Promise<number | null>} seconds that were dropped; without a key null, and the event `cleared` reports them
   */
  async interrupt() {
    const { session_id } = this.#joined();
    if (this.client) return (await this.client.interrupt(session_id)).dropped_s;
    if (!this.link) throw new ApiError("A page that only watches cannot interrupt: give audio_url, or a token.", { code: "unauthorized" });
    this.link.clear();
    return null;
  }

  /**
   * Shows another avatar in the same session, while it speaks; needs a key.
   * @param {{avatar_id?: string, frames_zip_url?: string, idle_video_url?: string}} source
   * @returns {Promise<{session_id: string, avatar: import("./avatar-client.js").AvatarReport}>} when it is shown
   */
  async show(source) {
    const { session_id } = this.#joined();
    return this.#keyed().show(session_id, source);
  }

  /** Plays a clip of the avatar, `idle` ends it; needs a key. @param {string} name @param {{loop?: boolean}} [options] */
  async act(name, { loop = false } = {}) {
    const { session_id } = this.#joined();
    return this.#keyed().act(session_id, name, loop);
  }

  #keyed() {
    if (!this.client) throw new ApiError("A page that only watches cannot change the avatar: give a token.", { code: "unauthorized" });
    return this.client;
  }

  /** Leaves, and with a key ends the session for everybody. Idempotent. */
  async stop() {
    const { client, session } = this;
    const running = session && !this.#sessionOver;
    this.#sessionOver = true;
    await this.leave();
    if (client && running) await client.stop(session.session_id);
  }

  /** `stop` while the page is being left, when nothing can be awaited (`pagehide`). A start that is under way is aborted. */
  stopOnLeave() {
    this.#starting?.abort();
    if (this.session && !this.#sessionOver) this.client?.stopOnLeave(this.session.session_id);
    this.#sessionOver = true;
    void this.leave();
  }

  /** Stops playback and leaves the room, unless it is the page's own; the session goes on. Idempotent. */
  async leave() {
    if (!OVER.has(this.base)) this.#setState("stopped");
    this.#close();
    await this.viewer.leave();
  }

  /** Ends what runs beside the room, and gives the microphone back. */
  #close() {
    this.link?.close();
    this.#following.abort();
    this.microphone.close();
    this.conversation?.close();
  }

  /** @param {Joining} session */
  #openConversation(session) {
    const conversation = new Conversation(session);
    this.conversation = conversation;
    this.#relay(conversation, ["message"]);
    this.#relay(conversation, ["state"], () => "conversation.state");
    conversation.attach(this.viewer.room);
  }

  /** Reads the events of a session that has no link; without a key the room has to do. @param {string} id */
  async #follow(id) {
    if (!this.client) return;
    try {
      for await (const { type, data } of this.client.events(id, { signal: this.#following.signal })) {
        this.conversation?.handle(type, data);
        if (type === "session.state") await this.#sessionState(data);
        else if (LINK_EVENTS.some((name) => name === type)) this.dispatchEvent(new CustomEvent(type, { detail: { message: data.detail, ...data } }));
      }
    } catch (error) {
      const { code, message } = /** @type {ApiError} */ (error);
      if (SESSION_OVER.has(code)) await this.#sessionState({ state: "stopped", reason: code });
      else this.dispatchEvent(new CustomEvent("error", { detail: { code, message } }));
    }
  }

  /** @param {{state: AvatarState, reason?: string}} reported by the session itself */
  async #sessionState({ state, reason }) {
    if (state === "starting" || OVER.has(this.base)) return; // the event stream begins with the past
    this.#setState(state, reason);
    if (!OVER.has(state)) return;
    this.#sessionOver = true;
    await this.leave();
  }

  /** @param {string} url */
  #openLink(url) {
    const link = new AudioLink(url, { isAlive: () => this.#isAlive() });
    this.link = link;
    /** @type {(type: string, handler: (detail: any) => void) => void} */
    const on = (type, handler) => link.addEventListener(type, (event) => handler(/** @type {CustomEvent} */ (event).detail));
    on("error", ({ code }) => (this.lastError = code));
    this.#relay(link, LINK_EVENTS);
    on("session.state", (reported) => void this.#sessionState(reported));
    on("state", (state) => {
      this.dispatchEvent(new CustomEvent("link", { detail: state }));
      if (state === "closed") void this.#linkClosed();
    });
    link.open();
  }

  /** Whether the session still exists: by the orchestrator, else while the avatar is in the room; null when neither shows it. */
  async #isAlive() {
    if (OVER.has(this.base)) return false;
    if (this.client && this.session) {
      try {
        const { state } = await this.client.session(this.session.session_id, { once: true });
        return !OVER.has(state);
      } catch (error) {
        if (SESSION_OVER.has(/** @type {ApiError} */ (error).code)) return false;
      }
    }
    return this.viewer.present || null;
  }

  /** The link is closed for good: either the session is over, or only this page is no longer its sender. */
  async #linkClosed() {
    if (OVER.has(this.base) || SENDER_ONLY.has(this.lastError)) return;
    const status = this.client && this.session ? await this.client.session(this.session.session_id, { once: true }).catch(() => null) : null;
    if (OVER.has(this.base)) return;
    const failed = status?.state === "failed" || (this.lastError && !SESSION_OVER.has(this.lastError));
    this.#sessionOver = SESSION_OVER.has(this.lastError) || (status !== null && OVER.has(status.state));
    this.#setState(failed ? "failed" : "stopped", this.lastError || undefined);
    await this.leave();
  }

  /** @param {{code: string, message: string}} problem */
  #fail(problem) {
    if (this.base === "starting" || OVER.has(this.base)) return; // `start` and `join` throw it
    if (this.base === "draining") return void this.leave(); // the session ends, and its room with it
    this.dispatchEvent(new CustomEvent("error", { detail: problem }));
    this.#setState("failed", problem.code);
    this.#close();
    void this.viewer.leave();
  }

  /** @param {AvatarState} base the session's state @param {string} [reason] */
  #setState(base, reason) {
    this.base = base;
    const state = base === "ready" && this.speaking ? "speaking" : base;
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, reason } }));
  }

  /** @param {EventTarget} from @param {readonly string[]} types @param {(type: string) => string} [rename] */
  #relay(from, types, rename = (type) => type) {
    for (const type of types) {
      from.addEventListener(type, (event) => this.dispatchEvent(new CustomEvent(rename(type), { detail: /** @type {CustomEvent} */ (event).detail })));
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
  #requireState(state) {
    if (this.state !== state) throw new ApiError(`This avatar is ${this.state}: make a new one for each session.`, { code: "session_conflict" });
  }
}
