/**
 * A session's `/audio` WebSocket: PCM and segment marks out, playback events in. When the connection drops it is opened
 * again, and the sender goes on from the `received_samples` of the new `hello`: nothing is lost, nothing is sent twice. A
 * connection on which no greeting, or no `pong`, comes for ten seconds counts as dropped: TCP tells of it much later. The new
 * connection names the last event that came, and gets every later one.
 *
 * @module audio-link
 */

import { RETRIES, Tries, closeVerdict } from "./retries.js";

const PING_MS = 15_000;
/** At the third failed try, and at each fifth after it, it is asked whether the session is still there. */
const ASKED_AT = 3;
const ASKED_EACH = 5;

/**
 * What was pushed and is not known to have arrived, in order: PCM, and marks in between, each at its position in samples.
 * PCM is confirmed by `ack`, a mark by the `pong` to the ping that follows it.
 *
 * @typedef {{at: number, pcm: Int16Array}} Chunk
 * @typedef {{at: number, mark: "audio.start" | "audio.end" | "clear", ping: number}} Mark
 */

/**
 * Events (`CustomEvent`, `detail` as it came from the wire): `hello`, `playback.started`, `playback.finished`, `cleared`,
 * `warning`, `error`; and the link's own `state`, with detail `connecting`, `open`, `reconnecting` or `closed`. When the link gives
 * up by itself an `error` comes first: `network` (the orchestrator cannot be reached), or `session_ended`.
 */
export class AudioLink extends EventTarget {
  /**
   * @param {string} url `audio_url` of the session
   * @param {object} [options]
   * @param {number} [options.backlogS] seconds that may wait for a lost connection; past them `push` refuses
   * @param {() => Promise<boolean | null>} [options.lives] whether the session is still there, null where that is not known. It is
   *     asked while the link is down: true lets it go on past its two minutes, false ends it at once
   * @param {import("./retries.js").Schedule} [options.schedule]
   * @param {number} [options.silenceS] a connection that says nothing for so long after it was asked is dead
   */
  constructor(url, { backlogS = 20, lives = async () => null, schedule = RETRIES.link, silenceS = RETRIES.silence_s } = {}) {
    super();
    this.url = url;
    this.lives = lives;
    this.tries = new Tries(schedule);
    this.silenceS = silenceS;
    /** @type {"closed" | "connecting" | "open" | "reconnecting"} */
    this.state = "closed";
    this.backlogS = backlogS;
    this.sampleRate = 16_000;
    /** @type {(Chunk | Mark)[]} */
    this.pending = [];
    /** Where the next sample goes, counted as the session counts; only after the first `hello` of a sequence (`inStep`). */
    this.position = 0;
    this.inStep = false;
    /** The newest event of the session that came; 0 before the first. */
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

  /** Opens the connection; idempotent, and starts over when it was closed for good. */
  open() {
    if (this.wanted) return;
    this.wanted = true;
    this.attempts = 0;
    this.tries.succeeded();
    this.#connect();
  }

  /** Closes it for good; what was not confirmed is forgotten. */
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

  /** Barge-in: everything not yet played is dropped. */
  clear() {
    this.#append({ at: this.position, mark: "clear", ping: 0 });
  }

  /**
   * Sends mono PCM at the session's rate.
   * @param {Int16Array} pcm
   * @returns {boolean} false when too much waits for the connection: this chunk was not taken
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
    this.#expect();
  }

  /** Something must be received soon, or the connection is dead. */
  #expect() {
    clearTimeout(this.silenceTimer);
    const { socket } = this;
    this.silenceTimer = setTimeout(() => {
      if (socket !== this.socket) return;
      this.#closed(1006);
      socket?.close(); // on a dead line this takes the browser a minute: another connection does not wait for it
    }, 1000 * this.silenceS);
  }

  /** @param {any} message */
  #receive(message) {
    clearTimeout(this.silenceTimer);
    if (message.type === "hello") this.#resume(message);
    else if (message.type === "ack") this.#forget(message.received_samples);
    else if (message.type === "pong") this.#confirm();
    else if (message.type === "error") this.lastError = message.code;
    if (this.pings > this.pongs) this.#expect();
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
    if (this.inStep) this.#forget(received);
    else this.#rebase(received);
    this.#setState("open");
    for (const item of this.pending) this.#send(item, received);
    this.pingTimer = setInterval(() => this.#ping(), PING_MS);
  }

  /** The session counts every sample it ever took, of earlier connections too: our first pending sample comes next. @param {number} received */
  #rebase(received) {
    const shift = received - (this.pending[0]?.at ?? this.position);
    for (const item of this.pending) item.at += shift;
    this.position += shift;
    this.inStep = true;
  }

  /** @param {number} received samples the session has taken: they need not be kept */
  #forget(received) {
    this.pending = this.pending.filter((item) => ("pcm" in item ? item.at + item.pcm.length > received : item.at >= received));
  }

  /** Messages are answered in order: the marks before the answered ping have arrived. */
  #confirm() {
    this.pongs += 1;
    this.pending = this.pending.filter((item) => "pcm" in item || item.ping > this.pongs);
  }

  /** @param {Chunk | Mark} item */
  #append(item) {
    this.pending.push(item);
    if (this.state === "open") this.#send(item, item.at);
  }

  /** @param {Chunk | Mark} item @param {number} from position before which the session has everything */
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
    if (this.pings === this.pongs + 1) this.#expect();
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
    if (wait === null || this.attempts % ASKED_EACH === ASKED_AT) void this.#ask(wait === null);
  }

  /** @param {boolean} last the time for tries is over */
  async #ask(last) {
    const { attempts } = this;
    const lives = await this.lives().catch(() => null);
    if (!this.wanted || this.state !== "reconnecting" || this.attempts < attempts) return; // it is up again, or was closed
    if (lives === false) {
      this.#giveUp("session_ended", "The session is over.");
    } else if (last && lives) {
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
    this.inStep = false;
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
