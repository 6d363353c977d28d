/**
 * A session's `/audio` WebSocket: sends PCM and segment marks, receives playback events. A connection that drops is opened again, and
 * sending resumes at the `received_samples` of the new `hello`: nothing is lost, nothing is sent twice. A connection without a `hello`
 * or `pong` for ten seconds counts as dropped, since TCP reports it much later. The new connection names the last event received, and
 * the orchestrator sends every later one.
 *
 * @module audio-link
 */

import { RETRIES, Tries, closeVerdict } from "./retries.js";

const PING_MS = 15_000;
/** At the third failed attempt, and at each fifth after it, the link checks whether the session still exists. */
const FIRST_CHECK = 3;
const CHECK_EVERY = 5;

/**
 * Unconfirmed items in order: PCM, and marks in between, each at its position in samples. `ack` confirms PCM; the `pong` to the ping
 * that follows a mark confirms the mark.
 *
 * @typedef {{at: number, pcm: Int16Array}} Chunk
 * @typedef {{at: number, mark: "audio.start" | "audio.end" | "clear", ping: number}} Mark
 */

/**
 * Events (`CustomEvent`, `detail` is the message): `hello`, `playback.started`, `playback.finished`, `cleared`, `publisher.changed`,
 * `session.state`, `warning`, `error`; and the link's own `state`, with detail `connecting`, `open`, `reconnecting` or `closed`. Before
 * the link gives up by itself it dispatches an `error`: `network` (the orchestrator cannot be reached), or `session_ended`.
 */
export class AudioLink extends EventTarget {
  /**
   * @param {string} url `audio_url` of the session
   * @param {object} [options]
   * @param {number} [options.backlogS] longest PCM, in seconds, that may wait for a lost connection; past it `push` returns false
   * @param {() => Promise<boolean | null>} [options.isAlive] whether the session still exists, null where that is not known. It is
   *     called while the link is down: after true the link tries for longer than two minutes, after false it gives up at once
   * @param {() => Promise<boolean | null>} [options.lives] deprecated: `isAlive`
   * @param {import("./retries.js").Schedule} [options.schedule]
   * @param {number} [options.silenceS] a connection without an answer for this long is dead
   */
  constructor(url, { backlogS = 20, lives, isAlive = lives ?? (async () => null), schedule = RETRIES.link, silenceS = RETRIES.silence_s } = {}) {
    super();
    this.url = url;
    this.isAlive = isAlive;
    this.tries = new Tries(schedule);
    this.silenceS = silenceS;
    /** @type {"closed" | "connecting" | "open" | "reconnecting"} */
    this.state = "closed";
    this.backlogS = backlogS;
    this.sampleRate = 16_000;
    /** @type {(Chunk | Mark)[]} */
    this.pending = [];
    /** Position of the next sample, in the session's count once `aligned` by a `hello`. */
    this.position = 0;
    this.aligned = false;
    /** Id of the newest event received; 0 before the first. */
    this.lastEventId = 0;
    this.attempts = 0;
    /** @type {WebSocket|null} */
    this.socket = null;
    this.wanted = false;
    this.pings = 0;
    this.pongs = 0;
    this.retryTimer = 0;
    this.pingTimer = 0;
    this.silenceTimer = 0;
    /** Code of the last `error` of this connection. */
    this.lastError = "";
  }

  /** Opens the connection. Idempotent; a closed link starts over. */
  open() {
    if (this.wanted) return;
    this.wanted = true;
    this.attempts = 0;
    this.tries.succeeded();
    this.#connect();
  }

  /** Closes the connection for good, and discards what is not confirmed. */
  close() {
    this.wanted = false;
    clearTimeout(this.retryTimer);
    const { socket } = this;
    this.#end();
    socket?.close(1000);
  }

  /** Begins a segment. */
  start() {
    this.#append({ at: this.position, mark: "audio.start", ping: 0 });
  }

  /** Ends the segment. */
  end() {
    this.#append({ at: this.position, mark: "audio.end", ping: 0 });
  }

  /** Barge-in: drops everything that is not played yet. */
  clear() {
    this.#append({ at: this.position, mark: "clear", ping: 0 });
  }

  /**
   * Sends mono PCM at the session's rate.
   * @param {Int16Array} pcm
   * @returns {boolean} false when too much waits for the connection: this chunk is discarded
   */
  push(pcm) {
    const waiting = this.position - (this.pending[0]?.at ?? this.position);
    if (waiting + pcm.length > this.backlogS * this.sampleRate) return false;
    this.#append({ at: this.position, pcm });
    this.position += pcm.length;
    return true;
  }

