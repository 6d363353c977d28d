/**
 * A session's `/audio` WebSocket: PCM and segment marks out, playback events in. When the connection drops it is opened
 * again, and the sender goes on from the `received_samples` of the new `hello`: nothing is lost, nothing is sent twice.
 *
 * @module audio-link
 */

const RETRY_MS = [100, 250, 500, 1000, 2000, 4000];
const PING_MS = 15_000;
const CLOSED_FOR_GOOD = new Set([1000, 1001, 1008]);

/**
 * What was pushed and is not known to have arrived, in order: PCM, and marks in between, each at its position in samples.
 * PCM is confirmed by `ack`, a mark by the `pong` to the ping that follows it.
 *
 * @typedef {{at: number, pcm: Int16Array}} Chunk
 * @typedef {{at: number, mark: "audio.start" | "audio.end" | "clear", ping: number}} Mark
 */

/**
 * Events (`CustomEvent`, `detail` as it came from the wire): `hello`, `playback.started`, `playback.finished`, `cleared`,
 * `warning`, `error`; and the link's own `state`, with detail `connecting`, `open`, `reconnecting` or `closed`.
 */
export class AudioLink extends EventTarget {
  /**
   * @param {string} url `audio_url` of the session
   * @param {{backlogS?: number}} [options] seconds that may wait for a lost connection; past them `push` refuses
   */
  constructor(url, { backlogS = 20 } = {}) {
    super();
    this.url = url;
    /** @type {"closed" | "connecting" | "open" | "reconnecting"} */
    this.state = "closed";
    this.backlogS = backlogS;
    this.sampleRate = 16_000;
    /** @type {(Chunk | Mark)[]} */
    this.pending = [];
    /** Where the next sample goes, counted as the session counts; only after the first `hello` of a sequence (`inStep`). */
    this.position = 0;
    this.inStep = false;
    this.attempts = 0;
    /** @type {WebSocket|null} */
    this.socket = null;
    this.wanted = false;
    this.pings = 0;
    this.pongs = 0;
    this.retryTimer = 0;
    this.pingTimer = 0;
  }

  /** Opens the connection; idempotent, and starts over when it was closed for good. */
  open() {
    if (this.wanted) return;
    this.wanted = true;
    this.attempts = 0;
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
    this.#setState(this.attempts ? "reconnecting" : "connecting");
    const socket = new WebSocket(this.url);
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => {
      if (socket === this.socket && typeof event.data === "string") this.#receive(JSON.parse(event.data));
    };
    socket.onclose = (event) => socket === this.socket && this.#closed(event.code);
    this.socket = socket;
  }

  /** @param {any} message */
  #receive(message) {
    if (message.type === "hello") this.#resume(message);
    else if (message.type === "ack") this.#forget(message.received_samples);
    else if (message.type === "pong") this.#confirm();
    if (message.type === "ack" || message.type === "pong") return;
    this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
  }

  /** @param {{received_samples: number, sample_rate: number, limits?: {backlog_s: number}}} hello */
  #resume(hello) {
    const received = hello.received_samples;
    this.sampleRate = hello.sample_rate;
    this.backlogS = Math.min(this.backlogS, hello.limits?.backlog_s ?? this.backlogS);
    this.attempts = 0;
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
    return this.pings;
  }

  /** @param {number} code of the WebSocket's close */
  #closed(code) {
    const wait = RETRY_MS[this.attempts];
    if (!this.wanted || CLOSED_FOR_GOOD.has(code) || wait === undefined) {
      this.#end();
      return;
    }
    this.#disconnect();
    this.attempts += 1;
    this.#setState("reconnecting");
    this.retryTimer = setTimeout(() => this.#connect(), wait);
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
  }

  /** @param {"closed" | "connecting" | "open" | "reconnecting"} state */
  #setState(state) {
    if (this.state === state) return;
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}
