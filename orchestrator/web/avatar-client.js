/**
 * A client of the orchestrator's HTTP surface and of its `/audio` WebSocket. No dependencies: import it from any page or from
 * any runtime that has `fetch` and `WebSocket`.
 *
 *     import { AudioLink, AvatarClient } from "./avatar-client.js";
 *     const client = new AvatarClient({ baseUrl: "https://avatars.example", token: apiKey });
 *     const session = await client.start({ room: "demo", avatar_id: "demo" });
 *     await client.speak(session.session_id, "Hello there.");
 *     const link = new AudioLink(session.audio_url);   // or: push 16 kHz int16 mono PCM yourself
 *
 * @module avatar-client
 */

import { ApiError, cancelled, problem, unreachable } from "./api-error.js";
import { sessionEvents } from "./event-stream.js";
import { RETRIES, Tries, verdict } from "./retries.js";
import { uploadOnce } from "./upload.js";

export { ApiError };
export { AudioLink } from "./audio-link.js";

/** Longest wait for an answer. A start prepares a new avatar first: the orchestrator's own limit is 180 s (`START_TIMEOUT_S`). */
const START_MS = 200_000;
const CALL_MS = 20_000;
/** Between two looks at what is being made. */
const LOOK_MS = 700;

/**
 * @typedef {object} StartRequest Body of `POST /session/start`; of several avatar sources the id wins, then the zip.
 * @property {string} room
 * @property {string} [avatar_id] `demo` is the built-in face; `upload` returns others
 * @property {string} [frames_zip_url]
 * @property {string} [idle_video_url]
 * @property {string} [engine] by default the agent's own
 * @property {AvatarSettings} [avatar_settings] how the avatar is shown
 * @property {number} [fps] 15 … 60
 * @property {number} [width]
 * @property {number} [height]
 * @property {boolean} [connect_livekit] default true
 * @property {string} [speaker] `agent`, `orchestrator`, or the identity of the participant on whose behalf the avatar speaks
 * @property {"http" | "datastream" | ParticipantSource} [audio_source] how speech arrives: by this API, through the room, or as a participant's microphone
 * @property {boolean} [captions] default true
 * @property {"vp8" | "h264" | "auto"} [video_codec] default `vp8`
 * @property {boolean} [simulcast] several sizes, for rooms with several viewers; default false
 * @property {boolean} [record] the session is recorded from its first frame on; default false
 * @property {boolean} [skip_idle] a recording leaves idle seconds out; default false
 * @property {SpeechSettings} [speech] how texts are spoken
 * @property {ConversationRequest} [conversation] the avatar listens and answers
 * @property {string} [rtmp_url] where media are published when WebRTC fails; it holds a stream key: only a server should know it
 * @property {boolean} [wants_rtmp] publishes there all the time
 * @property {PublisherMode} [publisher]
 * @property {string} [webhook_url]
 * @property {string} [webhook_secret]
 *
 * @typedef {{instructions?: string, greeting?: string, language?: string, voice?: string, llm?: ModelChoice, stt?: ModelChoice}} ConversationRequest
 * @typedef {{base_url: string, model: string, api_key?: string}} ModelChoice an address in OpenAI's dialect; for an operator's key only
 * @typedef {Record<string, string | number | null>} AvatarSettings
 * @typedef {{avatar_id: string, frames: number, width: number, height: number, fps: number, cached: boolean, face_px: number, still: boolean, warnings: Coded[]}} AvatarReport
 * @typedef {object} LibraryAvatar
 * @property {string} avatar_id
 * @property {string} name
 * @property {"preparing" | "ready" | "failed"} state
 * @property {number} progress 0 … 1
 * @property {string} created_at
 * @property {AvatarReport | null} report
 * @property {AvatarSettings} settings
 * @property {{name: string, frames: number | null, cached: boolean}[]} clips
 * @property {{code: string, detail: string} | null} error
 *
 * @typedef {object} RenderOrder Body of `POST /renders`, without dubs: an avatar that says a text or a file.
 * @property {string} [avatar_id]
 * @property {string} [text]
 * @property {string} [audio_url]
 * @property {string} [voice]
 * @property {string} [engine]
 * @property {number} [fps]
 * @property {number} [width]
 * @property {number} [height]
 * @property {AvatarSettings} [avatar_settings]
 * @property {"mp4" | "webm" | "png"} [format] default `mp4`, which has no transparency
 *
 * @typedef {object} Render Answer of `GET /renders/{id}`.
 * @property {string} render_id
 * @property {"queued" | "running" | "done" | "failed" | "cancelled"} state
 * @property {number} progress 0 … 1
 * @property {string | null} engine
 * @property {{url: string, bytes: number, seconds: number} | null} result
 * @property {{code: string, detail: string} | null} error
 *
 * @typedef {{participant: string}} ParticipantSource identity of a participant whose microphone the avatar says
 * @typedef {{voice?: string, speed?: number}} SpeechSettings `speed` is a multiple of the voice's own pace
 * @typedef {{avatar_id?: string}} PublicStart what a page with a public token may choose: one of the token's avatars
 * @typedef {Omit<Session, "audio_url" | "engine" | "avatar" | "conversation"> & {conversation?: {llm?: string, stt?: string}}} PublicSession
 * @typedef {"auto" | "webrtc" | "rtmp"} PublisherMode
 *
 * @typedef {{token: string, livekit_url: string, room: string, identity: string, expires_at: string | null}} ViewerToken
 *
 * @typedef {{state: "none" | "recording" | "stopped", seconds: number, bytes: number, parts: number, url: string | null, choices: string[],
 *   of?: "avatar" | "room", error?: string | null, dropped_frames?: number}} RecordingStatus `choices`: what can be recorded, as `of`
 * @typedef {{code: string, message: string}} Coded
 *
 * @typedef {object} Session Answer of `POST /session/start`.
 * @property {string} session_id
 * @property {string} state
 * @property {string} room
 * @property {string} livekit_url
 * @property {string} avatar_identity
 * @property {string} viewer_token
 * @property {string} audio_url a WebSocket address that works as it is
 * @property {string} engine
 * @property {number} fps
 * @property {number} width
 * @property {number} height
 * @property {string} expires_at ISO 8601
 * @property {AvatarReport | null} avatar
 * @property {{llm: string, stt: string}} [conversation] names of its models, or `embedded`
 *
 * @typedef {object} CallOptions
 * @property {boolean} [repeatable] the call is idempotent: it is retried also when no answer came
 * @property {boolean} [once] the call is never retried
 * @property {number} [withinMs] longest wait for an answer
 * @property {boolean} [keepalive] the browser sends the call also when the page is left meanwhile
 * @property {AbortSignal} [signal] aborts the call, which then throws `ApiError` `cancelled`
 *
 * @typedef {object} SessionStatus Answer of `GET /session/{id}`.
 * @property {string} session_id
 * @property {"starting"|"ready"|"speaking"|"recovering"|"draining"|"stopped"|"failed"} state
 * @property {string} publisher
 * @property {Transport} [transport]
 * @property {string} engine
 * @property {number} viewers
 * @property {{position_s: number, buffered_s: number, segments: number}} playback
 * @property {Coded} diagnosis
 * @property {FunnelStage[]} [funnel] empty while another orchestrator owns the session
 * @property {{code?: string, detail?: string, message?: string} | null} error
 *
 * @typedef {object} Transport How the agent publishes media; `adaptation` is 0 at full quality.
 * @property {string} rung `livekit`, `whip`, `rtmp`, or `none`
 * @property {string | null} reason
 * @property {number} adaptation
 * @property {number | null} width
 * @property {number | null} height
 * @property {number | null} fps
 *
 * @typedef {{id: number, session_id: string, type: string, at: string, data: any}} SessionEvent see `GET /session/{id}/events`
 * @typedef {{id: string, role: "user" | "assistant", text: string, interrupted: boolean, created_at: number}} HistoryMessage
 * @typedef {{stage: string, count: number, last_at: string|null, last_error: string|null}} FunnelStage
 * @typedef {{name: string, language: string, provider: string}} Voice `name` goes into `speak`, `language` is BCP 47
 */