  #connect() {
    this.#setState(this.attempts || this.state === "reconnecting" ? "reconnecting" : "connecting");
    this.lastError = "";
    const socket = new WebSocket(this.lastEventId ? `${this.url}&last_event_id=${this.lastEventId}` : this.url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => {
      if (socket === this.socket && typeof event.data === "string") this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => socket === this.socket && this.#closed(event.code);
    this.socket = socket;
    this.#armSilenceTimer();
  }

  /** Drops the connection unless a message arrives in time. */
  #armSilenceTimer() {
    clearTimeout(this.silenceTimer);
    const { socket } = this;
    this.silenceTimer = setTimeout(() => {
      if (socket !== this.socket) return;
      this.#closed(1006);
      socket?.close(); // takes the browser a minute on a dead connection; the next one does not wait for it
    }, 1000 * this.silenceS);
  }

  /** @param {any} message */
  #receive(message) {
    clearTimeout(this.silenceTimer);
    if (message.type === "hello") this.#resume(message);
    else if (message.type === "ack") this.#confirmPcm(message.received_samples);
    else if (message.type === "pong") this.#confirmMarks();
    else if (message.type === "error") this.lastError = message.code;
    if (this.pings > this.pongs) this.#armSilenceTimer();
    if (message.type === "ack" || message.type === "pong" || message.id <= this.lastEventId) return;
    this.lastEventId = message.id ?? this.lastEventId;
    this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
  }

  /** @param {{received_samples: number, sample_rate: number, limits?: {backlog_s: number}}} hello */
  #resume(hello) {
    const received = hello.received_samples;
    this.sampleRate = hello.sample_rate;
    this.backlogS = Math.min(this.backlogS, hello.limits?.backlog_s ?? this.backlogS);
    this.attempts = 0;
    this.tries.succeeded();
    if (this.aligned) this.#confirmPcm(received);
    else this.#align(received);
    this.#setState("open");
    for (const item of this.pending) this.#send(item, received);
    this.pingTimer = setInterval(() => this.#ping(), PING_MS);
  }

  /** Counts as the session does, which includes earlier connections: the first pending sample is its next. @param {number} received */
  #align(received) {
    const shift = received - (this.pending[0]?.at ?? this.position);
    for (const item of this.pending) item.at += shift;
    this.position += shift;
    this.aligned = true;
  }

  /** @param {number} received number of samples that the session has received */
  #confirmPcm(received) {
    this.pending = this.pending.filter((item) => ("pcm" in item ? item.at + item.pcm.length > received : item.at >= received));
  }

  /** Messages are processed in order, so every mark before the answered ping has arrived. */
  #confirmMarks() {
    this.pongs += 1;
    this.pending = this.pending.filter((item) => "pcm" in item || item.ping > this.pongs);
  }

  /** @param {Chunk | Mark} item */
  #append(item) {
    this.pending.push(item);
    if (this.state === "open") this.#send(item, item.at);
  }

  /** @param {Chunk | Mark} item @param {number} from the session has every sample before this position */
  #send(item, from) {
    if ("pcm" in item) {
      const rest = item.pcm.subarray(Math.max(0, from - item.at));
      this.socket?.send(/** @type {Int16Array<ArrayBuffer>} */ (rest));
    } else {
      this.socket?.send(JSON.stringify({ type: item.mark }));
      item.ping = this.#ping();
    }
  }

  #ping() {
    this.socket?.send('{"type":"ping"}');
    this.pings += 1;
    if (this.pings === this.pongs + 1) this.#armSilenceTimer();
    return this.pings;
  }

  /** @param {number} code of the WebSocket's close */
  #closed(code) {
    if (!this.wanted || closeVerdict(code, this.lastError) === "final") {
      this.#end();
      return;
    }
    this.#disconnect();
    this.attempts += 1;
    this.#setState("reconnecting");
    const wait = this.tries.nextWaitMs();
    if (wait !== null) this.retryTimer = setTimeout(() => this.#connect(), wait);
    if (wait === null || this.attempts % CHECK_EVERY === FIRST_CHECK) void this.#checkSession(wait === null);
  }

  /** @param {boolean} last no time is left for further attempts */
  async #checkSession(last) {
    const { attempts } = this;
    const alive = await this.isAlive().catch(() => null);
    if (!this.wanted || this.state !== "reconnecting" || this.attempts < attempts) return; // reconnected or closed meanwhile
    if (alive === false) {
      this.#giveUp("session_ended", "The session is over.");
    } else if (last && alive) {
      this.attempts = 0;
      this.tries.succeeded();
      this.#connect();
    } else if (last) {
      this.#giveUp("network", "The orchestrator cannot be reached any more.");
    }
  }

  /** @param {string} code @param {string} message */
  #giveUp(code, message) {
    this.dispatchEvent(new CustomEvent("error", { detail: { type: "error", code, message } }));
    this.close();
  }

  #end() {
    this.#disconnect();
    this.wanted = false;
    this.aligned = false;
    this.pending = [];
    this.#setState("closed");
  }

  #disconnect() {
    this.socket = null;
    this.pings = 0;
    this.pongs = 0;
    clearInterval(this.pingTimer);
    clearTimeout(this.silenceTimer);
  }

  /** @param {"closed" | "connecting" | "open" | "reconnecting"} state */
  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}