/** Browsers have `randomUUID` on secure pages only. */
const randomKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/**
 * Calls the orchestrator. Every method throws `ApiError`. A call that may succeed later is retried for half a minute, with the waits
 * of `retries.js` or the answer's `Retry-After`. A call that may have been carried out is retried only if it is idempotent.
 */
export class AvatarClient {
  /**
   * @param {object} options
   * @param {string} [options.baseUrl] origin of the orchestrator; "" is the page's own
   * @param {string | ((refused: boolean) => Promise<string>)} options.token API key, or a function that returns one; after an
   *     answer 401 it is called with `true`, and the call is made once more
   */
  constructor({ baseUrl = "", token }) {
    this.baseUrl = baseUrl.replace(/\/$/, "");
    this.findToken = typeof token === "function" ? token : async () => token;
    /** The last token used, for `stopOnLeave`, which cannot await one. @type {string|null} */
    this.token = null;
  }

  /** @param {StartRequest} request @param {{idempotencyKey?: string, signal?: AbortSignal}} [options] @returns {Promise<Session>} */
  start(request, { idempotencyKey = randomKey(), signal } = {}) {
    const options = { repeatable: true, withinMs: START_MS, signal };
    return this.#call("POST", "/session/start", request, options, { "Idempotency-Key": idempotencyKey });
  }

  /**
   * Starts the session of a public token, which is given as `token`. It answers without `audio_url`.
   * @param {PublicStart} [request] @param {{idempotencyKey?: string, signal?: AbortSignal}} [options] @returns {Promise<PublicSession>}
   */
  startPublic({ avatar_id } = {}, { idempotencyKey = randomKey(), signal } = {}) {
    const options = { repeatable: true, withinMs: START_MS, signal };
    return this.#call("POST", "/public/session", avatar_id === undefined ? {} : { avatar_id }, options, { "Idempotency-Key": idempotencyKey });
  }

  /** @param {string} id @returns {Promise<SessionStatus>} */
  stop(id) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/stop`, undefined, { repeatable: true, keepalive: true });
  }

  /** Stops a session while the page is being left; does not wait for the answer. @param {string} id */
  stopOnLeave(id) {
    const headers = { Authorization: `Bearer ${this.token}` };
    const url = `${this.baseUrl}/session/${encodeURIComponent(id)}/stop`;
    fetch(url, { method: "POST", headers, keepalive: true }).catch(() => {});
  }

  /** @param {string} id @param {CallOptions} [options] @returns {Promise<SessionStatus>} */
  session(id, options) {
    return this.#call("GET", `/session/${encodeURIComponent(id)}`, undefined, { repeatable: true, ...options });
  }

  /** @param {string} id @param {string} text @param {string} [voice] @returns {Promise<{segment: number}>} */
  speak(id, text, voice) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/speak`, voice ? { text, voice } : { text });
  }

  /** What there is of a session's film. @param {string} id @returns {Promise<RecordingStatus>} */
  recording(id) {
    return this.#call("GET", `/session/${encodeURIComponent(id)}/recording`, undefined, { repeatable: true });
  }

  /**
   * Begins to record a session, or ends that.
   * @param {string} id @param {"recording" | "stopped"} state @param {boolean} [skipIdle]
   * @param {"avatar" | "room"} [of] what is recorded: the avatar (default), or the whole room by LiveKit Egress
   * @returns {Promise<RecordingStatus>}
   */
  record(id, state, skipIdle, of) {
    const body = { state, ...(skipIdle !== undefined && { skip_idle: skipIdle }), ...(of && { of }) };
    return this.#call("POST", `/session/${encodeURIComponent(id)}/recording`, body, { repeatable: true });
  }

  /** Removes the film; one that is being recorded begins again. @param {string} id @returns {Promise<null>} */
  deleteRecording(id) {
    return this.#call("DELETE", `/session/${encodeURIComponent(id)}/recording`, undefined, { repeatable: true });
  }

  /** The film as far as it has come. @param {string} id @param {AbortSignal} [signal] @returns {Promise<Blob>} */
  film(id, signal) {
    return this.#file(`/session/${encodeURIComponent(id)}/recording.mp4`, signal);
  }

  /** @param {string} id @returns {Promise<{dropped_s: number}>} */
  interrupt(id) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/interrupt`, undefined, { once: true }); // a retry would interrupt later speech
  }

  /** Says a text to the session's conversation. @param {string} id @param {string} text @returns {Promise<{message_id: string}>} */
  chat(id, text) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/chat`, { text });
  }

  /** The history of a session's conversation. @param {string} id @returns {Promise<{messages: HistoryMessage[]}>} */
  messages(id) {
    return this.#call("GET", `/session/${encodeURIComponent(id)}/messages`, undefined, { repeatable: true });
  }

  /** The session's events, see `sessionEvents`. @param {string} id @param {{signal?: AbortSignal}} [options] */
  events(id, { signal } = {}) {
    return sessionEvents((last, within) => this.#openEvents(id, last, within), signal);
  }

  /** @param {string} id @param {number} last id of the last event, or 0 @param {AbortSignal} signal */
  async #openEvents(id, last, signal) {
    const open = async (/** @type {boolean} */ refused) => {
      this.token = await this.findToken(refused);
      /** @type {Record<string, string>} */
      const headers = { Authorization: `Bearer ${this.token}`, ...(last && { "Last-Event-ID": String(last) }) };
      return fetch(`${this.baseUrl}/session/${encodeURIComponent(id)}/events`, { headers, cache: "no-store", signal }).catch(() => {
        throw unreachable();
      });
    };
    let answer = await open(false);
    if (answer.status === 401) answer = await open(true);
    if (!answer.ok || !answer.body) throw problem(answer.status, await answer.text(), answer.headers.get("Retry-After"));
    return answer.body;
  }

  /** Fixes the transport, or leaves the choice to the agent (`auto`). @param {string} id @param {PublisherMode} mode @returns {Promise<SessionStatus>} */
  setPublisher(id, mode) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/publisher`, { mode });
  }

  /** Token for another viewer of a room. @param {string} room @param {string} identity @returns {Promise<ViewerToken>} */
  viewerToken(room, identity) {
    return this.#call("POST", "/token", { room, identity }, { repeatable: true });
  }

  /** Models, device, and per session the counts of every pipeline stage. @returns {Promise<any>} */
  debugAgent() {
    return this.#call("GET", "/debug/musetalk", undefined, { repeatable: true });
  }

  /** The audio path of every session. @returns {Promise<any>} */
  debugAudio() {
    return this.#call("GET", "/debug/audio", undefined, { repeatable: true });
  }

  /** @returns {Promise<{voices: Voice[], default: string | null}>} */
  voices() {
    return this.#call("GET", "/voices", undefined, { repeatable: true });
  }

  /** Avatars of the library, the newest first. @param {string} [after] `next` of the page before @returns {Promise<{avatars: LibraryAvatar[], next: string | null}>} */
  avatars(after) {
    return this.#call("GET", `/avatars${after ? `?after=${encodeURIComponent(after)}` : ""}`, undefined, { repeatable: true });
  }

  /** @param {string} id @param {CallOptions} [options] @returns {Promise<LibraryAvatar>} */
  avatar(id, options) {
    return this.#call("GET", `/avatars/${encodeURIComponent(id)}`, undefined, { repeatable: true, ...options });
  }

  /** Takes an avatar by its address; it is prepared afterwards. @param {{url: string, name?: string, settings?: AvatarSettings}} order @returns {Promise<LibraryAvatar>} */
  addAvatar(order) {
    return this.#call("POST", "/avatars", order, { repeatable: true }, { "Idempotency-Key": randomKey() });
  }

  /** Renames it, sets its settings; one that is null goes back to its default. @param {string} id @param {{name?: string, settings?: AvatarSettings}} change @returns {Promise<LibraryAvatar>} */
  changeAvatar(id, change) {
    return this.#call("PATCH", `/avatars/${encodeURIComponent(id)}`, change, { repeatable: true });
  }

  /** @param {string} id @returns {Promise<null>} */
  deleteAvatar(id) {
    return this.#call("DELETE", `/avatars/${encodeURIComponent(id)}`);
  }

  /** A frame of the avatar as JPEG, once it is prepared. @param {string} id @param {AbortSignal} [signal] @returns {Promise<Blob>} */
  poster(id, signal) {
    return this.#file(`/avatars/${encodeURIComponent(id)}/poster.jpg`, signal);
  }

  /**
   * Waits until an avatar is not `preparing` any more: it is `ready`, or `failed` with its `error`.
   * @param {string} id
   * @param {{signal?: AbortSignal, onProgress?: (avatar: LibraryAvatar) => void}} [options] `onProgress` is called at each look, the last one included
   * @returns {Promise<LibraryAvatar>}
   */
  prepared(id, { signal, onProgress } = {}) {
    return watched(() => this.avatar(id, { signal }), ({ state }) => state !== "preparing", signal, onProgress);
  }

  /** Orders a film, which is made after the answer. @param {RenderOrder} order @param {CallOptions} [options] @returns {Promise<Render>} */
  render(order, options) {
    return this.#call("POST", "/renders", order, { repeatable: true, ...options }, { "Idempotency-Key": randomKey() });
  }

  /** Ends a render that has not ended. @param {string} id @returns {Promise<Render>} */
  cancelRender(id) {
    return this.#call("POST", `/renders/${encodeURIComponent(id)}/cancel`, undefined, { repeatable: true, keepalive: true });
  }

  /**
   * Waits until a render has ended: it is `done`, `failed` with its `error`, or `cancelled`.
   * @param {string} id
   * @param {{signal?: AbortSignal, onProgress?: (render: Render) => void}} [options] as of `prepared`
   * @returns {Promise<Render>}
   */
  rendered(id, { signal, onProgress } = {}) {
    const look = () => this.#call("GET", `/renders/${encodeURIComponent(id)}`, undefined, { repeatable: true, signal });
    return watched(look, ({ state }) => state !== "queued" && state !== "running", signal, onProgress);
  }

  /** The film of a render that is done. @param {string} id @param {AbortSignal} [signal] @param {"mp4" | "webm"} [format] as it was ordered @returns {Promise<Blob>} */
  renderedFilm(id, signal, format = "mp4") {
    return this.#file(`/renders/${encodeURIComponent(id)}/result.${format}`, signal);
  }

  /**
   * Shows another avatar in a running session, while it speaks.
   * @param {string} id
   * @param {{avatar_id?: string, frames_zip_url?: string, idle_video_url?: string, avatar_settings?: AvatarSettings}} source
   * @returns {Promise<{session_id: string, avatar: AvatarReport}>} when it is shown
   */
  show(id, source) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/avatar`, source, { repeatable: true, withinMs: START_MS });
  }

  /** Plays a clip of the session's avatar; `idle` ends it. @param {string} id @param {string} name @param {boolean} [loop] until something else is asked for @returns {Promise<{name: string, loop: boolean}>} */
  act(id, name, loop = false) {
    return this.#call("POST", `/session/${encodeURIComponent(id)}/action`, { name, loop }, { withinMs: START_MS });
  }

  /**
   * Uploads a clip, a zip of frames or a picture as an avatar of the library, which is prepared afterwards. It has the file's name.
   * @param {Blob} file
   * @param {(fraction: number) => void} [onProgress] 0 … 1, of the bytes sent
   * @param {{name?: string, signal?: AbortSignal}} [options] `name` in place of the file's own
   * @returns {Promise<LibraryAvatar>}
   */
  upload(file, onProgress, { name = file instanceof File ? file.name : undefined, signal } = {}) {
    return this.#send("/avatars", file, { name, signal, onProgress });
  }

  /**
   * Gives an avatar a clip of the same person, which an action plays, or another one in its place. It is prepared when this returns.
   * @param {string} id
   * @param {string} name small letters, digits, `-` and `_`; `listening` and `thinking` follow a conversation
   * @param {Blob} file a video, a zip of frames or a picture
   * @param {{signal?: AbortSignal, onProgress?: (fraction: number) => void}} [options] progress 0 … 1, of the bytes sent
   * @returns {Promise<LibraryAvatar>}
   */
  addClip(id, name, file, { signal, onProgress } = {}) {
    const path = `/avatars/${encodeURIComponent(id)}/clips/${encodeURIComponent(name)}`;
    return this.#send(path, file, { method: "PUT", name: file instanceof File ? file.name : undefined, signal, onProgress });
  }

  /** Removes a clip. @param {string} id @param {string} name @returns {Promise<null>} */
  deleteClip(id, name) {
    return this.#call("DELETE", `/avatars/${encodeURIComponent(id)}/clips/${encodeURIComponent(name)}`, undefined, { repeatable: true });
  }

  /** A file as a request's body. @param {string} path @param {Blob} file @param {{method?: "POST" | "PUT", name?: string, signal?: AbortSignal, onProgress?: (fraction: number) => void}} options */
  async #send(path, file, options) {
    const attempt = async (/** @type {boolean} */ refused) => {
      this.token = await this.findToken(refused);
      return uploadOnce(this.baseUrl + path, this.token, file, options);
    };
    try {
      return await attempt(false);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return attempt(true);
      throw error;
    }
  }

  /** The bytes at an address. @param {string} path @param {AbortSignal} [signal] @returns {Promise<Blob>} */
  async #file(path, signal) {
    this.token = await this.findToken(false);
    const open = () => fetch(this.baseUrl + path, { headers: { Authorization: `Bearer ${this.token}` }, cache: "no-store", signal });
    try {
      let answer = await open();
      if (answer.status === 401) {
        this.token = await this.findToken(true);
        answer = await open();
      }
      if (!answer.ok) throw problem(answer.status, await answer.text(), answer.headers.get("Retry-After"));
      return await answer.blob();
    } catch (error) {
      if (error instanceof ApiError) throw error;
      throw signal?.aborted ? cancelled() : unreachable();
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} [body]
   * @param {CallOptions} [options]
   * @param {Record<string, string>} [headers]
   * @returns {Promise<any>}
   */
  async #call(method, path, body, options = {}, headers = {}) {
    const tries = new Tries(RETRIES.call);
    for (;;) {
      try {
        return await this.#once(method, path, body, options, headers);
      } catch (error) {
        if (!(error instanceof ApiError) || options.once || error.code === "cancelled") throw error;
        const retry = verdict(error.status, error.code);
        if (retry === "final" || (retry === "unknown" && !options.repeatable)) throw error;
        const wait = tries.nextWaitMs(error.retryAfterS);
        if (wait === null) throw error;
        await new Promise((resolve) => setTimeout(resolve, wait));
        if (options.signal?.aborted) throw cancelled();
      }
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} body
   * @param {CallOptions} options
   * @param {Record<string, string>} headers
   * @returns {Promise<any>}
   */
  async #once(method, path, body, options, headers) {
    this.token = await this.findToken(false);
    let answer = await this.#fetch(method, path, body, options, headers);
    if (answer.status === 401) {
      this.token = await this.findToken(true);
      answer = await this.#fetch(method, path, body, options, headers);
    }
    if (!answer.ok) throw problem(answer.status, answer.text, answer.retryAfter);
    return answer.text ? JSON.parse(answer.text) : null;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {unknown} body
   * @param {CallOptions} options
   * @param {Record<string, string>} headers
   */
  async #fetch(method, path, body, { withinMs = CALL_MS, keepalive = false, signal }, headers) {
    if (signal?.aborted) throw cancelled();
    /** @type {Record<string, string>} */
    const json = body === undefined ? {} : { "Content-Type": "application/json" };
    const aborting = new AbortController();
    const abort = () => aborting.abort();
    const timer = setTimeout(abort, withinMs);
    signal?.addEventListener("abort", abort);
    try {
      const answer = await fetch(this.baseUrl + path, {
        method,
        headers: { Authorization: `Bearer ${this.token}`, ...json, ...headers },
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: "no-store",
        keepalive,
        signal: aborting.signal,
      });
      const text = await answer.text();
      return { ok: answer.ok, status: answer.status, text, retryAfter: answer.headers.get("Retry-After") };
    } catch {
      throw signal?.aborted ? cancelled() : unreachable();
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
    }
  }
}

/**
 * Looks until what is seen is over.
 * @template Seen
 * @param {() => Promise<Seen>} look
 * @param {(seen: Seen) => boolean} isOver
 * @param {AbortSignal} [signal]
 * @param {(seen: Seen) => void} [onLook]
 */
async function watched(look, isOver, signal, onLook) {
  for (;;) {
    const seen = await look();
    onLook?.(seen);
    if (isOver(seen)) return seen;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    if (signal?.aborted) throw cancelled();
  }
}
